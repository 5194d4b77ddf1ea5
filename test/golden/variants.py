"""The tiny-dev transformer, cut to its first double and single block, in the other published number formats."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

import layouts
import stages
from tiny import Model, write_json, write_tensors

DEPTH = {"num_layers": 1, "num_single_layers": 1}
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
PREFIX = "model.diffusion_model."  # as in all-in-one checkpoints
BAIT = "double_blocks.0.img_attn.qkv"  # gets a scale_input, which only activations in fp8 would use


def _is_block_linear(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and name.startswith(("double_blocks.", "single_blocks."))


def scaled_fp8(tensors: layouts.Tensors) -> tuple[layouts.Tensors, layouts.Tensors]:
    """ComfyUI's scaled fp8: (stored tensors, their values): weight = fp8 * scale_weight, one fp32 scale a tensor.

    Scales alternate between shapes [] and [1]; both are found in published files. The marker `scaled_fp8` has two elements.
    """
    stored: layouts.Tensors = {"scaled_fp8": torch.zeros(2).to(FP8)}
    values: layouts.Tensors = {}
    for index, (name, tensor) in enumerate(sorted(tensors.items())):
        if not _is_block_linear(name, tensor):
            stored[name] = tensor.to(torch.bfloat16)
            values[name] = stored[name].float()
            continue
        module = name.removesuffix(".weight")
        scale = tensor.abs().max() / FP8_MAX
        stored[name] = (tensor / scale).to(FP8)
        stored[f"{module}.scale_weight"] = scale if index % 2 else scale[None]
        values[name] = stored[name].float() * scale
    stored[f"{BAIT}.scale_input"] = torch.tensor([7.0])
    return stored, values


def variants(model: Model, folder: Path) -> layouts.Tensors:
    """Writes each file to `folder` and returns its transformer output for the inputs of case 0, weights widened to fp32."""
    config = {**model.spec.transformer, **DEPTH}
    kept = FluxTransformer2DModel(**config).state_dict().keys()
    source = layouts.transformer_to_bfl({n: t for n, t in model.transformer.state_dict().items() if n in kept})
    files = {
        "fp16": {PREFIX + name: t.half() for name, t in source.items()},
        "bf16": {name: t.to(torch.bfloat16) for name, t in source.items()},
        "fp8": {name: t.to(FP8 if _is_block_linear(name, t) else torch.bfloat16) for name, t in source.items()},
    }
    values = {kind: {name.removeprefix(PREFIX): t.float() for name, t in tensors.items()} for kind, tensors in files.items()}
    files["fp8_scaled"], values["fp8_scaled"] = scaled_fp8(source)
    write_json(folder / "transformer_config.json", {"_class_name": "FluxTransformer2DModel", **config})
    out: layouts.Tensors = {}
    for kind, tensors in files.items():
        write_tensors(folder / f"{kind}.safetensors", tensors)
        module = FluxTransformer2DModel(**config).eval()
        module.load_state_dict(layouts.transformer_from_bfl(values[kind]))
        inputs = stages.transformer_inputs(model, 0)
        out[f"variants/{kind}/output"] = stages.run_transformer(module, inputs, stages.CASES[0], model.spec.tokens)
    return out
