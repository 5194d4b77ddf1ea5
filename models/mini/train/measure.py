"""The figures of the model card, and the sheets beside them."""

import copy
import math
import os

import numpy as np
import torch

from config import GUIDANCE, HELD_OUT_SEED, SHEET_PROMPTS
from export import stored, write_json
from follow import PROMPTS, Subjects, corners, score
from rectified_flow import HeldOut
from run import set_tf32
from sampling import sample, save_sheet, to_uint8


def held_out(run):
    return HeldOut(run.args.held_out, run.feed, run.ema_vae, run.compositor, run.scale, run.shift, run.device)


@torch.no_grad()
def measure_autoencoder(run):
    """Weights as stored (fp16), arithmetic in fp32, on held-out compositions.

    Background: mean absolute error of the four 6 px corners, of 255."""
    vae = copy.deepcopy(run.ema_vae)
    for p in vae.parameters():
        p.copy_(p.half().float())
    set_tf32(False)
    n = run.args.held_out // 2
    (layers, backgrounds, _, _), _ = run.feed.fixed(n, HELD_OUT_SEED, run.device)
    psnr, squares, background = [], 0.0, []
    for i in range(0, n, 64):
        x = run.compositor(layers[i : i + 64], backgrounds[i : i + 64])
        error = (vae.decode(vae.encode(x)[0]).clamp(-1, 1) - x) / 2
        mse = error.square().mean((1, 2, 3))
        psnr.append(-10 * mse.clamp_min(1e-9).log10())
        squares += mse.sum().item()
        background.append(corners(error.permute(0, 2, 3, 1)).abs().mean((1, 2)) * 255)
    set_tf32(True)
    psnr, background = torch.cat(psnr), torch.cat(background)
    return {
        "psnr_mean": round(psnr.mean().item(), 2),
        "psnr_pooled": round(-10 * math.log10(squares / n), 2),
        "psnr_p5": round(psnr.quantile(0.05).item(), 2),
        "background_error_255": round(background.mean().item(), 3),
        "background_error_p95": round(background.quantile(0.95).item(), 3),
        "n": n,
    }


@torch.no_grad()
def as_stored(nets):
    """A copy with the values that the exported files hold, in fp32."""
    rounded = copy.deepcopy(nets)
    for part, module in rounded.items():
        for name, p in module.named_parameters():
            p.copy_(stored(name, p, part).float())
    return rounded


def measure_following(run, nets, subjects, guidance, sheet=None):
    args = run.args
    pictures = np.concatenate(
        [sample(run, nets, PROMPTS[i : i + 16], range(args.seeds), guidance) for i in range(0, len(PROMPTS), 16)]
    )
    if sheet:
        save_sheet(pictures, 16, os.path.join(args.out, sheet))
    return score(pictures, subjects)


def preview(run):
    """Held-out compositions over their reconstructions, and 16 prompts once the flow has begun."""
    (layers, backgrounds, _, _), _ = run.feed.fixed(16, HELD_OUT_SEED, run.device)
    with torch.no_grad():
        x = run.compositor(layers, backgrounds)
        y = run.ema_vae.decode(run.ema_vae.encode(x)[0])
    rows = [to_uint8(t) for t in (x[:8], y[:8], x[8:], y[8:])]
    if run.scale is not None:
        two_pass = run.stage != "done"
        rows.append(sample(run, run.ema, SHEET_PROMPTS, [0], GUIDANCE, two_pass)[:, 0])
    save_sheet(np.concatenate(rows), 8, os.path.join(run.args.out, "preview.png"))


def measure_all(run):
    """Of the finished model: losses before and after float8, prompt following by guidance, sheets."""
    metrics, nets = run.metrics, as_stored(run.ema)
    held = held_out(run)
    set_tf32(False)
    metrics["held_out_distilled"], metrics["held_out_fp8"] = held.loss(run.ema), held.loss(nets)
    set_tf32(True)
    run.log("held out, distilled", metrics["held_out_distilled"], "as stored", metrics["held_out_fp8"])
    metrics["following"] = {}
    subjects = Subjects(run.feed.items, run.compositor, run.device)
    for guidance in run.args.guidances:
        sheet = "follow.png" if guidance == GUIDANCE else None
        metrics["following"][str(guidance)], notes = measure_following(run, nets, subjects, guidance, sheet)
        run.log("following at guidance", guidance, metrics["following"][str(guidance)])
    rows = [sample(run, nets, SHEET_PROMPTS[:8], [0], g)[:, 0] for g in sorted(run.args.guidances)]
    save_sheet(np.concatenate(rows), 8, os.path.join(run.args.out, "guidance.png"))


def write_metrics(run):
    fields = ("stage", "seconds", "steps", "scale", "shift", "metrics")
    write_json({k: getattr(run, k) for k in fields}, run.args.out, "metrics.json")
