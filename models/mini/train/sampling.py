"""Pictures from the networks, with noise and schedule as diffusers' FluxPipeline draws them."""

import math

import numpy as np
import torch
from PIL import Image

from config import GRID, LATENT, RES, SCHEDULER
from model.transformer import pack, unpack
from rectified_flow import encode_text, guided
from tokens import load_tokenizers, tokenize


def sigmas(steps):
    c = SCHEDULER
    slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
    e = math.exp(c["base_shift"] + slope * (GRID**2 - c["base_image_seq_len"]))
    return [e / (e + 1 / s - 1) for s in np.linspace(1, 1 / steps, steps)] + [0.0]


def to_uint8(x):
    """[B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3]"""
    x = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def sample(run, nets, prompts, seeds, guidance, two_pass=False):
    """-> uint8 [prompts, seeds, RES, RES, 3]. two_pass: guidance as the teacher of the distillation does it."""
    steps, device = run.args.sample_steps, run.device
    ids = (torch.from_numpy(a).to(device) for a in tokenize(load_tokenizers(), prompts))
    context, pooled = (t.repeat_interleave(len(seeds), 0) for t in encode_text(nets, *ids))
    noise = [torch.randn(1, 16, LATENT, LATENT, generator=torch.Generator("cpu").manual_seed(s)) for s in seeds]
    x = pack(torch.cat(noise).repeat(len(prompts), 1, 1, 1)).to(device)
    scale = torch.full((len(x),), float(guidance), device=device)
    schedule = sigmas(steps)
    for now, following in zip(schedule[:-1], schedule[1:]):
        sigma = torch.full((len(x),), float(now), device=device)
        if two_pass:
            v = guided(nets, x, sigma, context, pooled, scale, run.null, run.rope)
        else:
            v = nets["dit"](x, context, pooled, sigma, scale, run.rope).float()
        x = x + (following - now) * v
    latents = unpack(x, LATENT, LATENT) / run.scale + run.shift
    pictures = np.concatenate([to_uint8(run.ema_vae.decode(z)) for z in latents.split(64)])
    return pictures.reshape(len(prompts), len(seeds), RES, RES, 3)


def save_sheet(pictures, columns, path):
    """Tiles pictures of any leading shape, row by row."""
    pictures = pictures.reshape(-1, RES, RES, 3)
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * columns, RES, RES, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    sheet = sheet.reshape(rows, columns, RES, RES, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(sheet.reshape(rows * RES, columns * RES, 3)).save(path)
