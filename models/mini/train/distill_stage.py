"""Third stage: guidance becomes an input of the transformer, and its block matrices become float8.

The student learns what the frozen flow gives by two passes at guidance 1 to 6. Its forward and backward passes run on
weights rounded to float8_e4m3fn, the updates go to the exact ones: the export costs nothing further."""

import torch
import torch.nn as nn

from export import fp8_round, is_block_linear
from flow_stage import blocks_of, flow_optimizer
from rectified_flow import draw_sigma, drop_captions, encode_text, frozen_copy, guided
from run import Compiled, Meter, update_average

RATE = 0.25  # of the flow's learning rates
WARMUP = 50


def draw_guidance(n, device):
    """15 % exactly 1, the rest uniform in 1..6"""
    scale = 1 + 5 * torch.rand(n, device=device)
    return torch.where(torch.rand(n, device=device) < 0.15, torch.ones(n, device=device), scale)


def train_distillation(run, buffer):
    args, nets, batch = run.args, run.nets, run.args.batch
    if run.teacher is None:
        run.teacher = frozen_copy(run.ema)
        nets.load_state_dict(run.ema.state_dict())
    teacher, dit = run.teacher, nets["dit"]
    for part in ("clip", "t5"):
        nets[part].requires_grad_(False)
    run.use_optimizer(flow_optimizer(nets, args.lr_muon * RATE, args.lr * RATE))
    optimizer, meter = run.optimizer, Meter(run, batch)
    matrices = [p for n, p in dit.named_parameters() if is_block_linear(n, p)]
    exact = [p.detach().clone() for p in matrices]
    with Compiled(run, [*blocks_of(dit), *blocks_of(teacher["dit"])]):
        while run.steps["distill"] < args.distill_steps and not run.should_stop():
            step = run.steps["distill"]
            decay = 1 - step / args.distill_steps
            if step % 4 == 0:
                buffer.add(args.fresh)
            x0, clip_ids, t5_ids = buffer.sample(batch)
            sigma = draw_sigma(batch, run.device)
            x = torch.lerp(x0, torch.randn_like(x0), sigma[:, None, None])
            with torch.no_grad():
                torch._foreach_copy_(matrices, [fp8_round(w) for w in exact])
            with run.autocast():
                clip_ids, t5_ids = drop_captions(clip_ids, t5_ids, run.null, 0.03)
                guidance = draw_guidance(batch, run.device)
                with torch.no_grad():
                    context, pooled = encode_text(teacher, clip_ids, t5_ids)
                    target = guided(teacher, x, sigma, context, pooled, guidance, run.null, run.rope)
                v = dit(x, context, pooled, sigma, guidance, run.rope)
            loss = (v.float() - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(optimizer.params, 1.0)
            with torch.no_grad():
                torch._foreach_copy_(matrices, exact)
            optimizer.step(min(1.0, (step + 1) / WARMUP) * max(0.005, decay))
            with torch.no_grad():
                torch._foreach_copy_(exact, [p.detach() for p in matrices])
            average = 0.98 if decay < 0.15 else 0.995
            update_average(run.ema, nets, min(average, (1 + step) / (10 + step)))
            meter.step(loss=loss, gradient=norm)
        optimizer.zero_grad()
    if run.steps["distill"] >= args.distill_steps:
        run.finish_stage("done")
