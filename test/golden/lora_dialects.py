"""One writer per dialect of FLUX LoRA files. Each returns a Lora whose deltas follow from the dialect's own rule."""

import json
import re

import torch
from peft import LoraConfig
from peft.tuners.loha.layer import make_weight as make_hadamard
from peft.tuners.lokr.layer import make_kron

from lora import Base, Lora, Shapes, Tensors


def blocks(shapes: Shapes, *indices: int) -> list[str]:
    """Modules of the blocks with these indices, of either layout."""
    return [n for n in shapes if n.split(".")[0].endswith("blocks") and int(n.split(".")[1]) in indices]


def top(shapes: Shapes) -> list[str]:
    """Modules outside the blocks."""
    return [n for n in shapes if not n.split(".")[0].endswith("blocks")]


def _flat(path: str) -> str:
    return path.replace(".", "_")


def peft(base: Base) -> Lora:
    """diffusers / PEFT without alphas, every transformer module, ranks 2 to 4: scale 1 whatever the rank."""
    lora = Lora("peft", base, 301, 0.16)
    for index, (module, shape) in enumerate(base.diffusers.items()):
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, shape, 2 + index % 3)
    return lora.finish()


def _add_peft(lora: Lora, key: str, deltas: Tensors, module: str, shape: tuple[int, int], rank: int, scale: float = 1.0) -> None:
    a, b, deltas[module] = lora.pair(shape, rank, scale)
    lora.tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}


def peft_alpha_keys(base: Base) -> Lora:
    """PEFT keys with an alpha tensor for each module."""
    lora = Lora("peft_alpha_keys", base, 311, 0.2)
    for index, module in enumerate(blocks(base.diffusers, 1) + top(base.diffusers)):
        rank, alpha = 2 + index % 2, (1.0, 4.0, 16.0)[index % 3]
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], rank, alpha / rank)
        lora.tensors[f"transformer.{module}.alpha"] = torch.tensor(alpha)
    return lora.finish()


def peft_text_encoder(base: Base) -> Lora:
    """What diffusers' training scripts save with a text encoder: both parts, attention of the first blocks only."""
    lora = Lora("peft_text_encoder", base, 312, 0.36)
    for module in blocks(base.diffusers, 0):
        if ".attn." in module:
            _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], 4)
    for module, shape in base.clip.items():
        _add_peft(lora, f"text_encoder.{module}", lora.clip, module, shape, 4)
    return lora.finish()


def _adapter_metadata(**parts: LoraConfig) -> dict[str, str]:
    """The header entry that FluxPipeline.save_lora_weights writes for these adapters."""
    values = {f"{part}.{key}": value for part, config in parts.items() for key, value in config.to_dict().items()}
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return {"lora_adapter_metadata": json.dumps(values, indent=2, sort_keys=True)}


def peft_metadata(base: Base) -> Lora:
    """Ranks and alphas in the header. Patterns are regular expressions for the end of a path; the first that matches counts.

    The text encoder's keys have no text_model level, as transformers 5 names them.
    """
    lora = Lora("peft_metadata", base, 313, 0.2)
    ranks = {"attn.to_q": 3, "^proj_out": 2, r"single_transformer_blocks\.\d+\.proj_mlp": 5}
    alphas = {"attn.to_q": 6, "^proj_out": 1, r"^transformer_blocks\.1\.ff\.net\.(0\.proj|2)": 2, "x_embedder": 8, "ff.net.2": 16}

    def lookup(patterns: dict[str, int], module: str, default: int) -> int:
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    modules = blocks(base.diffusers, 1, 2) + top(base.diffusers)
    for module in modules:
        rank, alpha = lookup(ranks, module, 4), lookup(alphas, module, 3)
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], rank, alpha / rank)
    for module, shape in base.clip.items():
        rank, alpha = (3, 9) if module.endswith("fc1") else (2, 5)
        _add_peft(lora, f"text_encoder.{module.removeprefix('text_model.')}", lora.clip, module, shape, rank, alpha / rank)
    clip = sorted({module.split(".")[-1] for module in base.clip})
    lora.metadata = _adapter_metadata(
        transformer=LoraConfig(r=4, lora_alpha=3, rank_pattern=ranks, alpha_pattern=alphas, target_modules=modules),
        text_encoder=LoraConfig(r=2, lora_alpha=5, rank_pattern={"mlp.fc1": 3}, alpha_pattern={"mlp.fc1": 9}, target_modules=clip),
    )
    return lora.finish()


