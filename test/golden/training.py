"""LoRA training by PyTorch and PEFT on tiny-dev and on its fp8 variant: losses, gradients, weights after AdamW."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import layouts
import stages
from tiny import write_json, write_tensors
from training_operators import operators

RANK, ALPHA = 4, 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
ALL = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"]
OUTER = "proj_out"  # the last layer of the model, not of a block: never a target
SAMPLES = [
    {"rows": 4, "columns": 7, "sigma": 0.8125},
    {"rows": 4, "columns": 7, "sigma": 0.2841},
    {"rows": 5, "columns": 4, "sigma": 0.5377},
    {"rows": 5, "columns": 4, "sigma": 0.9463},
]
BATCHES = [(0, 1), (2, 3)]  # of one optimizer step
TEXT, TEXT_WIDTH, POOLED, CHANNELS = 24, 40, 24, 16
STEPS, LEARNING_RATE = 10, 1e-3
RUNS = ("random_up", "zero_up")
SEED = 320  # leaves no gradient so near 0 that AdamW makes a visible step of its rounding
UP_RMS = 0.05
ACCURACY = 1e-5  # what fp32 may differ from float64 by, relative to the norm of a tensor

Tensors = layouts.Tensors


@dataclass(frozen=True)
class Case:
    """One base and set of targets; paths are relative to the fixtures.

    `max_norm` clips some of the steps and not others: AdamW would hide a factor that all of them share.
    """

    name: str
    checkpoint: str
    config: str
    targets: list[str]
    max_norm: float
    runs: tuple[str, ...] = RUNS


DEV = ("tiny-dev/transformer.safetensors", "tiny-dev/transformer_config.json")
FP8 = ("tiny-dev/variants/fp8.safetensors", "tiny-dev/variants/transformer_config.json")
CASES = [
    Case("fp32/attention", *DEV, ATTENTION, 0.51),
    Case("fp32/all", *DEV, ALL, 0.925, RUNS[:1]),
    Case("fp8/attention", *FP8, ATTENTION, 0.285),
]


def samples() -> list[Tensors]:
    """Latents, noise, text and pooled text of every sample, rms 1."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(sample: dict) -> Tensors:
        tokens = sample["rows"] * sample["columns"]
        shapes = {"latents": (tokens, CHANNELS), "noise": (tokens, CHANNELS), "text": (TEXT, TEXT_WIDTH), "pooled": (POOLED,)}
        return {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}

    return [draw(sample) for sample in SAMPLES]


class Trainee:
    """A frozen base with a PEFT adapter; every computation in `dtype`."""

    def __init__(self, case: Case, fixtures: Path, inputs: list[Tensors], dtype: torch.dtype = torch.float32) -> None:
        stored = {name: t.float() for name, t in load_file(fixtures / case.checkpoint).items()}
        config = FluxTransformer2DModel.load_config(fixtures / case.config)
        self.model = FluxTransformer2DModel.from_config(config).eval().requires_grad_(False)
        self.model.load_state_dict(layouts.transformer_from_bfl(stored))
        # PEFT's default start, but for `up`, which it leaves at zero.
        self.model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=case.targets, exclude_modules=OUTER))
        self.model.type(dtype)
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraLayer)}
        factors = {"down": "lora_A", "up": "lora_B"}
        pairs = {f"{n}.{k}": getattr(m, a)["default"].weight for n, m in layers.items() for k, a in factors.items()}
        self.factors: dict[str, torch.nn.Parameter] = dict(sorted(pairs.items()))
        assert all(n.startswith(("transformer_blocks.", "single_transformer_blocks.")) for n in self.factors)
        assert sum(p.requires_grad for p in self.model.parameters()) == len(self.factors)
        self.inputs = [{name: t.to(dtype) for name, t in sample.items()} for sample in inputs]

    def start(self, zero_up: bool) -> None:
        """The start of every run: down as PEFT draws it (Kaiming uniform, a = sqrt 5), up small or zero."""
        generator = torch.Generator().manual_seed(SEED + 1)
        for name, factor in self.factors.items():
            value = torch.empty(factor.shape)
            if name.endswith(".down"):
                torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
            else:
                value = UP_RMS * torch.randn(factor.shape, generator=generator) * (not zero_up)
            factor.data.copy_(value)
            factor.grad = None

    def losses(self, batch: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity [n, L, channels] and mean squared error [n] of samples that have one grid."""
        first = SAMPLES[batch[0]]
        latents, noise, text, pooled = (
            torch.cat([self.inputs[i][name] for i in batch]) for name in ("latents", "noise", "text", "pooled")
        )
        sigma = torch.tensor([SAMPLES[i]["sigma"] for i in batch]).to(latents.dtype)
        mix = sigma[:, None, None]
        velocity = self.model(
            hidden_states=mix * noise + (1 - mix) * latents,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            guidance=torch.ones_like(sigma),
            txt_ids=torch.zeros(TEXT, 3),
            img_ids=stages.image_ids(first["rows"], first["columns"]),
            return_dict=False,
        )[0]
        return velocity, (velocity - (noise - latents)).square().mean(dim=(1, 2))

    def accumulate(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Adds the gradients of the mean over all samples, batch by batch; returns each sample's velocity and loss."""
        results = []
        for batch in BATCHES:
            velocity, losses = self.losses(batch)
            (losses.mean() / len(BATCHES)).backward()
            results.append((velocity.detach().split(1), losses.detach()))
        velocities, losses = zip(*results, strict=True)
        return [v for batch in velocities for v in batch], torch.cat(losses)

    def gradients(self) -> Tensors:
        return {name: factor.grad.clone() for name, factor in self.factors.items()}

    def values(self) -> Tensors:
        return {name: factor.detach().clone() for name, factor in self.factors.items()}

    def blocks(self, sample: int) -> tuple[Tensors, Tensors]:
        """What enters every block and leaves the last one, for one sample, and the loss's gradient by each."""
        kept: Tensors = {}
        parts: dict[str, list[torch.Tensor]] = {}

        def keep(key: str, text: torch.Tensor, image: torch.Tensor) -> None:
            for tensor in (text, image):
                tensor.retain_grad()
            parts[key] = [text, image]

        def enter(key: str):
            def hook(_module, args, kwargs):
                streams = {n: kwargs[n] for n in ("encoder_hidden_states", "hidden_states")}
                # Nothing before the first block is trained, so its input starts the graph.
                streams = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in streams.items()}
                keep(key, *streams.values())
                return args, {**kwargs, **streams}

            return hook

        doubles, singles = self.model.transformer_blocks, self.model.single_transformer_blocks
        blocks = {f"{kind}.{i}": b for kind, bs in (("double", doubles), ("single", singles)) for i, b in enumerate(bs)}
        handles = [block.register_forward_pre_hook(enter(key), with_kwargs=True) for key, block in blocks.items()]
        handles.append(singles[-1].register_forward_hook(lambda _module, _inputs, output: keep("end", *output)))
        _, losses = self.losses((sample,))
        losses.sum().backward()
        for handle in handles:
            handle.remove()
        grads: Tensors = {}
        for key, (text, image) in parts.items():
            slopes = [torch.zeros_like(t) if t.grad is None else t.grad for t in (text, image)]
            if key.startswith("double"):
                kept |= {f"{key}.txt": text, f"{key}.img": image}
                grads |= {f"{key}.txt": slopes[0], f"{key}.img": slopes[1]}
            else:
                kept[key], grads[key] = torch.cat([text, image], dim=1), torch.cat(slopes, dim=1)
        return kept, grads


