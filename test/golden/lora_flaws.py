"""LoRA files that must be refused, each with one flaw, and files with parts that may be left out."""

from dataclasses import dataclass

import torch

from lora import Base, Lora, Tensors

MODULE = "transformer_blocks.0.attn.to_q"
KEY = f"transformer.{MODULE}"
KOHYA = "lora_unet_double_blocks_0_img_attn_qkv"


@dataclass
class Flaw:
    """One file to refuse. The error must name one of `keys`: keys of the file, or what they have before the suffix."""

    keys: list[str]
    problem: str
    tensors: Tensors


def bad(base: Base) -> dict[str, Flaw]:
    """Files by name. Each is a sound LoRA of one module but for its flaw."""
    lora = Lora("bad", base, 401, 0.2)
    rows, columns = base.diffusers[MODULE]
    hidden = base.bfl["img_in"][1]

    def pair(key: str = KEY, out: int = rows, width: int = columns) -> Tensors:
        a, b, _ = lora.pair((out, width), 2)
        return {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}

    def kohya(key: str = KOHYA, out: int = 3 * rows, width: int = columns) -> Tensors:
        down, up, _ = lora.pair((out, width), 2)
        return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}

    def with_value(value: float) -> Tensors:
        tensors = pair()
        tensors[f"{KEY}.lora_B.weight"][3, 1] = value
        return tensors

    flaws: dict[str, Flaw] = {}

    def add(name: str, keys: str | list[str], problem: str, tensors: Tensors) -> None:
        flaws[name] = Flaw([keys] if isinstance(keys, str) else keys, problem, tensors)

    add("dora", f"{KOHYA}.dora_scale", "DoRA", {**kohya(), f"{KOHYA}.dora_scale": torch.ones(3 * rows, 1)})
    add("dora_peft", f"{KEY}.lora_magnitude_vector", "DoRA", {**pair(), f"{KEY}.lora_magnitude_vector": torch.ones(rows)})
    add("unknown_key", f"{KEY}.lora_C.weight", "no such suffix", {**pair(), f"{KEY}.lora_C.weight": torch.ones(2, 2)})
    unknown = "transformer.transformer_blocks.9.attn.to_q"
    add("unknown_module", unknown, "the model has no such block", {**pair(), **pair(unknown)})
    add("wrong_shape", KEY, "columns are not the module's", pair(width=columns + 1))
    add("wrong_rows", KOHYA, "rows are those of q alone", kohya(out=rows))
    ranks = {**pair(), f"{KEY}.lora_A.weight": lora.random(3, columns)}
    add("wrong_rank", KEY, "the factors' ranks differ", ranks)
    add("nan", f"{KEY}.lora_B.weight", "NaN", with_value(float("nan")))
    add("infinite", f"{KEY}.lora_B.weight", "infinite", with_value(float("inf")))
    whole = pair()
    del whole[f"{KEY}.lora_B.weight"]
    add("missing_half", KEY, "lora_B is missing", whole)
    add("alpha_alone", f"{KEY}.alpha", "alpha without factors", {**pair(f"{KEY[:-1]}k"), f"{KEY}.alpha": torch.tensor(2.0)})
    add("alpha_shape", f"{KEY}.alpha", "alpha is no scalar", {**pair(), f"{KEY}.alpha": torch.ones(2)})
    add("alpha_nan", f"{KEY}.alpha", "alpha is NaN", {**pair(), f"{KEY}.alpha": torch.tensor(float("nan"))})
    add("integer", KEY, "integer weights", {n: (t * 64).to(torch.int32) for n, t in pair().items()})
    add("twice", [KEY, KOHYA], "the same rows in two dialects", {**pair(), **kohya()})
    add("bias", f"{KEY}.lora_B.bias", "a change of the bias", {**pair(), f"{KEY}.lora_B.bias": torch.ones(rows)})
    full = "lora_unet_img_in.diff"
    add("diff", full, "a whole weight", {full: lora.random(*base.bfl["img_in"], rms=0.01)})
    control = pair("double_blocks.0.img_attn.qkv", 3 * rows) | pair("img_in", base.bfl["img_in"][0], 2 * hidden)
    norm = "double_blocks.0.img_attn.norm.query_norm.scale"
    add("control", ["img_in", norm], "a control LoRA: wider img_in and norms", control | {norm: torch.ones(base.bfl["img_in"][0] // 3)})
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    add("t5", t5, "changes T5", {**kohya(), **kohya(t5, 36, 40)})
    shapes = {"w1_a": (3 * rows, 2), "w1_b": (2, columns), "w2_a": (3 * rows, 2)}
    add("loha_half", KOHYA, "hada_w2_b is missing", {f"{KOHYA}.hada_{n}": lora.random(*shape) for n, shape in shapes.items()})
    lokr = {f"{KOHYA}.lokr_w1": lora.random(4, 6), f"{KOHYA}.lokr_w2": lora.random(9, 9)}
    add("lokr_shape", KOHYA, "the product has not the module's shape", lokr)
    add("no_lora", "decoder.conv_in.weight", "not a LoRA", {"decoder.conv_in.weight": lora.random(4, 4, 3, 3)})
    return flaws


def harmless(base: Base) -> list[Lora]:
    """Files whose extra parts change nothing. Their deltas are those of the parts that do."""
    out = []
    for name, seed in (("zero_t5", 411), ("untrained_t5", 412), ("zero_extras", 413)):
        lora = Lora(f"harmless/{name}", base, seed, 0.6)
        rows, columns = base.bfl["double_blocks.0.img_attn.qkv"]
        down, up, lora.bfl["double_blocks.0.img_attn.qkv"] = lora.pair((rows, columns), 3)
        key = "diffusion_model.double_blocks.0.img_attn.qkv" if name == "zero_extras" else KOHYA
        lora.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        lora.tensors |= {"zero_t5": _zero_t5, "untrained_t5": _untrained_t5, "zero_extras": _zero_extras}[name](lora)
        out.append(lora.finish())
    return out


def _zero_t5(_: Lora) -> Tensors:
    """T5 as sd-scripts (te3) and OneTrainer (te2) number it, everything zero."""
    keys = [f"lora_te{n}_encoder_block_0_layer_0_SelfAttention_q" for n in (2, 3)]
    shapes = {"lora_down.weight": (2, 40), "lora_up.weight": (36, 2), "alpha": ()}
    return {f"{key}.{suffix}": torch.zeros(shape) for key in keys for suffix, shape in shapes.items()}


def _untrained_t5(lora: Lora) -> Tensors:
    """T5 as it is before the first training step: up is zero, down and alpha are not."""
    key = "lora_te3_encoder_block_0_layer_1_DenseReluDense_wo"
    return {f"{key}.lora_down.weight": lora.random(2, 56), f"{key}.lora_up.weight": torch.zeros(40, 2), f"{key}.alpha": torch.tensor(1.0)}


def _zero_extras(lora: Lora) -> Tensors:
    """What extracting the difference of two models leaves where they agree, in ComfyUI's naming."""
    clip, width = "text_encoders.clip_l.transformer", lora.base.clip["text_model.encoder.layers.0.self_attn.q_proj"][0]
    tensors = {
        f"{clip}.text_model.embeddings.position_embedding.lora_down.weight": torch.zeros(2, width),
        f"{clip}.text_model.embeddings.position_embedding.lora_up.weight": torch.zeros(77, 2),
        f"{clip}.text_projection.lora_down.weight": torch.zeros(2, width),
        f"{clip}.text_projection.lora_up.weight": torch.zeros(width, 2),
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_down.weight": torch.zeros(2, 40),
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight": torch.zeros(36, 2),
    }
    tensors[f"{clip}.text_model.encoder.layers.0.self_attn.q_proj.diff_b"] = torch.zeros(width)
    tensors["diffusion_model.double_blocks.0.img_attn.qkv.diff_b"] = torch.zeros(lora.base.bfl["double_blocks.0.img_attn.qkv"][0])
    head = lora.base.bfl["img_in"][0] // 3
    tensors["diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff"] = torch.zeros(head)
    return tensors
