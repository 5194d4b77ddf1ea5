"""What the LoRA goldens share: module shapes, seeded factors, and a file under construction with its exact deltas."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

import layouts
from tiny import Model

Tensors = layouts.Tensors
Shapes = dict[str, tuple[int, int]]  # module path -> (out, in)


def _linears(tensors: Tensors) -> Shapes:
    return {name.removesuffix(".weight"): tuple(t.shape) for name, t in tensors.items() if t.ndim == 2}


@dataclass
class Base:
    """The linear modules of a model under every name that LoRA files know them by."""

    diffusers: Shapes  # transformer
    bfl: Shapes  # transformer
    clip: Shapes  # with the text_model prefix of published files

    @staticmethod
    def of(model: Model) -> "Base":
        transformer = model.transformer.state_dict()
        clip = {n: s for n, s in _linears(model.text_encoder.state_dict()).items() if ".layers." in n}
        bfl = layouts.transformer_to_bfl(transformer)
        return Base(_linears(transformer), _linears(bfl), {f"text_model.{n}": s for n, s in clip.items()})

    def to_diffusers(self, deltas: Tensors) -> Tensors:
        """Deltas by BFL path as deltas by diffusers path: fused rows are split, the final adaLN's halves swapped."""
        whole = {f"{n}.weight": deltas.get(n, torch.zeros(shape)) for n, shape in self.bfl.items()}
        touched = {f"{n}.weight": torch.full(shape, float(n in deltas)) for n, shape in self.bfl.items()}
        changed = {n for n, t in layouts.transformer_from_bfl(touched).items() if t.any()}
        return {n.removesuffix(".weight"): t for n, t in layouts.transformer_from_bfl(whole).items() if n in changed}


@dataclass
class Lora:
    """One LoRA file: its tensors, and what each module's weight changes by, computed from the tensors as stored."""

    name: str
    base: Base
    seed: int
    strength: float  # a delta's rms is this over the root of its columns; the base's is 1 over it
    dtype: torch.dtype = torch.float32
    tensors: Tensors = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    transformer: Tensors = field(default_factory=dict)  # diffusers path -> delta
    bfl: Tensors = field(default_factory=dict)  # BFL path -> delta, moved to `transformer` by finish()
    clip: Tensors = field(default_factory=dict)  # text_model path -> delta

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def random(self, *shape: int, rms: float = 1.0) -> torch.Tensor:
        """Random values as the file will hold them."""
        return (torch.randn(shape, generator=self.generator) * rms).to(self.dtype)

    def rms(self, columns: int) -> float:
        return self.strength / math.sqrt(columns)

    def pair(self, shape: tuple[int, int], rank: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(down [rank, in], up [out, rank], delta [out, in] = scale * up @ down)."""
        down = self.random(rank, shape[1], rms=shape[1] ** -0.5)
        up = self.random(shape[0], rank, rms=self.strength / (math.sqrt(rank) * scale))
        return down, up, (scale * up.double() @ down.double()).float()

    def finish(self) -> "Lora":
        # A fused delta need not reach all its rows: XLabs leaves those of the MLP alone.
        moved = {module: delta for module, delta in self.base.to_diffusers(self.bfl).items() if delta.any()}
        assert not moved.keys() & self.transformer.keys()
        self.transformer |= moved
        self.bfl = {}
        for shapes, deltas in ((self.base.diffusers, self.transformer), (self.base.clip, self.clip)):
            assert all(tuple(delta.shape) == shapes[module] for module, delta in deltas.items()), self.name
        return self

    def save(self, path: Path) -> None:
        write_lora(path, self.tensors, self.metadata)


def write_lora(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """A safetensors file; the library orders metadata anew in each process, so the header is written again, sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({n: t.detach().clone().contiguous() for n, t in sorted(tensors.items())}, metadata={"format": "pt", **metadata})
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[length:])


def canonical(lora: Lora) -> dict[str, Tensors]:
    """Deltas by part and canonical module: diffusers paths, norm_out.linear in its two halves."""
    transformer = dict(lora.transformer)
    if "norm_out.linear" in transformer:
        scale, shift = transformer.pop("norm_out.linear").chunk(2)
        transformer |= {"norm_out.linear_scale": scale, "norm_out.linear_shift": shift}
    return {"transformer": transformer, "clip": lora.clip}


def fingerprint(delta: torch.Tensor) -> dict:
    """Numbers that tell a delta from any other: rms, first four values, and sum of delta[i, j] cos(i) sin(1 + j)."""
    delta = delta.double()
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in delta.shape)
    probe = (rows.cos() @ delta @ (1 + columns).sin()).item()
    return {"rms": delta.pow(2).mean().sqrt().item(), "first": delta.flatten()[:4].tolist(), "probe": probe}