def run(trainee: Trainee, zero_up: bool, max_norm: float) -> tuple[Tensors, dict]:
    """STEPS optimizer steps, each of them over all samples."""
    trainee.start(zero_up)
    factors = list(trainee.factors.values())
    optimizer = torch.optim.AdamW(factors, lr=LEARNING_RATE)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(trainee.accumulate()[1].mean().item())
        norms.append(torch.nn.utils.clip_grad_norm_(factors, max_norm).item())
        optimizer.step()
    return trainee.values(), {"losses": losses, "grad_norms": norms}


def train(case: Case, trainee: Trainee) -> tuple[Tensors, dict]:
    """All values of one case."""
    out: Tensors = {}

    def put(folder: str, tensors: Tensors) -> None:
        out.update({f"{folder}/{name}": t for name, t in tensors.items()})

    trainee.start(zero_up=False)
    put("start", trainee.values())
    kept, grads = trainee.blocks(0)
    put("sample", kept)
    put("sample/grad", grads | trainee.gradients())
    trainee.start(zero_up=False)
    velocities, losses = trainee.accumulate()
    put("velocity", {str(i): v for i, v in enumerate(velocities)})
    gradients = trainee.gradients()
    put("grad", gradients)
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    scalars = {"losses": losses.tolist(), "grad_norm": norm, "runs": {}}
    for name in case.runs:
        final, scalars["runs"][name] = run(trainee, name == "zero_up", case.max_norm)
        put(f"final/{name}", final)
    return out, scalars


def check(values: Tensors, exact: Tensors) -> None:
    """Asserts that values of fp32 agree with those of float64."""
    for name, value in exact.items():
        error = ((values[name] - value).norm() / value.norm()).item()
        assert error < ACCURACY, f"{name} differs from float64 by {error}"


def goldens(fixtures: Path, folder: Path) -> None:
    """Writes training.safetensors and training.json to `folder`, from the checkpoints under `fixtures`."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = samples()
        tensors, described = operators()
        tensors |= {f"samples/{i}/{name}": t for i, sample in enumerate(inputs) for name, t in sample.items()}
        cases = []
        for case in CASES:
            trainee = Trainee(case, fixtures, inputs)
            values, scalars = train(case, trainee)
            check(values, train(case, Trainee(case, fixtures, inputs, torch.float64))[0])
            tensors |= {f"{case.name}/{name}": t for name, t in values.items()}
            modules = sorted({n.rsplit(".", 1)[0] for n in trainee.factors})
            entry = {"name": case.name, "checkpoint": case.checkpoint, "modules": modules, "max_grad_norm": case.max_norm}
            cases.append(entry | scalars)
        settings = {"rank": RANK, "alpha": ALPHA, "steps": STEPS, "learning_rate": LEARNING_RATE}
        settings |= {"batches": BATCHES, "guidance": 1.0}
        write_tensors(folder / "training.safetensors", tensors)
        document = {"settings": settings, "samples": SAMPLES, "cases": cases, "operators": described}
        write_json(folder / "training.json", document, compact=True)
