"""Tensor names and shapes: diffusers <-> the single-file layout of Black Forest Labs ("BFL").

Both directions of each component are driven by one table, so they cannot drift apart.
"""

import re

import torch

Tensors = dict[str, torch.Tensor]

TOP = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
# Several names on the left are concatenated by rows, in that order, into the one on the right.
DOUBLE = {
    ("norm1.linear",): "img_mod.lin",
    ("norm1_context.linear",): "txt_mod.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
    ("attn.to_out.0",): "img_attn.proj",
    ("attn.to_add_out",): "txt_attn.proj",
    ("ff.net.0.proj",): "img_mlp.0",
    ("ff.net.2",): "img_mlp.2",
    ("ff_context.net.0.proj",): "txt_mlp.0",
    ("ff_context.net.2",): "txt_mlp.2",
}
DOUBLE_NORMS = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}
SINGLE = {
    ("norm.linear",): "modulation.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
    ("proj_out",): "linear2",
}
SINGLE_NORMS = {
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}


def _transformer_rows(names: set[str]) -> list[tuple[list[str], str]]:
    """Pairs (diffusers tensors, BFL tensor) for the depth found in `names`, which may be of either layout."""

    def depth(*prefixes: str) -> int:
        found = [m for n in names for m in [re.match(rf"(?:{'|'.join(prefixes)})\.(\d+)\.", n)] if m]
        return 1 + max((int(m.group(1)) for m in found), default=-1)

    rows = [([f"{a}.{kind}"], f"{b}.{kind}") for a, b in TOP.items() for kind in ("weight", "bias")]
    for index in range(depth("double_blocks", "transformer_blocks")):
        a, b = f"transformer_blocks.{index}.", f"double_blocks.{index}."
        for parts, whole in DOUBLE.items():
            rows += [([f"{a}{p}.{kind}" for p in parts], f"{b}{whole}.{kind}") for kind in ("weight", "bias")]
        rows += [([a + x], b + y) for x, y in DOUBLE_NORMS.items()]
    for index in range(depth("single_blocks", "single_transformer_blocks")):
        a, b = f"single_transformer_blocks.{index}.", f"single_blocks.{index}."
        for parts, whole in SINGLE.items():
            rows += [([f"{a}{p}.{kind}" for p in parts], f"{b}{whole}.{kind}") for kind in ("weight", "bias")]
        rows += [([a + x], b + y) for x, y in SINGLE_NORMS.items()]
    return [row for row in rows if row[1] in names or row[0][0] in names]


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    """The final adaLN is [scale, shift] in diffusers and [shift, scale] in BFL files."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def transformer_to_bfl(tensors: Tensors) -> Tensors:
    """Renames and fuses a FluxTransformer2DModel state dict to BFL names."""
    out: Tensors = {}
    for parts, whole in _transformer_rows(set(tensors)):
        joined = torch.cat([tensors[part] for part in parts])
        out[whole] = _swap_halves(joined) if "adaLN_modulation" in whole else joined
    assert sum(t.numel() for t in out.values()) == sum(t.numel() for t in tensors.values())
    return out


def transformer_from_bfl(tensors: Tensors) -> Tensors:
    """Inverse of `transformer_to_bfl`; q, k and v have hidden-size rows, the rest of linear1 is the MLP."""
    out: Tensors = {}
    hidden = tensors["img_in.weight"].shape[0]
    for parts, whole in _transformer_rows(set(tensors)):
        tensor = tensors[whole]
        if "adaLN_modulation" in whole:
            tensor = _swap_halves(tensor)
        rest = tensor.shape[0] - hidden * (len(parts) - 1)
        pieces = tensor.split([hidden] * (len(parts) - 1) + [rest])
        out.update({part: piece.contiguous() for part, piece in zip(parts, pieces, strict=True)})
    assert sum(t.numel() for t in out.values()) == sum(t.numel() for t in tensors.values())
    return out


AUTOENCODER = [  # diffusers, BFL
    ("conv_norm_out.", "norm_out."),
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
    ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
    ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ("down_blocks.", "down."),
    ("up_blocks.", "up."),
    (".resnets.", ".block."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    ("conv_shortcut", "nin_shortcut"),
]


def _mirror_up(name: str, levels: int) -> str:
    """BFL numbers the decoder's levels from the image side, diffusers from the latent side."""
    return re.sub(r"^(decoder\.up(?:_blocks)?\.)(\d+)", lambda m: f"{m[1]}{levels - 1 - int(m[2])}", name)


def autoencoder_to_bfl(tensors: Tensors, levels: int) -> Tensors:
    """Renames an AutoencoderKL state dict (without quant convolutions); attention linears become 1x1 convs."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        for a, b in AUTOENCODER:
            name = name.replace(a, b)
        is_linear = ".mid.attn_1." in name and tensor.ndim == 2
        out[_mirror_up(name, levels)] = tensor[:, :, None, None] if is_linear else tensor
    return out


def autoencoder_from_bfl(tensors: Tensors, levels: int) -> Tensors:
    """Inverse of `autoencoder_to_bfl`."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        for a, b in AUTOENCODER:
            # A leading dot on either side keeps "down." from matching inside "downsample." and the like.
            name = re.sub(rf"(?<![a-z_]){re.escape(b)}", a, name) if not b.startswith(".") else name.replace(b, a)
        is_conv = ".mid_block.attentions." in name and tensor.ndim == 4
        out[_mirror_up(name, levels)] = tensor[:, :, 0, 0] if is_conv else tensor
    return out