def peft_rslora(base: Base) -> Lora:
    """use_rslora in the header: alpha / sqrt(rank)."""
    lora = Lora("peft_rslora", base, 314, 0.3)
    modules = [n for n in blocks(base.diffusers, 0) if ".attn." in n]
    for module in modules:
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], 4, 6 / 2)
    lora.metadata = _adapter_metadata(transformer=LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=modules))
    return lora.finish()


def ai_toolkit(base: Base) -> Lora:
    """ai-toolkit: PEFT keys in bf16, block linears only, and a header of its own that says nothing about scale."""
    lora = Lora("ai_toolkit", base, 315, 0.2, torch.bfloat16)
    for module in blocks(base.diffusers, 0, 1):
        if "norm" not in module:
            _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], 3)
    lora.metadata = {"name": "style", "software": json.dumps({"name": "ai-toolkit"}), "ss_base_model_version": "flux1"}
    return lora.finish()


def shallow(base: Base) -> Lora:
    """PEFT keys of the first double and single block and of everything outside, which the files under variants/ have too."""
    lora = Lora("shallow", base, 316, 0.16)
    for module in blocks(base.diffusers, 0) + top(base.diffusers):
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], 2)
    return lora.finish()


def kohya(base: Base) -> Lora:
    """sd-scripts: BFL paths, fused projections, alpha / rank; CLIP too. No alpha, or 0, means alpha = rank."""
    lora = Lora("kohya", base, 302, 0.16, torch.float16)
    odd = {"img_in": 0.0, "txt_in": None}  # sd-scripts reads both as the rank
    parts = [("lora_unet_", base.bfl, lora.bfl), ("lora_te1_", base.clip, lora.clip)]
    for prefix, shapes, deltas in parts:
        for index, (module, shape) in enumerate(shapes.items()):
            rank = 2 + index % 4
            alpha = odd.get(module, (1.0, 4.0, 8.0)[index % 3])
            down, up, deltas[module] = lora.pair(shape, rank, (alpha or rank) / rank)
            lora.tensors |= {f"{prefix}{_flat(module)}.lora_down.weight": down, f"{prefix}{_flat(module)}.lora_up.weight": up}
            if alpha is not None:
                lora.tensors[f"{prefix}{_flat(module)}.alpha"] = torch.tensor(alpha, dtype=lora.dtype)
    lora.metadata = {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"}
    lora.metadata |= {"ss_network_dim": "4", "ss_network_alpha": "4.0"}  # one pair for all; the modules' own count
    return lora.finish()


def kohya_split(base: Base) -> Lora:
    """sd-scripts with split_qkv: one low-rank pair per projection, stored as a block-diagonal up of the summed rank."""
    lora = Lora("kohya_split", base, 303, 0.3)
    hidden = base.bfl["img_in"][0]
    for module, (rows, columns) in base.bfl.items():
        if not module.endswith(("qkv", "linear1")):
            continue
        splits = [hidden] * 3 if rows == 3 * hidden else [hidden, hidden, hidden, rows - 3 * hidden]
        rank, alpha = 2, 3.0  # rank of each projection; a reader sees rank * len(splits), and alpha counts against that
        pairs = [lora.pair((size, columns), rank, alpha / (rank * len(splits))) for size in splits]
        key = f"lora_unet_{_flat(module)}"
        lora.tensors[f"{key}.lora_down.weight"] = torch.cat([down for down, _, _ in pairs])
        lora.tensors[f"{key}.lora_up.weight"] = torch.block_diag(*(up for _, up, _ in pairs))
        lora.tensors[f"{key}.alpha"] = torch.tensor(alpha)
        lora.bfl[module] = torch.cat([delta for _, _, delta in pairs])
    return lora.finish()


def comfy(base: Base) -> Lora:
    """ComfyUI: diffusion_model.<BFL path>, with and without alpha; CLIP under text_encoders.clip_l.transformer."""
    lora = Lora("comfy", base, 304, 0.2, torch.bfloat16)
    modules = blocks(base.bfl, 0) + top(base.bfl)
    parts = [("diffusion_model.", {n: base.bfl[n] for n in modules}, lora.bfl), ("text_encoders.clip_l.transformer.", base.clip, lora.clip)]
    for prefix, shapes, deltas in parts:
        for index, (module, shape) in enumerate(shapes.items()):
            rank = 2 + index % 3
            alpha = (None, 1.5, 8.0)[index % 3]
            down, up, deltas[module] = lora.pair(shape, rank, (alpha or rank) / rank)
            lora.tensors |= {f"{prefix}{module}.lora_down.weight": down, f"{prefix}{module}.lora_up.weight": up}
            if alpha is not None:
                lora.tensors[f"{prefix}{module}.alpha"] = torch.tensor(alpha, dtype=lora.dtype)
    return lora.finish()


def xlabs(base: Base) -> Lora:
    """XLabs: attention only, lora1 for the image and lora2 for the text stream; in single blocks rows q, k, v of linear1."""
    lora = Lora("xlabs", base, 305, 0.25)
    hidden = base.bfl["img_in"][0]
    names = {"img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "linear1": "qkv_lora"}
    names |= {"img_attn.proj": "proj_lora1", "txt_attn.proj": "proj_lora2", "linear2": "proj_lora"}
    for module, (rows, columns) in base.bfl.items():
        block, _, part = module.partition(".")[2].partition(".")
        if part not in names:
            continue
        width = 3 * hidden if part == "linear1" else rows
        down, up, delta = lora.pair((width, columns), 4)
        key = f"{module.split('.')[0]}.{block}.processor.{names[part]}"
        lora.tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        lora.bfl[module] = torch.cat([delta, torch.zeros(rows - width, columns)])
    return lora.finish()


def comfy_ab(base: Base) -> Lora:
    """ComfyUI's paths with lora_A and lora_B, no alpha."""
    lora = Lora("comfy_ab", base, 321, 0.2)
    for module in blocks(base.bfl, 1):
        _add_peft(lora, f"diffusion_model.{module}", lora.bfl, module, base.bfl[module], 3)
    return lora.finish()


def bfl(base: Base) -> Lora:
    """Black Forest Labs' bare paths, as in their control LoRAs, without the biases, norms and wider img_in of those."""
    lora = Lora("bfl", base, 322, 0.16, torch.bfloat16)
    for index, module in enumerate(blocks(base.bfl, 0, 1) + top(base.bfl)):
        _add_peft(lora, module, lora.bfl, module, base.bfl[module], 2 + index % 2)
    return lora.finish()


def onetrainer(base: Base) -> Lora:
    """OneTrainer: lora_transformer_<diffusers path>, CLIP as lora_te1_, always with alpha."""
    lora = Lora("onetrainer", base, 323, 0.16, torch.float16)
    transformer = {n: base.diffusers[n] for n in blocks(base.diffusers, 1) + top(base.diffusers)}
    parts = [("lora_transformer_", transformer, lora.transformer), ("lora_te1_", base.clip, lora.clip)]
    for prefix, shapes, deltas in parts:
        for index, (module, shape) in enumerate(shapes.items()):
            _add_flat(lora, prefix, deltas, module, shape, 2 + index % 2, (1.0, 6.0)[index % 2])
    return lora.finish()


def _add_flat(lora: Lora, prefix: str, deltas: Tensors, module: str, shape: tuple[int, int], rank: int, alpha: float) -> None:
    down, up, deltas[module] = lora.pair(shape, rank, alpha / rank)
    key = f"{prefix}{_flat(module)}"
    lora.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha, dtype=lora.dtype)}


