"""What the flow, its distillation and the measurements share: noise levels, text, guidance, latents."""

import copy

import torch

from config import CLIP_LEN, GRID, HELD_OUT_SEED, T5_LEN, TRANSFORMER
from model.transformer import pack, position_ids, rope_table

SHIFT, SPREAD = 0.3, 1.1  # of the logit-normal noise levels


def rope(device):
    ids = position_ids(T5_LEN, GRID)
    return tuple(t.to(device) for t in rope_table(ids, TRANSFORMER["axes_dims_rope"]))


def draw_sigma(n, device):
    """Noise levels in 0..1: 85 % logit-normal, 15 % uniform."""
    u = torch.sigmoid(torch.randn(n, device=device) * SPREAD + SHIFT)
    v = torch.rand(n, device=device)
    return torch.where(torch.rand(n, device=device) < 0.85, u, v).clamp(1e-3, 1.0)


def encode_text(nets, clip_ids, t5_ids):
    """-> context [B, T5_LEN, 192], pooled [B, 128]"""
    return nets["t5"](t5_ids), nets["clip"](clip_ids)


def drop_captions(clip_ids, t5_ids, null, share):
    """Replaces a share of the captions with the empty one, whose ids are `null`."""
    drop = torch.rand(len(clip_ids), device=clip_ids.device)[:, None] < share
    return torch.where(drop, null[0], clip_ids), torch.where(drop, null[1], t5_ids)


def guided(nets, x, sigma, context, pooled, guidance, null, rope):
    """Velocity by classifier-free guidance in two passes.

    The spread of the predicted picture is pulled 70 % back to the conditional one's (Lin et al. 2024, rescaled
    guidance): without it, colours burn at high guidance."""
    n = len(x)
    one = torch.ones(n, device=x.device)
    null_context, null_pooled = encode_text(nets, *null)
    null_context, null_pooled = (t.expand(n, *t.shape[1:]).contiguous() for t in (null_context, null_pooled))
    with_text = nets["dit"](x, context, pooled, sigma, one, rope).float()
    without = nets["dit"](x, null_context, null_pooled, sigma, one, rope).float()
    v = without + guidance[:, None, None] * (with_text - without)
    s = sigma[:, None, None]
    plain, pushed = x - s * with_text, x - s * v
    ratio = plain.std((1, 2), keepdim=True) / pushed.std((1, 2), keepdim=True).clamp_min(1e-4)
    k = 0.3 + 0.7 * ratio.clamp(0.3, 1.5)
    return torch.where(s > 0.02, v + pushed * (1 - k) / s.clamp_min(0.02), v)


class LatentBuffer:
    """Encoded compositions with their tokens, on the device; the oldest make room for new ones.

    Encoding every picture on the fly would cost more than the transformer's step."""

    def __init__(self, capacity, draw, encode, dtype, device):
        """draw(n) -> layers, backgrounds, CLIP ids, T5 ids; encode(layers, backgrounds) -> latents [n, tokens, 64]"""
        self.draw, self.encode, self.capacity = draw, encode, capacity
        self.latents = torch.empty(capacity, GRID**2, 64, dtype=dtype, device=device)
        self.clip_ids = torch.empty(capacity, CLIP_LEN, dtype=torch.int16, device=device)
        self.t5_ids = torch.empty(capacity, T5_LEN, dtype=torch.int16, device=device)
        self.filled = self.at = 0

    def add(self, n):
        layers, backgrounds, clip_ids, t5_ids = self.draw(n)
        latents = self.encode(layers, backgrounds)
        where = (torch.arange(n, device=latents.device) + self.at) % self.capacity
        self.latents[where] = latents.to(self.latents.dtype)
        self.clip_ids[where], self.t5_ids[where] = clip_ids.to(torch.int16), t5_ids.to(torch.int16)
        self.at = (self.at + n) % self.capacity
        self.filled = min(self.capacity, self.filled + n)

    def sample(self, n):
        where = torch.randint(0, self.filled, (n,), device=self.latents.device)
        return self.latents[where].float(), self.clip_ids[where].long(), self.t5_ids[where].long()


@torch.no_grad()
def latents_of(vae, compositor, layers, backgrounds, scale, shift, dtype=torch.float32):
    """Means of the posterior, normalised and packed: [B, tokens, 64]."""
    x = compositor(layers, backgrounds).to(dtype)
    if x.is_cuda:
        x = x.contiguous(memory_format=torch.channels_last)
    return pack((vae.encode(x)[0] - shift) * scale)


class HeldOut:
    """Compositions that training never draws on purpose, with fixed noise: the flow's loss on them, in fp32."""

    def __init__(self, n, feed, vae, compositor, scale, shift, device):
        (layers, backgrounds, self.clip_ids, self.t5_ids), _ = feed.fixed(n, HELD_OUT_SEED, device)
        chunks = [slice(i, i + 64) for i in range(0, n, 64)]
        parts = [latents_of(vae, compositor, layers[c], backgrounds[c], scale, shift) for c in chunks]
        self.latents = torch.cat(parts)
        generator = torch.Generator("cpu").manual_seed(5)
        self.noise = torch.randn(self.latents.shape, generator=generator).to(device)
        logit = torch.randn(n, generator=generator).to(device)
        self.sigmas = {
            "uniform": ((torch.arange(n) + 0.5) / n).to(device),
            "logit_normal": torch.sigmoid(logit * SPREAD + SHIFT),
        }
        self.rope = rope(device)

    @torch.no_grad()
    def loss(self, nets):
        """Mean squared velocity error by distribution of the noise level, guidance 1."""
        result = {}
        for name, sigmas in self.sigmas.items():
            errors = []
            for i in range(0, len(self.latents), 256):
                c = slice(i, i + 256)
                z, noise, sigma = self.latents[c], self.noise[c], sigmas[c]
                x = (1 - sigma[:, None, None]) * z + sigma[:, None, None] * noise
                context, pooled = encode_text(nets, self.clip_ids[c], self.t5_ids[c])
                v = nets["dit"](x, context, pooled, sigma, torch.ones_like(sigma), self.rope)
                errors.append((v.float() - (noise - z)).square().mean((1, 2)))
            result[name] = round(torch.cat(errors).mean().item(), 4)
        return result


def frozen_copy(module):
    return copy.deepcopy(module).requires_grad_(False)
