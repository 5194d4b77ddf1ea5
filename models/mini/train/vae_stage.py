"""First stage: the autoencoder, and the two numbers that bring its latents to mean 0 and deviation 1."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from config import STATISTICS_SEED
from measure import measure_autoencoder
from run import Compiled, Meter, update_average


def reconstruction_loss(y, x):
    """L1, gradients and L1 at three scales, squared error, and the mean colour of 16 x 16 cells."""
    a, b, pyramid = y, x, 0.0
    for k in range(3):
        if k:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        d = a - b
        gradients = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        pyramid = pyramid + gradients + 0.5 * d.abs().mean()
    d = y - x
    return d.abs().mean() + 0.7 * pyramid / 3 + d.square().mean() + 0.5 * F.avg_pool2d(d, 16).abs().mean()


def half_size_loss(vae, mean, x, memory_format):
    """Half-size latents should decode to the half-size picture: that keeps latents smooth.

    forward() goes round the compiled call, which is for one shape."""
    small = F.interpolate(mean, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=True)
    y = vae.decoder.forward(small.contiguous(memory_format=memory_format)).float()
    return (y - F.avg_pool2d(x, 2)).abs().mean()


def train_vae(run):
    args, vae = run.args, run.vae
    parameters = list(vae.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    run.use_optimizer(torch.optim.AdamW(groups, lr=args.vae_lr, betas=(0.9, 0.99), fused=run.cuda))
    optimizer, meter = run.optimizer, Meter(run, args.vae_batch)
    with Compiled(run, [vae.encoder, vae.decoder]):
        while run.steps["vae"] < args.vae_steps and not run.should_stop():
            step = run.steps["vae"]
            cosine = 0.5 * (1 + math.cos(math.pi * step / args.vae_steps))
            for group in optimizer.param_groups:
                group["lr"] = args.vae_lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * cosine)
            layers, backgrounds, _, _ = run.draw(args.vae_batch)
            with torch.no_grad():
                x = run.compositor(layers, backgrounds).contiguous(memory_format=run.memory_format)
            smooth = torch.zeros((), device=run.device)
            with run.autocast():
                mean, logvar = vae.encode(x)
                logvar = logvar.clamp(-20, 10)
                kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
                z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
                z = z + 0.05 * torch.randn_like(mean) * mean.detach().std()  # for what the flow gets wrong
                y = vae.decoder(z.contiguous(memory_format=run.memory_format)).float()
                if step % 2 == 0:
                    k = max(1, args.vae_batch // 4)
                    smooth = half_size_loss(vae, mean[:k], x[:k], run.memory_format)
            reconstruction = reconstruction_loss(y, x)
            optimizer.zero_grad()
            (reconstruction + 1e-4 * kl + 0.5 * smooth).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            update_average(run.ema_vae, vae, min(0.999, (1 + step) / (10 + step)))
            meter.step(reconstruction=reconstruction, squared=(y - x).square().mean(), kl=kl, half=2 * smooth)
        optimizer.zero_grad()
    if run.steps["vae"] >= args.vae_steps:
        _normalise(run)
        run.finish_stage("flow")


@torch.no_grad()
def _normalise(run):
    n = run.args.held_out // 2
    (layers, backgrounds, _, _), _ = run.feed.fixed(n, STATISTICS_SEED, run.device)
    chunks = [slice(i, i + 64) for i in range(0, n, 64)]
    z = torch.cat([run.ema_vae.encode(run.compositor(layers[c], backgrounds[c]))[0] for c in chunks])
    run.shift, run.scale = round(z.mean().item(), 5), round(1 / z.std().item(), 5)
    run.log("latents: shift", run.shift, "scale", run.scale)
    run.metrics["autoencoder"] = measure_autoencoder(run)
    run.log("autoencoder", run.metrics["autoencoder"])