def lycoris(base: Base) -> Lora:
    """LyCORIS' plain low-rank algorithm: lycoris_<diffusers path>."""
    lora = Lora("lycoris", base, 324, 0.3)
    for module in blocks(base.diffusers, 2):
        _add_flat(lora, "lycoris_", lora.transformer, module, base.diffusers[module], 3, 1.5)
    return lora.finish()


def _lycoris_targets(lora: Lora) -> list[tuple[str, Tensors, str, tuple[int, int]]]:
    """(prefix, deltas, module, shape): diffusers paths under lycoris_, BFL paths of other blocks under lora_unet_, CLIP."""
    base = lora.base
    simple = [n for n in blocks(base.diffusers, 0) if "ff" not in n]
    simple += ["x_embedder", "norm_out.linear", "time_text_embed.guidance_embedder.linear_2"]
    kohya_paths = [n for n in blocks(base.bfl, 1) if "txt_mlp" not in n] + ["final_layer.linear", "vector_in.in_layer"]
    clip = [n for n in base.clip if ".layers.1." in n]
    out = [("lycoris_", lora.transformer, n, base.diffusers[n]) for n in simple]
    out += [("lora_unet_", lora.bfl, n, base.bfl[n]) for n in kohya_paths]
    return out + [("lora_te1_", lora.clip, n, base.clip[n]) for n in clip]


