"""Two independent ways to apply LoRA files to a tiny model: diffusers' loader, and adding the deltas to the weights."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils, lora_pipeline
from diffusers.utils import logging
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file

from lora import Lora, Tensors, write_lora
from tiny import Model

FLUX_SIZES = "dims=[3072, 3072, 3072, 12288]"  # rows of linear1, written into diffusers' kohya conversion


def kohya_conversion(model: Model) -> Callable[[Tensors], Tensors]:
    """diffusers' own kohya conversion with the sizes of `model` in place of FLUX.1's."""
    original = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    source = inspect.getsource(original)
    assert source.count(FLUX_SIZES) == 1
    block = model.transformer.single_transformer_blocks[0]
    hidden, mlp = block.attn.to_q.out_features, block.proj_mlp.out_features
    scope = dict(vars(lora_conversion_utils))
    exec(source.replace(FLUX_SIZES, f"dims={[hidden] * 3 + [mlp]}"), scope)
    return scope[original.__name__]


@contextmanager
def kohya_conversion_for(model: Model) -> Iterator[None]:
    """Lets FluxPipeline.load_lora_weights read kohya files for `model`."""
    original = lora_pipeline._convert_kohya_flux_lora_to_diffusers
    lora_pipeline._convert_kohya_flux_lora_to_diffusers = kohya_conversion(model)
    try:
        yield
    finally:
        lora_pipeline._convert_kohya_flux_lora_to_diffusers = original


def fresh(model: Model) -> FluxPipeline:
    """A pipeline whose transformer and CLIP are copies, so that adapters do not reach `model`."""
    parts = {k: copy.deepcopy(v) if k in ("transformer", "text_encoder") else v for k, v in model.components().items()}
    pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(model: Model, files: list[tuple[Path, float]]) -> FluxPipeline:
    """A pipeline with these files as adapters of these weights, by FluxPipeline.load_lora_weights.

    Files are widened to fp32 first: diffusers folds alphas into the stored format, which rounds once more.
    """
    pipe = fresh(model)
    names = [f"file{index}" for index in range(len(files))]
    with kohya_conversion_for(model), TemporaryDirectory() as folder:
        for name, (path, _) in zip(names, files, strict=True):
            widened = Path(folder) / f"{name}.safetensors"
            with safe_open(path, "pt") as file:
                write_lora(widened, {n: t.float() for n, t in load_file(path).items()}, file.metadata() or {})
            pipe.load_lora_weights(widened, adapter_name=name)
    loaded = {name for adapters in pipe.get_list_adapters().values() for name in adapters}
    if kept := [n for n in names if n in loaded]:
        pipe.set_adapters(kept, [weight for n, (_, weight) in zip(names, files, strict=True) if n in loaded])
    return pipe


@dataclass
class Loaded:
    """What became of one file in diffusers, by part and module."""

    deltas: dict[str, Tensors]
    error: str | None = None


def _adapter_deltas(module: torch.nn.Module, prefix: str) -> Tensors:
    layers = ((n, m) for n, m in module.named_modules() if isinstance(m, BaseTunerLayer))
    return {prefix + n: sum(m.get_delta_weight(a) for a in m.active_adapters) for n, m in layers}


def inspect_file(model: Model, path: Path) -> Loaded:
    """Loads one file at weight 1 and reads the deltas back from the adapters; an error is recorded, not raised."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        pipe = load(model, [(path, 1.0)])
    except Exception as error:  # whatever a loader raises is the finding
        return Loaded({"transformer": {}, "clip": {}}, type(error).__name__)
    finally:
        logging.set_verbosity(verbosity)
    parts = {"transformer": _adapter_deltas(pipe.transformer, ""), "clip": _adapter_deltas(pipe.text_encoder, "text_model.")}
    return Loaded(parts)


def add(model: Model, loras: list[tuple[Lora, float]]) -> FluxPipeline:
    """A pipeline whose weights are W + sum of weight * delta, in fp32."""
    pipe = fresh(model)
    for lora, weight in loras:
        for module, deltas, prefix in ((pipe.transformer, lora.transformer, ""), (pipe.text_encoder, lora.clip, "text_model.")):
            for name, delta in deltas.items():
                module.get_submodule(name.removeprefix(prefix)).weight.data += weight * delta
    return pipe
