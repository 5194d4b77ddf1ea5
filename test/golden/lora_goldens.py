"""LoRA files of every dialect for tiny-dev and what the model gives with them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

import layouts
import lora_dialects as dialects
import lora_flaws
import lora_reference as reference
import stages
from lora import Base, Lora, Tensors, canonical, fingerprint, write_lora
from tiny import Model, write_json, write_tensors

WRITERS = [
    dialects.peft,
    dialects.peft_alpha_keys,
    dialects.peft_metadata,
    dialects.peft_rslora,
    dialects.peft_text_encoder,
    dialects.shallow,
    dialects.ai_toolkit,
    dialects.kohya,
    dialects.kohya_split,
    dialects.comfy,
    dialects.comfy_ab,
    dialects.bfl,
    dialects.xlabs,
    dialects.onetrainer,
    dialects.lycoris,
    dialects.loha,
    dialects.lokr,
]
COMBINED = [
    [("peft", -0.6)],
    [("peft", 0.7), ("kohya", 0.5)],
    [("peft_text_encoder", 0.6), ("kohya", -0.4)],
    [("loha", 0.5), ("lokr", 0.4), ("xlabs", 0.3)],
]
PIPELINE = [("peft_text_encoder", 0.9)]
NARROW = ("shallow", 1.0)  # with each of the checkpoints under variants/
TOLERANCE = 1e-5
CHANGE = (0.05, 0.5)  # what a case may change the output by, relative to its norm

Styles = list[tuple[str, float]]


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def _file(name: str) -> str:
    return f"{name}.safetensors"


def outputs(model: Model, pipe: FluxPipeline) -> Tensors:
    """Transformer output for the inputs of case 0 of the model, and CLIP's pooled outputs."""
    inputs, tokens = stages.transformer_inputs(model, 0), stages.token_ids(model)
    velocity = stages.run_transformer(pipe.transformer, inputs, stages.CASES[0], model.spec.tokens)
    ids = {index: torch.tensor([tokens[index]["clip"]]) for index in stages.ENCODED}
    return {"output": velocity} | {f"pooled/{index}": pipe.text_encoder(row).pooler_output for index, row in ids.items()}


