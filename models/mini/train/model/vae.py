"""FLUX autoencoder; parameter names of the Black Forest Labs checkpoints, so a state dict is an export."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class GroupNorm(nn.GroupNorm):
    """Stays in the type of its input under autocast (the kernel accumulates in fp32)."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class ResnetBlock(nn.Module):
    def __init__(self, cin, cout, groups):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(groups, cin, eps=1e-6), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = GroupNorm(groups, cout, eps=1e-6), nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)
        self.cin, self.cout = cin, cout

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.cin == self.cout else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.norm = GroupNorm(groups, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = torch.softmax((q @ k.transpose(1, 2)).float() * c**-0.5, -1).to(v.dtype)
        return x + self.proj_out((a @ v).transpose(1, 2).reshape(b, c, h, w))


class Mid(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResnetBlock(c, c, groups),
            AttnBlock(c, groups),
            ResnetBlock(c, c, groups),
        )

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    pass


class Resample(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=stride, padding=1 if stride == 1 else 0)


class Encoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        ch, n, g = cfg["block_out_channels"], cfg["layers_per_block"], cfg["norm_num_groups"]
        self.conv_in = nn.Conv2d(3, ch[0], 3, padding=1)
        self.down = nn.ModuleList()
        c = ch[0]
        for i, d in enumerate(ch):
            lv = Level()
            lv.block = nn.ModuleList(ResnetBlock(c if j == 0 else d, d, g) for j in range(n))
            c = d
            if i < len(ch) - 1:
                lv.downsample = Resample(d, 2)
            self.down.append(lv)
        self.mid = Mid(c, g)
        self.norm_out, self.conv_out = (
            GroupNorm(g, c, eps=1e-6),
            nn.Conv2d(c, 2 * cfg["latent_channels"], 3, padding=1),
        )

    def forward(self, x):
        h = self.conv_in(x)
        for lv in self.down:
            for b in lv.block:
                h = b(h)
            if hasattr(lv, "downsample"):
                h = lv.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        ch, n, g = cfg["block_out_channels"], cfg["layers_per_block"], cfg["norm_num_groups"]
        c = ch[-1]
        self.conv_in, self.mid = nn.Conv2d(cfg["latent_channels"], c, 3, padding=1), Mid(c, g)
        levels = []
        for i in reversed(range(len(ch))):
            lv = Level()
            lv.block = nn.ModuleList(ResnetBlock(c if j == 0 else ch[i], ch[i], g) for j in range(n + 1))
            c = ch[i]
            if i:
                lv.upsample = Resample(c, 1)
            levels.insert(0, lv)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = GroupNorm(g, c, eps=1e-6), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for lv in reversed(self.up):
            for b in lv.block:
                h = b(h)
            if hasattr(lv, "upsample"):
                h = lv.upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoEncoder(nn.Module):
    """cfg: the keys of ae_config.json. encode() gives mean and log-variance."""

    def __init__(self, cfg):
        super().__init__()
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)

    def encode(self, x):
        return self.encoder(x).float().chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)
