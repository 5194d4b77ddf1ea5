"""FLUX transformer; parameter names of the Black Forest Labs checkpoints, so a state dict is an export."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def timestep_embedding(t, dim=256, max_period=10000.0):
    """t [B] in 0..1 (or the guidance scale) -> [B, dim], cosines first; always fp32."""
    freqs = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device, dtype=torch.float32) / (dim // 2))
    args = (1000.0 * t.float())[:, None] * freqs[None]
    return torch.cat([args.cos(), args.sin()], -1)


def rope_table(ids, axes, theta=10000.0):
    """ids [T, len(axes)] -> cos, sin [T, sum(axes) / 2] in fp32."""
    angles = []
    for i, d in enumerate(axes):
        omega = 1.0 / theta ** (torch.arange(0, d, 2, dtype=torch.float64, device=ids.device) / d)
        angles.append(ids[:, i].double()[:, None] * omega)
    a = torch.cat(angles, 1)
    return a.cos().float(), a.sin().float()


def apply_rope(x, cos, sin):
    """x [B, H, T, D]; neighbouring pairs are rotated; result in x.dtype."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale.float()).to(x.dtype)


class QKNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.query_norm, self.key_norm = RMSNorm(dim), RMSNorm(dim)


class Attn(nn.Module):
    def __init__(self, hidden, head_dim):
        super().__init__()
        self.qkv = nn.Linear(hidden, hidden * 3)
        self.norm = QKNorm(head_dim)
        self.proj = nn.Linear(hidden, hidden)


class MLPEmbedder(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    def __init__(self, hidden, n):
        super().__init__()
        self.n, self.lin = n, nn.Linear(hidden, hidden * n)

    def forward(self, vec):
        return self.lin(F.silu(vec))[:, None].chunk(self.n, -1)


def layer_norm(x):
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(q, k, v, cos, sin):
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    o = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return o.transpose(1, 2).flatten(2)


def mlp(hidden):
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden))


class DoubleBlock(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.img_mod, self.txt_mod = Modulation(hidden, 6), Modulation(hidden, 6)
        self.img_attn, self.txt_attn = Attn(hidden, hidden // heads), Attn(hidden, hidden // heads)
        self.img_mlp, self.txt_mlp = mlp(hidden), mlp(hidden)

    def forward(self, img, txt, vec, cos, sin):
        i, t = self.img_mod(vec), self.txt_mod(vec)
        q, k, v = (
            split_heads(x, self.heads) for x in self.img_attn.qkv((1 + i[1]) * layer_norm(img) + i[0]).chunk(3, -1)
        )
        tq, tk, tv = (
            split_heads(x, self.heads) for x in self.txt_attn.qkv((1 + t[1]) * layer_norm(txt) + t[0]).chunk(3, -1)
        )
        n, tn = self.img_attn.norm, self.txt_attn.norm
        q, k, tq, tk = n.query_norm(q), n.key_norm(k), tn.query_norm(tq), tn.key_norm(tk)
        o = attention(torch.cat([tq, q], 2), torch.cat([tk, k], 2), torch.cat([tv, v], 2), cos, sin)
        n_txt = txt.shape[1]
        img = img + i[2] * self.img_attn.proj(o[:, n_txt:])
        txt = txt + t[2] * self.txt_attn.proj(o[:, :n_txt])
        img = img + i[5] * self.img_mlp((1 + i[4]) * layer_norm(img) + i[3])
        txt = txt + t[5] * self.txt_mlp((1 + t[4]) * layer_norm(txt) + t[3])
        return img, txt


class SingleBlock(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.linear1 = nn.Linear(hidden, 7 * hidden)
        self.linear2 = nn.Linear(5 * hidden, hidden)
        self.norm = QKNorm(hidden // heads)
        self.modulation = Modulation(hidden, 3)

    def forward(self, x, vec, cos, sin):
        m = self.modulation(vec)
        h = self.linear1((1 + m[1]) * layer_norm(x) + m[0])
        qkv, up = h.split([3 * self.hidden, 4 * self.hidden], -1)
        q, k, v = (split_heads(y, self.heads) for y in qkv.chunk(3, -1))
        o = attention(self.norm.query_norm(q), self.norm.key_norm(k), v, cos, sin)
        return x + m[2] * self.linear2(torch.cat([o, F.gelu(up, approximate="tanh")], -1))


class LastLayer(nn.Module):
    def __init__(self, hidden, out):
        super().__init__()
        self.linear = nn.Linear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x, vec):
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        return self.linear((1 + scale) * layer_norm(x) + shift)


class Flux(nn.Module):
    """cfg: the keys of transformer_config.json."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        heads = cfg["num_attention_heads"]
        hidden = heads * cfg["attention_head_dim"]
        ch = cfg["in_channels"]
        self.img_in, self.txt_in = nn.Linear(ch, hidden), nn.Linear(cfg["joint_attention_dim"], hidden)
        self.time_in, self.guidance_in = MLPEmbedder(256, hidden), MLPEmbedder(256, hidden)
        self.vector_in = MLPEmbedder(cfg["pooled_projection_dim"], hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(hidden, heads) for _ in range(cfg["num_layers"]))
        self.single_blocks = nn.ModuleList(SingleBlock(hidden, heads) for _ in range(cfg["num_single_layers"]))
        self.final_layer = LastLayer(hidden, ch)

    def init_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        for e in (self.time_in, self.guidance_in, self.vector_in):
            nn.init.normal_(e.in_layer.weight, std=0.02)
            nn.init.normal_(e.out_layer.weight, std=0.02)
        for m in self.modules():
            if isinstance(m, Modulation):
                nn.init.zeros_(m.lin.weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        return self

    def forward(self, img, txt, pooled, sigma, guidance, rope):
        vec = (
            self.time_in(timestep_embedding(sigma))
            + self.guidance_in(timestep_embedding(guidance))
            + self.vector_in(pooled)
        )
        img, txt = self.img_in(img), self.txt_in(txt)
        cos, sin = rope
        for b in self.double_blocks:
            img, txt = b(img, txt, vec, cos, sin)
        n_txt = txt.shape[1]
        x = torch.cat([txt, img], 1)
        for b in self.single_blocks:
            x = b(x, vec, cos, sin)
        return self.final_layer(x[:, n_txt:], vec)


def position_ids(n_text, grid, device=None):
    ids = torch.zeros(n_text + grid * grid, 3, device=device)
    r = torch.arange(grid, device=device)
    ids[n_text:, 1], ids[n_text:, 2] = r.repeat_interleave(grid), r.repeat(grid)
    return ids


def pack(z):
    """[B, 16, h, w] -> [B, h*w/4, 64]"""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(t, h, w):
    b = t.shape[0]
    return t.view(b, h // 2, w // 2, t.shape[2] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, h, w)
