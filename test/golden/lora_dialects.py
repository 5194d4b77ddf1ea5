"""One writer per dialect of FLUX LoRA files. Each returns a Lora whose deltas follow from the dialect's own rule."""

import json
import re

import torch
from peft import LoraConfig

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
    lora = Lora("peft_text_encoder", base, 312, 0.4)
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
    clip = dict(r=2, lora_alpha=5, rank_pattern={"mlp.fc1": 3}, alpha_pattern={"mlp.fc1": 9}, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    lora.metadata = _adapter_metadata(
        transformer=LoraConfig(r=4, lora_alpha=3, rank_pattern=ranks, alpha_pattern=alphas, target_modules=modules),
        text_encoder=LoraConfig(**clip),
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
    lora.metadata = {"name": "style", "software": json.dumps({"name": "ai-toolkit"}), "ss_base_model_version": "flux1", "ss_output_name": "style"}
    return lora.finish()


def shallow(base: Base) -> Lora:
    """PEFT keys of the first double and single block and of everything outside, which the files under variants/ have too."""
    lora = Lora("shallow", base, 316, 0.16)
    for module in blocks(base.diffusers, 0) + top(base.diffusers):
        _add_peft(lora, f"transformer.{module}", lora.transformer, module, base.diffusers[module], 2)
    return lora.finish()


def kohya(base: Base, name: str = "kohya") -> Lora:
    """sd-scripts: BFL paths, fused projections, alpha / rank; CLIP too. No alpha, or 0, means alpha = rank."""
    lora = Lora(name, base, 302, 0.16, torch.float16)
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
    lora.metadata = {"ss_network_module": "networks.lora_flux", "ss_network_dim": "4", "ss_network_alpha": "4.0", "ss_base_model_version": "flux1"}
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
    names = {"img_attn.qkv": "qkv_lora1", "img_attn.proj": "proj_lora1", "txt_attn.qkv": "qkv_lora2", "txt_attn.proj": "proj_lora2"}
    names |= {"linear1": "qkv_lora", "linear2": "proj_lora"}
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
