"""Regenerates every file under fixtures/ from PyTorch, diffusers and transformers. See README.md."""

import argparse
from pathlib import Path

import torch

import lora_goldens
import mini
import numerics
import stages
import tiny
import trained
import training
import variants

HERE = Path(__file__).resolve().parent


def generate_tiny(spec: tiny.Spec, bundled: Path, out: Path) -> None:
    """One tiny model, its variants where it has some, and its goldens."""
    folder = out / spec.name
    model = tiny.build(spec, bundled)
    tiny.save(model, folder)
    tensors, scalars = stages.all_stages(model)
    if spec is tiny.DEV:
        tensors |= variants.variants(model, folder / "variants")
    tiny.write_tensors(folder / "goldens.safetensors", tensors)
    tiny.write_json(folder / "goldens.json", scalars, compact=True)
    if spec is tiny.DEV:
        lora_goldens.goldens(model, out / "lora", folder / "variants")


def generate_numerics(out: Path) -> None:
    """Noise, schedules and the fp8 codec."""
    tensors, large = numerics.noise()
    tiny.write_tensors(out / "numerics/noise.safetensors", tensors)
    tiny.write_json(out / "numerics/noise.json", {"large": large}, compact=True)
    tiny.write_json(out / "numerics/schedules.json", numerics.schedules(), compact=True)
    tiny.write_json(out / "numerics/fp8_e4m3fn.json", numerics.fp8_codec(), compact=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mini", type=Path, default=HERE / "../../models/mini", help="folder of the bundled model")
    parser.add_argument("--out", type=Path, default=HERE / "fixtures", help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    with torch.inference_mode():
        for spec in (tiny.DEV, tiny.SCHNELL):
            generate_tiny(spec, args.mini, args.out)
        generate_numerics(args.out)
        training.goldens(args.out, args.out / "training")
        mini.pictures(args.mini, args.out / "mini")
        trained.pictures(args.mini, HERE / "fixtures/trained/lora.safetensors", args.out / "trained")


if __name__ == "__main__":
    main()
