"""Parameter names of diffusers' modules for the original Black Forest Labs single-file layouts."""

import re

import torch

# ---------------------------------------------------------------- transformer
_TOP = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_DBL = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_DBLN = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}


def _swap(t):
    a, b = t.chunk(2, 0)
    return torch.cat([b, a], 0)


def transformer_from_bfl(sd):
    nl = 1 + max(int(m.group(1)) for k in sd if (m := re.match(r"double_blocks\.(\d+)\.", k)))
    ns = 1 + max(int(m.group(1)) for k in sd if (m := re.match(r"single_blocks\.(\d+)\.", k)))
    o = {}
    for a, b in _TOP.items():
        for s in ("weight", "bias"):
            o[f"{a}.{s}"] = sd[f"{b}.{s}"]
    for s in ("weight", "bias"):
        o[f"norm_out.linear.{s}"] = _swap(sd[f"final_layer.adaLN_modulation.1.{s}"])
    for i in range(nl):
        p, q = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        for s in ("weight", "bias"):
            for a, b in _DBL.items():
                o[f"{p}{a}.{s}"] = sd[f"{q}{b}.{s}"]
            for n, t in zip(("to_q", "to_k", "to_v"), sd[f"{q}img_attn.qkv.{s}"].chunk(3, 0)):
                o[f"{p}attn.{n}.{s}"] = t
            for n, t in zip(("add_q_proj", "add_k_proj", "add_v_proj"), sd[f"{q}txt_attn.qkv.{s}"].chunk(3, 0)):
                o[f"{p}attn.{n}.{s}"] = t
        for a, b in _DBLN.items():
            o[p + a] = sd[q + b]
    for i in range(ns):
        p, q = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        d = sd[f"{q}linear2.weight"].shape[0]
        for s in ("weight", "bias"):
            o[f"{p}norm.linear.{s}"] = sd[f"{q}modulation.lin.{s}"]
            w = sd[f"{q}linear1.{s}"]
            for n, t in zip(
                ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), w.split([d, d, d, w.shape[0] - 3 * d], 0)
            ):
                o[f"{p}{n}.{s}"] = t
            o[f"{p}proj_out.{s}"] = sd[f"{q}linear2.{s}"]
        o[f"{p}attn.norm_q.weight"] = sd[f"{q}norm.query_norm.scale"]
        o[f"{p}attn.norm_k.weight"] = sd[f"{q}norm.key_norm.scale"]
    return {k: v.contiguous() for k, v in o.items()}


# ---------------------------------------------------------------- autoencoder
_AE_INV = [
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"^(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
    (r"^(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
]


def _map(k, rules):
    for a, b in rules:
        if re.match(a, k):
            return re.sub(a, b, k)
    return k


def ae_from_bfl(sd, levels=4):
    o = {}
    for k, v in sd.items():
        n = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m.group(1))}.", k)
        n = _map(n, _AE_INV).replace("nin_shortcut", "conv_shortcut")
        if ".mid_block.attentions." in n and v.ndim == 4:
            v = v[:, :, 0, 0]
        o[n] = v.contiguous()
    return o
