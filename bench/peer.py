"""Times the bundled model in PyTorch and diffusers on the CPU, in fp32; prints one JSON line a size.

Run by the benchmark next to this project's own engine: same weights, prompt, seed, steps and threads.
Needs the packages of test/golden/requirements.txt.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

started = time.perf_counter()  # imports count as load time, as they do for anyone who starts this process

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test" / "golden"))

import torch  # noqa: E402

from mini import load_pipeline  # noqa: E402


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def run(pipe, args: argparse.Namespace, size: int, length: int) -> tuple[float, list[float]]:
    """One picture: (milliseconds from prompt to pixels, milliseconds between the ends of denoising steps)."""
    marks: list[float] = []

    def mark(_pipe, _index, _timestep, _values):
        marks.append(time.perf_counter())
        return {}

    begin = time.perf_counter()
    pipe(
        args.prompt, num_inference_steps=args.steps, guidance_scale=args.guidance, height=size, width=size,
        max_sequence_length=length, generator=torch.Generator().manual_seed(args.seed),
        callback_on_step_end=mark, output_type="pil",
    )  # fmt: skip
    total = time.perf_counter() - begin
    return total * 1e3, [(b - a) * 1e3 for a, b in zip(marks, marks[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "mini")
    parser.add_argument("--sizes", default="128,256", help="comma-separated square sizes in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3, help="timed runs a size, after one untimed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="a red apple on a blue background")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=3.5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    length = json.loads((args.model / "model_index.json").read_text())["max_sequence_length"]
    pipe = load_pipeline(args.model)
    # Both are worth a few percent at small sizes and cost nothing at larger ones.
    pipe.transformer.fuse_qkv_projections()
    pipe.vae.to(memory_format=torch.channels_last)
    load_ms = (time.perf_counter() - started) * 1e3
    for size in map(int, args.sizes.split(",")):
        totals: list[float] = []
        steps: list[float] = []
        with torch.inference_mode():
            for attempt in range(args.runs + 1):
                total, between = run(pipe, args, size, length)
                if attempt:
                    totals.append(round(total, 2))
                    steps += between
        line = {
            "peer": "diffusers",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "size": size,
            "steps": args.steps,
            "runs": totals,
            "step_ms": round(statistics.median(steps), 3) if steps else None,
            "load_ms": round(load_ms, 1),
            "rss_mb": round(peak_rss_mb(), 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
