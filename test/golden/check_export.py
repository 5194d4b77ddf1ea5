"""Loads exported LoRA files with diffusers and compares what they give with the golden of the file they came from.

    python check_export.py --case kohya@1 --peft exported.safetensors --kohya exported_kohya.safetensors
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

import lora_goldens
import lora_reference as reference
import tiny
from lora import Tensors, write_lora

HERE = Path(__file__).resolve().parent
FINAL = "lora_unet_final_layer_"


def from_kohya(model: tiny.Model, path: Path) -> Tensors:
    """A kohya file by diffusers' conversion, made complete.

    That conversion forgets the prefix `transformer.` outside the blocks, so that those modules would be dropped on
    loading, and the alphas of the final layer.
    """
    tensors = {name: t.float() for name, t in load_file(path).items()}
    for key in [n.removesuffix(".alpha") for n in tensors if n.startswith(FINAL) and n.endswith(".alpha")]:
        tensors[f"{key}.lora_up.weight"] *= tensors.pop(f"{key}.alpha") / tensors[f"{key}.lora_down.weight"].shape[0]
    converted = reference.kohya_conversion(model)(tensors)
    return {n if n.startswith(("transformer.", "text_encoder.")) else f"transformer.{n}": t for n, t in converted.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help="a case of one file in goldens.json, e.g. kohya@1")
    parser.add_argument("--peft", type=Path, help="that file as exported in PEFT form")
    parser.add_argument("--kohya", type=Path, help="that file as exported in kohya form")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference, default 1e-4")
    parser.add_argument("--mini", type=Path, default=HERE / "../../models/mini", help="folder of the bundled model")
    args = parser.parse_args()
    if not (args.peft or args.kohya):
        parser.error("nothing to check: give --peft, --kohya or both")
    folder = HERE / "fixtures/lora"
    cases = {case["name"]: case for case in json.loads((folder / "goldens.json").read_text())["cases"]}
    case = cases.get(args.case)
    if case is None or "base" in case or len(case["files"]) != 1:
        parser.error(f"{args.case} is not a case of one file on tiny-dev's own weights")
    goldens = load_file(folder / "goldens.safetensors")
    failed = False
    with torch.inference_mode(), TemporaryDirectory() as scratch:
        model = tiny.build(tiny.DEV, args.mini)
        files = {"peft": args.peft}
        if args.kohya:
            files["kohya"] = Path(scratch) / "converted.safetensors"
            write_lora(files["kohya"], from_kohya(model, args.kohya), {})
        for form, path in files.items():
            if path is None:
                continue
            pipe = reference.load(model, [(path, case["files"][0]["weight"])])
            values = lora_goldens.outputs(model, pipe)
            for key in case["tensors"]:
                difference = (values[key.removeprefix(f"{args.case}/")] - goldens[key]).abs().max().item()
                good = difference <= args.tolerance  # false for NaN too
                failed |= not good
                print(f"{form} {key}: {'OK' if good else 'DIFFERS'}, {difference:.2e}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
