"""Regenerates every file under fixtures/ from PyTorch, diffusers and transformers. See README.md."""

import argparse
import os
from pathlib import Path

import torch

import stages
import tiny

HERE = Path(__file__).resolve().parent


def generate_tiny(spec: tiny.Spec, mini: Path, out: Path) -> None:
    """One tiny model and its goldens."""
    folder = out / spec.name
    model = tiny.build(spec, mini)
    tiny.save(model, folder, os.path.relpath(mini, folder).replace(os.sep, "/"))
    tensors, scalars = stages.all_stages(model)
    tiny.write_tensors(folder / "goldens.safetensors", tensors)
    tiny.write_json(folder / "goldens.json", scalars, compact=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mini", type=Path, default=HERE / "../../models/mini", help="folder of the bundled model")
    parser.add_argument("--out", type=Path, default=HERE / "fixtures", help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    with torch.inference_mode():
        for spec in (tiny.DEV, tiny.SCHNELL):
            generate_tiny(spec, args.mini.resolve(), args.out.resolve())


if __name__ == "__main__":
    main()
