"""Trains the model: autoencoder, rectified flow, guidance distillation with float8 weights; then measures and exports.

The defaults are those of the bundled model. A call that is stopped (--seconds, Ctrl-C, SIGTERM) saves, and the next one
with the same --state goes on from there."""

import argparse
import os
import signal

from artwork import load_items
from distill_stage import train_distillation
from export import export
from feed import Feed
from flow_stage import train_flow
from measure import measure_all, preview, write_metrics
from run import Run
from vae_stage import train_vae

TINY = dict(vae_steps=6, flow_steps=8, decay_steps=4, distill_steps=4, vae_batch=4, batch=8, fresh=8, buffer=64)
TINY |= dict(prefill=16, held_out=32, sample_steps=1, seeds=1, guidances=[3.0], workers=1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--out", default="out", help="log, figures, sheets, and the model folder")
    add("--state", default="state", help="folder of the checkpoint")
    add("--init", help="exported model folder whose flow is trained on, when there is no checkpoint")
    add("--seconds", type=float, help="stop training after so long and export what there is")
    add("--seed", type=int, default=1234)
    add(
        "--workers",
        type=int,
        default=max(1, min(12, (os.cpu_count() or 2) - 3)),
        help="processes that draw up compositions",
    )
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile the blocks, on a GPU")
    add("--tiny", action="store_true", help="a few steps of everything, for a CPU")
    add("--vae-steps", type=int, default=2764)
    add("--vae-batch", type=int, default=64)
    add("--vae-lr", type=float, default=1e-3)
    add("--flow-steps", type=int, default=11093)
    add(
        "--decay-steps",
        type=int,
        default=4121,
        help="last steps of the flow, over which its rate falls to zero",
    )
    add("--distill-steps", type=int, default=784)
    add("--batch", type=int, default=512)
    add("--lr", type=float, default=1.5e-3, help="of AdamW, in the flow")
    add("--lr-muon", type=float, default=6e-3)
    add("--warmup", type=int, default=300, help="steps")
    add("--prefill", type=int, default=98304, help="latents encoded before the first step")
    add("--buffer", type=int, default=400000, help="latents kept")
    add("--fresh", type=int, default=256, help="latents encoded every 4 steps")
    add(
        "--held-out",
        type=int,
        default=2048,
        help="compositions for the losses; half of them for the autoencoder",
    )
    add("--sample-steps", type=int, default=20)
    add("--seeds", type=int, default=4, help="pictures a prompt when following is measured")
    add("--guidances", type=float, nargs="+", default=[3.0, 1.0, 2.0, 4.5, 6.0])
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY)
    return args


def main():
    args = arguments()
    feed = Feed(load_items(), args.seed, args.workers, chunk=16 if args.tiny else 128)
    try:
        train(args, feed)
    finally:
        feed.close()


def train(args, feed):
    run = Run(args, feed)

    def stop(*_):
        run.stop_requested = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    run.log({k: sum(p.numel() for p in m.parameters()) for k, m in [("vae", run.vae), *run.nets.items()]})
    buffer = None
    while run.stage != "done" and not run.should_stop():
        if run.stage == "vae":
            train_vae(run)
            continue
        buffer = buffer or run.latent_buffer()
        (train_flow if run.stage == "flow" else train_distillation)(run, buffer)
    run.save()
    if run.scale is not None:
        modules = {"vae": run.ema_vae, **run.ema}
        export(os.path.join(args.out, "mini"), modules, run.scale, run.shift, fp8=run.stage == "done")
    preview(run)
    if run.stage == "done":
        measure_all(run)
    write_metrics(run)


if __name__ == "__main__":
    main()
