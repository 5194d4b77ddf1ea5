"""Second stage: the rectified flow, with the text encoders trained along."""

import time

import torch
import torch.nn as nn

from config import TRANSFORMER
from measure import held_out
from optim import Optimizer
from rectified_flow import draw_sigma, drop_captions, encode_text
from run import Compiled, Meter, update_average

WIDTH = TRANSFORMER["attention_head_dim"] * TRANSFORMER["num_attention_heads"]
HELD_OUT_SECONDS = 60


def blocks_of(dit):
    return [*dit.double_blocks, *dit.single_blocks]


def flow_optimizer(nets, lr_muon, lr):
    """Over all parameters of `nets` that are trained."""
    blocks = [p for b in blocks_of(nets["dit"]) for p in b.parameters()]
    taken = {id(p) for p in blocks}
    rest = [p for p in nets.parameters() if p.requires_grad and id(p) not in taken]
    return Optimizer(blocks, rest, lr_muon, lr, WIDTH)


def train_flow(run, buffer):
    args, nets, batch = run.args, run.nets, run.args.batch
    run.use_optimizer(flow_optimizer(nets, args.lr_muon, args.lr))
    optimizer, meter, held = run.optimizer, Meter(run, batch), held_out(run)
    guidance, looked = torch.ones(batch, device=run.device), time.time()
    decay_from = args.flow_steps - args.decay_steps
    with Compiled(run, [*blocks_of(nets["dit"]), nets["clip"], nets["t5"]]):
        while run.steps["flow"] < args.flow_steps and not run.should_stop():
            step = run.steps["flow"]
            decay = min(1.0, (args.flow_steps - step) / args.decay_steps)
            if step % 4 == 0:
                buffer.add(args.fresh)
            x0, clip_ids, t5_ids = buffer.sample(batch)
            sigma, noise = draw_sigma(batch, run.device), torch.randn_like(x0)
            x = torch.lerp(x0, noise, sigma[:, None, None])
            with run.autocast():
                clip_ids, t5_ids = drop_captions(clip_ids, t5_ids, run.null, 0.1)
                context, pooled = encode_text(nets, clip_ids, t5_ids)
                v = nets["dit"](x, context, pooled, sigma, guidance, run.rope)
            loss = (v.float() - (noise - x0)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(optimizer.params, 1.0)
            optimizer.step(min(1.0, (step + 1) / args.warmup) * max(0.005, decay))
            average = 0.9995 if step < decay_from else 0.998
            update_average(run.ema, nets, min(average, (1 + step) / (10 + step)))
            meter.step(loss=loss, gradient=norm)
            if time.time() - looked > HELD_OUT_SECONDS:
                run.log("held out", held.loss(run.ema))
                looked = time.time()
        optimizer.zero_grad()
    if run.steps["flow"] >= args.flow_steps:
        run.metrics["held_out_flow"] = held.loss(run.ema)
        run.log("held out, flow", run.metrics["held_out_flow"])
        run.finish_stage("distill")
