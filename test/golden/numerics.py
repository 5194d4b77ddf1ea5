"""Reference values that need no model: torch's CPU noise, the flow-matching schedules and the fp8 codec."""

import math

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import tiny

SEEDS = [0, 1, 42, 2**32 - 1, 2**53 - 1]
# torch draws fewer than 16 values one by one and 16 or more in blocks of 16, redrawing the last block when it is short.
SHAPES = [(15,), (16,), (17,), (100,), (1, 4, 6, 10)]
LARGE = 4096 * 16
EDGE = 64
PAIRS = [(15, 15), (7, 9), (16, 16), (17, 17), (15, 16), (100, 15), (240, 240)]
STEPS = [1, 2, 4, 20, 50]
LENGTHS = [24, 64, 256, 1000, 1024, 4096]
STRENGTHS = [0.01, 0.1, 0.3, 0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
FP8 = torch.float8_e4m3fn


def noise() -> tuple[tiny.layouts.Tensors, list[dict]]:
    """torch.randn on CPU generators: tensors `noise/<seed>/<shape>` and `pairs/<seed>/<a>,<b>/{0,1}`; sums of the large ones."""
    tensors, large = {}, []
    for seed in SEEDS:
        for shape in SHAPES:
            key = f"noise/{seed}/{','.join(map(str, shape))}"
            tensors[key] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        values = torch.randn(LARGE, generator=torch.Generator().manual_seed(seed))
        tensors[f"noise/{seed}/{LARGE}/first"], tensors[f"noise/{seed}/{LARGE}/last"] = values[:EDGE], values[-EDGE:]
        exact = values.double()
        large.append({"seed": seed, "size": LARGE, "sum": exact.sum().item(), "sum_squares": exact.square().sum().item()})
        for pair in PAIRS:
            generator = torch.Generator().manual_seed(seed)
            for index, size in enumerate(pair):
                tensors[f"pairs/{seed}/{pair[0]},{pair[1]}/{index}"] = torch.randn(size, generator=generator)
    return tensors, large


def _schedule(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, length: int) -> dict:
    """Sigmas and timesteps as FluxPipeline sets them; the numbers are exact float32 values."""
    config = scheduler.config
    mu = calculate_shift(length, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    values = {"sigmas": scheduler.sigmas.tolist(), "timesteps": scheduler.timesteps.tolist()}
    return {"steps": steps, "image_tokens": length, "mu": mu, **values}


def schedules() -> dict:
    """Schedules of both tiny models' configurations and of a static shift of 3, and where image-to-image starts."""
    configs = {spec.name: spec.scheduler for spec in (tiny.DEV, tiny.SCHNELL)}
    configs["static-shift-3"] = {**tiny.SCHNELL.scheduler, "shift": 3.0}
    out = []
    for name, config in configs.items():
        # Only a dynamic shift depends on the number of tokens.
        lengths = LENGTHS if config["use_dynamic_shifting"] else LENGTHS[:1]
        for length in lengths:
            scheduler = FlowMatchEulerDiscreteScheduler(**config)
            rows = [_schedule(scheduler, steps, length) for steps in STEPS]
            out += [{"scheduler": name, **row} for row in rows]
    return {"configs": configs, "schedules": out, "image_to_image": _starts()}


def _starts() -> list[dict]:
    """First step of image-to-image: floor(steps - min(steps * strength, steps)) in double precision."""
    rows = []
    for steps in (1, 2, 3, 4, 5, 7, 10, 20, 28, 50):
        for strength in STRENGTHS:
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
            pipe = type("Bare", (), {"scheduler": scheduler})()
            _, run = FluxImg2ImgPipeline.get_timesteps(pipe, steps, strength, "cpu")
            rows.append({"steps": steps, "strength": strength, "first_step": steps - run})
    return rows


def _json_number(value: float) -> float | str:
    """JSON has no infinities and no NaN: those become strings that Number() reads."""
    if math.isnan(value):
        return "NaN"
    return ("Infinity" if value > 0 else "-Infinity") if math.isinf(value) else value


def fp8_codec() -> dict:
    """float8_e4m3fn: value of each byte (null for NaN), and bytes that torch casts float32 values to.

    The inputs are every representable value and every midpoint between neighbours, each also one float32 step
    to either side, then the range above the largest value, powers of two around the subnormals, and random values.
    """
    decoded = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    finite = decoded[:127]  # 0x7f is NaN
    middles = (finite[1:] + finite[:-1]) / 2
    extremes = torch.tensor([math.inf, 3.4e38, 1e10, 1e-10, 1e-45])
    above = torch.tensor([448.1, 455.0, 463.0, 464.0, 465.0, 479.0, 480.0, 481.0, 496.0, 512.0, 1000.0, 65504.0])
    powers = 2.0 ** torch.arange(-14, 10)
    generator = torch.Generator().manual_seed(300)
    spread = torch.randn(400, generator=generator).abs() * 10.0 ** torch.empty(400).uniform_(-4, 3, generator=generator)
    exact = torch.cat([finite, middles, powers])
    down, up = torch.nextafter(exact, torch.tensor(-math.inf)), torch.nextafter(exact, torch.tensor(math.inf))
    positive = torch.cat([exact, down[down > 0], up, above, spread, extremes])
    values = torch.cat([positive, -positive, torch.tensor([math.nan])])
    codes = values.to(FP8).view(torch.uint8)
    return {
        "decode": [None if math.isnan(v) else v for v in decoded.tolist()],
        "encode": [[_json_number(v), b] for v, b in zip(values.tolist(), codes.tolist(), strict=True)],
    }