def loha(base: Base) -> Lora:
    """LoHa: (w1_a w1_b) * (w2_a w2_b) * alpha / rank, elementwise; rank 2, so a delta of rank 4 at most."""
    lora = Lora("loha", base, 325, 0.22)
    for index, (prefix, deltas, module, (rows, columns)) in enumerate(_lycoris_targets(lora)):
        rank, alpha = 2, (None, 1.0, 3.0)[index % 3]
        scale = (alpha or rank) / rank
        w1_a, w1_b = lora.random(rows, rank), lora.random(rank, columns)
        w2_a, w2_b = lora.random(rows, rank, rms=lora.rms(columns) / (rank * scale)), lora.random(rank, columns)
        delta = (w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double()) * scale
        deltas[module] = delta.float()
        assert torch.allclose(make_hadamard(w1_a, w1_b, w2_a, w2_b, torch.tensor(scale)), deltas[module], atol=1e-6)
        key = f"{prefix}{_flat(module)}"
        lora.tensors |= {f"{key}.hada_w1_a": w1_a, f"{key}.hada_w1_b": w1_b, f"{key}.hada_w2_a": w2_a, f"{key}.hada_w2_b": w2_b}
        if alpha is not None:
            lora.tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return lora.finish()


def lokr(base: Base) -> Lora:
    """LoKr: kron(w1, w2) * alpha / rank, each factor whole or a product; two whole factors have no rank and no scale."""
    lora = Lora("lokr", base, 326, 0.22)
    for index, (prefix, deltas, module, (rows, columns)) in enumerate(_lycoris_targets(lora)):
        (a, b), (c, d) = factors(rows), factors(columns)
        products = ((), ("w2",), ("w1",), ("w1", "w2"))[index % 4]
        rank = 2
        # Trainers write an enormous alpha where there is no rank for it to act on.
        alpha = 1e10 if not products else (None, 1.0, 3.0)[index // 4 % 3]
        scale = 1.0 if not products or alpha is None else alpha / rank
        key, whole = f"{prefix}{_flat(module)}", {}
        for name, (height, width), rms in (("w1", (a, c), 1.0), ("w2", (b, d), lora.rms(columns) / scale)):
            if name in products:
                left, right = lora.random(height, rank, rms=rms * rank**-0.5), lora.random(rank, width)
                lora.tensors |= {f"{key}.lokr_{name}_a": left, f"{key}.lokr_{name}_b": right}
                whole[name] = left.double() @ right.double()
            else:
                lora.tensors[f"{key}.lokr_{name}"] = full = lora.random(height, width, rms=rms)
                whole[name] = full.double()
        deltas[module] = (torch.einsum("ac,bd->abcd", whole["w1"], whole["w2"]).reshape(rows, columns) * scale).float()
        assert torch.allclose(make_kron(whole["w1"], whole["w2"], scale).float(), deltas[module], atol=1e-6)
        if alpha is not None:
            lora.tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return lora.finish()


def factors(size: int) -> tuple[int, int]:
    """The most nearly equal pair of factors of `size`, the smaller first, as LyCORIS splits dimensions."""
    small = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)
    return small, size // small
