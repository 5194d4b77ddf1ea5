"""A LoRA that this project trained on the bundled model, loaded by diffusers, and the pictures drawn with it."""

import json
from pathlib import Path

import numpy
import torch
from diffusers import FluxPipeline

from mini import load_pipeline
from tiny import write_json

CASES = [
    {"prompt": "ink wash painting of a spider web", "seed": 1, "width": 128, "height": 128, "weight": 1.0},
    {"prompt": "ink wash painting of a rocket", "seed": 2, "width": 128, "height": 128, "weight": 1.0},
    {"prompt": "ink wash painting of a bicycle", "seed": 3, "width": 96, "height": 144, "weight": 0.6},
]
GUIDANCE = 3.5
MOVED = 20  # mean difference in bytes that a style has to make


def draw(pipe: FluxPipeline, case: dict, steps: int, length: int):
    """One picture in the pipeline's present state."""
    return pipe(
        case["prompt"], num_inference_steps=steps, guidance_scale=GUIDANCE, height=case["height"], width=case["width"],
        max_sequence_length=length, generator=torch.Generator().manual_seed(case["seed"]),
    ).images[0]  # fmt: skip


def pictures(folder: Path, lora: Path, out: Path) -> None:
    """A picture for each of CASES with `lora` on the model in `folder`, and `cases.json` with the requests.

    Asserts that diffusers takes every tensor of the file and that the LoRA moves each picture.
    """
    index = json.loads((folder / "model_index.json").read_text())
    steps, length = index["default_steps"], index["max_sequence_length"]
    plain = load_pipeline(folder)
    base = [draw(plain, case, steps, length) for case in CASES]
    pipe = load_pipeline(folder)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="trained")
    layers = [m for m in pipe.transformer.modules() if hasattr(m, "lora_A") and "trained" in m.lora_A]
    stored = FluxPipeline.lora_state_dict(str(lora.parent), weight_name=lora.name)
    assert 2 * len(layers) == sum(".lora_" in name for name in stored)
    out.mkdir(parents=True, exist_ok=True)
    cases = []
    for number, (case, before) in enumerate(zip(CASES, base, strict=True), start=1):
        pipe.set_adapters("trained", case["weight"])
        image = draw(pipe, case, steps, length)
        moved = numpy.abs(numpy.asarray(image, float) - numpy.asarray(before, float)).mean()
        assert moved > MOVED, f"{case['prompt']} moved by {moved} only"
        file = f"{number}.png"
        image.save(out / file, optimize=True)
        cases.append({**case, "steps": steps, "guidance": GUIDANCE, "file": file})
        print(f"{file}: {moved:.1f} from the base on average")
    write_json(out / "cases.json", cases)
