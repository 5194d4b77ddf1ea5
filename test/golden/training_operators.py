"""Vector-Jacobian products of single operators, by torch's autograd, in the shapes that the engine's operators take."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb

import layouts

HEADS = 3
EPSILON = 1e-6  # of both norms
SEED = 400


@dataclass(frozen=True)
class Operator:
    """Inputs by name as their shapes; `fixed` inputs are given but have no gradient."""

    name: str
    apply: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    inputs: dict[str, tuple[int, ...]]
    attributes: dict = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    spread: float = 1.0


def _heads(x: torch.Tensor) -> torch.Tensor:
    """[T, heads * width] -> [1, heads, T, width]."""
    return x.unflatten(1, (HEADS, -1)).transpose(0, 1)[None]


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """Inverse of `_heads`."""
    return x[0].transpose(0, 1).flatten(1)


def _layer_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, bias, EPSILON)


def _rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], scale, EPSILON)


def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    tables = [t.repeat_interleave(2, dim=1) for t in (cos, sin)]
    return _tokens(apply_rotary_emb(_heads(x), tables))


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _tokens(F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v)))


OPERATORS = [
    Operator("linear", F.linear, {"x": (5, 7), "weight": (6, 7), "bias": (6,)}),
    Operator("layer_norm", _layer_norm, {"x": (5, 7), "scale": (7,), "bias": (7,)}, {"epsilon": EPSILON}),
    Operator("rms_norm", _rms_norm, {"x": (5, 7), "scale": (7,)}, {"epsilon": EPSILON}),
    Operator("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), {"x": (5, 7)}, spread=2.0),
    Operator("silu", F.silu, {"x": (5, 7)}, spread=2.0),
    Operator("rotary", _rotary, {"x": (11, 60), "cos": (11, 10), "sin": (11, 10)}, {"heads": HEADS}, fixed=("cos", "sin")),
    Operator("attention", _attention, {"q": (11, 60), "k": (11, 60), "v": (11, 60)}, {"heads": HEADS}),
    Operator("softmax", lambda x: F.softmax(x, dim=-1), {"x": (5, 7)}, spread=2.0),
    Operator("concat_rows", lambda a, b: torch.cat([a, b]), {"a": (3, 7), "b": (4, 7)}, {"axis": 0}),
    Operator("concat_columns", lambda a, b: torch.cat([a, b], dim=1), {"a": (5, 3), "b": (5, 4)}, {"axis": 1}),
    Operator("split", lambda x: x.split([2, 4, 1], dim=1), {"x": (5, 7)}, {"axis": 1, "sizes": [2, 4, 1]}),
    Operator("slice", lambda x: x[2:6], {"x": (9, 7)}, {"axis": 0, "begin": 2, "end": 6}),
    Operator("mul", torch.mul, {"a": (5, 7), "b": (5, 7)}),
    Operator("mul_row", torch.mul, {"a": (5, 7), "b": (7,)}),
    Operator("add_row", torch.add, {"a": (5, 7), "b": (7,)}),
    Operator("mse", F.mse_loss, {"a": (5, 7), "b": (5, 7)}),
]


def operators() -> tuple[layouts.Tensors, list[dict]]:
    """Inputs, outputs, upstream gradients and gradients of all operators, and their descriptions."""
    out: layouts.Tensors = {}
    described = []
    generator = torch.Generator().manual_seed(SEED)
    for operator in OPERATORS:
        inputs = {n: operator.spread * torch.randn(shape, generator=generator) for n, shape in operator.inputs.items()}
        if operator.name == "rotary":
            inputs["cos"], inputs["sin"] = inputs["cos"].cos(), inputs["cos"].sin()
        wanted = [n for n in inputs if n not in operator.fixed]
        for name in wanted:
            inputs[name].requires_grad_()
        result = operator.apply(*inputs.values())
        results = result if isinstance(result, tuple) else (result,)
        upstream = [torch.randn(r.shape, generator=generator) for r in results]
        grads = torch.autograd.grad(results, list(inputs.values())[: len(wanted)], upstream)
        key = f"operators/{operator.name}"
        out |= {f"{key}/{name}": value for name, value in inputs.items()}
        out |= {f"{key}/output.{i}": value for i, value in enumerate(results)}
        out |= {f"{key}/upstream.{i}": value for i, value in enumerate(upstream)}
        out |= {f"{key}/grad/{name}": value for name, value in zip(wanted, grads, strict=True)}
        entry = {"name": operator.name, "inputs": list(inputs), "outputs": len(results), "gradients": wanted}
        described.append({**entry, "attributes": operator.attributes})
    return out, described