class Goldens:
    """Files, cases and tensors as they are made; `folder` is where the files lie."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.loras: dict[str, Lora] = {}
        self.loaded: dict[str, reference.Loaded] = {}
        self.files: dict[str, dict] = {}
        self.cases: list[dict] = []
        self.tensors: Tensors = {}
        self.plain = outputs(model, reference.fresh(model))

    def add_file(self, lora: Lora) -> None:
        """Writes a file and records its deltas and what diffusers makes of it."""
        path = self.folder / _file(lora.name)
        lora.save(path)
        loaded = reference.inspect_file(self.model, path)
        self.loras[lora.name], self.loaded[lora.name] = lora, loaded
        lost: list[str] = []
        for part, wanted in (("transformer", lora.transformer), ("clip", lora.clip)):
            have = loaded.deltas[part]
            assert have.keys() <= wanted.keys(), f"{lora.name}: diffusers adds {have.keys() - wanted.keys()}"
            lost += [module for module in wanted if module not in have]
            for module, delta in have.items():
                assert _distance(delta, wanted[module]) < TOLERANCE, f"{lora.name}: {module} differs in diffusers"
        known = len(lora.transformer) + len(lora.clip)
        kind = "all" if not lost else "none" if len(lost) == known else "some"
        found = {"loads": kind} | ({"error": loaded.error} if loaded.error else {}) | ({"lost": lost} if kind == "some" else {})
        prints = {part: {m: fingerprint(d) for m, d in deltas.items()} for part, deltas in canonical(lora).items()}
        self.files[_file(lora.name)] = {"diffusers": found, **prints}

    def check_onetrainer(self) -> None:
        """diffusers refuses the whole file, as it knows attention, the outer modules and CLIP only; those must agree."""
        lora = self.loras["onetrainer"]
        known = {m: d for m, d in lora.transformer.items() if "blocks." not in m or ".attn." in m}
        keys = {f"lora_transformer_{m.replace('.', '_')}" for m in known}
        tensors = {n: t for n, t in lora.tensors.items() if n.startswith("lora_te1_") or n.split(".")[0] in keys}
        with TemporaryDirectory() as folder:
            write_lora(Path(folder) / "known.safetensors", tensors, {})
            loaded = reference.inspect_file(self.model, Path(folder) / "known.safetensors")
        for part, wanted in (("transformer", known), ("clip", lora.clip)):
            assert loaded.deltas[part].keys() == wanted.keys(), loaded.error
            assert all(_distance(loaded.deltas[part][m], d) < TOLERANCE for m, d in wanted.items())

    def add_case(self, styles: Styles) -> None:
        """Outputs with these files at these weights. diffusers' own where it loses nothing, checked against the deltas."""
        name = "+".join(f"{n}@{w:g}" for n, w in styles)
        explicit = outputs(self.model, reference.add(self.model, [(self.loras[n], w) for n, w in styles]))
        readable = [(self.folder / _file(n), w) for n, w in styles if not self.loaded[n].error]
        loaded = outputs(self.model, reference.load(self.model, readable))
        kept = outputs(self.model, reference.add(self.model, [(self.kept(n), w) for n, w in styles]))
        sources = {}
        for key, value in explicit.items():
            part = "transformer" if key == "output" else "clip"
            if not any(getattr(self.loras[n], part) for n, _ in styles):
                continue
            assert _distance(loaded[key], kept[key]) < TOLERANCE, f"{name}: {key} differs in diffusers"
            change = ((value - self.plain[key]).norm() / self.plain[key].norm()).item()
            assert CHANGE[0] < change < CHANGE[1], f"{name}: {key} changes by {change}"
            whole = all(getattr(self.loras[n], part).keys() == self.loaded[n].deltas[part].keys() for n, _ in styles)
            self.tensors[f"{name}/{key}"] = loaded[key] if whole else value
            sources[f"{name}/{key}"] = "diffusers" if whole else "explicit"
        self.cases.append({"name": name, "files": [{"file": _file(n), "weight": w} for n, w in styles], "tensors": sources})

    def kept(self, name: str) -> Lora:
        """The part of a file that diffusers loads."""
        lora, deltas = self.loras[name], self.loaded[name].deltas
        part = Lora(name, lora.base, 0, 0)
        part.transformer = {m: d for m, d in lora.transformer.items() if m in deltas["transformer"]}
        part.clip = {m: d for m, d in lora.clip.items() if m in deltas["clip"]}
        return part

    def add_narrow(self, variants: Path) -> None:
        """One file on the narrow checkpoints: their weights widened to fp32, plus the delta, nothing rounded."""
        name, weight = NARROW
        inputs = stages.transformer_inputs(self.model, 0)
        config = FluxTransformer2DModel.load_config(variants / "transformer_config.json")
        for path in sorted(variants.glob("*.safetensors")):
            stored = load_file(path)
            scales = {n.removesuffix(".scale_weight"): t for n, t in stored.items() if n.endswith(".scale_weight")}
            weights = {n: t.float() for n, t in stored.items() if n.endswith((".weight", ".bias", ".scale"))}
            wide = {n: t * scales.get(n.removesuffix(".weight"), 1.0) for n, t in weights.items()}
            state = layouts.transformer_from_bfl({n.removeprefix("model.diffusion_model."): t for n, t in wide.items()})
            transformer = FluxTransformer2DModel.from_config(config).eval()
            transformer.load_state_dict({n: t + weight * self.delta(name, n) for n, t in state.items()})
            key = f"{path.stem}:{name}@{weight:g}"
            self.tensors[f"{key}/output"] = stages.run_transformer(transformer, inputs, stages.CASES[0], self.model.spec.tokens)
            case = {"name": key, "base": path.name, "files": [{"file": _file(name), "weight": weight}]}
            self.cases.append({**case, "tensors": {f"{key}/output": "explicit"}})

    def delta(self, name: str, tensor: str) -> torch.Tensor | float:
        return self.loras[name].transformer.get(tensor.removesuffix(".weight"), 0.0)

    def pipeline(self) -> dict:
        """The model's txt2img request with styles: FluxPipeline with the adapters loaded."""
        height, width = self.model.spec.pixels
        request = {"prompt": stages.PROMPTS[1], "width": width, "height": height, "guidance": 3.5}
        request |= {"seed": stages.PIPELINE_SEED, "steps": 4}

        def run(pipe: FluxPipeline) -> Tensors:
            out: Tensors = {}

            def step(_pipe, index, _timestep, values):
                out[f"txt2img/latents.{index}"] = values["latents"]
                return {}

            final = pipe(
                prompt=request["prompt"], height=height, width=width, guidance_scale=request["guidance"], output_type="latent",
                num_inference_steps=request["steps"], max_sequence_length=self.model.spec.max_sequence_length,
                generator=torch.Generator().manual_seed(request["seed"]), callback_on_step_end=step,
            ).images  # fmt: skip
            return out | {"txt2img/image_u8": stages.pictures(pipe, final, height, width)["image_u8"]}

        loaded = run(reference.load(self.model, [(self.folder / _file(n), w) for n, w in PIPELINE]))
        explicit = run(reference.add(self.model, [(self.loras[n], w) for n, w in PIPELINE]))
        for key, value in loaded.items():
            if value.is_floating_point():
                assert _distance(value, explicit[key]) < TOLERANCE, f"{key} differs in diffusers"
        self.tensors |= loaded
        return {**request, "files": [{"file": _file(n), "weight": w} for n, w in PIPELINE]}


def goldens(model: Model, folder: Path, variants: Path) -> None:
    """Writes the LoRA files, goldens.json and goldens.safetensors to `folder`."""
    base = Base.of(model)
    made = Goldens(model, folder)
    for write in WRITERS:
        made.add_file(write(base))
    for name in list(made.loras):
        made.add_case([(name, 1.0)])
        made.add_case([(name, 0.8)])
    made.check_onetrainer()
    for lora in lora_flaws.harmless(base):
        made.add_file(lora)
        made.add_case([(lora.name, 1.0)])
    flaws = lora_flaws.bad(base)
    for name, flaw in flaws.items():
        write_lora(folder / "bad" / _file(name), flaw.tensors, {})
    bad = {f"bad/{_file(name)}": {"keys": flaw.keys, "problem": flaw.problem} for name, flaw in flaws.items()}
    for styles in COMBINED:
        made.add_case(styles)
    made.add_narrow(variants)
    request = made.pipeline()
    write_tensors(folder / "goldens.safetensors", made.tensors)
    write_json(folder / "goldens.json", {"cases": made.cases, "txt2img": request, "files": made.files, "bad": bad}, compact=True)
