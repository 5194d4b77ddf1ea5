"""Writes and reads a model folder: transformer and autoencoder in the Black Forest Labs layout, text encoders as
Hugging Face's."""

import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

import config
from tokens import MODEL_FOLDER


def is_block_linear(name, value):
    return value.ndim == 2 and name.split(".")[0] in ("double_blocks", "single_blocks")


def fp8_round(w):
    """The nearest values that float8_e4m3fn can hold, in w's type."""
    return w.to(torch.float8_e4m3fn).to(w.dtype)


def stored(name, value, part, fp8=True):
    """`value` in the type that the file of `part` ('dit', 'vae', 'clip', 't5') holds it in."""
    if part != "dit":
        return value.to(torch.float16)
    return value.to(torch.float8_e4m3fn if fp8 and is_block_linear(name, value) else torch.bfloat16)


def write_json(value, *path):
    with open(os.path.join(*path), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def export(folder, modules, scale, shift, fp8):
    """modules: {'dit', 'vae', 'clip', 't5'}; fp8: linears of the blocks as float8_e4m3fn, else bfloat16."""
    shutil.rmtree(folder, ignore_errors=True)
    for d in ("text_encoder", "text_encoder_2", "scheduler"):
        os.makedirs(os.path.join(folder, d))
    files = {
        "dit": "transformer.safetensors",
        "vae": "ae.safetensors",
        "clip": "text_encoder/model.safetensors",
        "t5": "text_encoder_2/model.safetensors",
    }
    for part, file in files.items():
        state = {k: v.detach().float().cpu() for k, v in modules[part].state_dict().items()}
        state = {k: stored(k, v, part, fp8).contiguous() for k, v in state.items()}
        assert all(torch.isfinite(v.float()).all() for v in state.values()), file
        save_file(state, os.path.join(folder, file), metadata={"format": "pt"})
    clip = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "dtype": "float16"}
    write_json({**clip, **config.CLIP}, folder, "text_encoder", "config.json")
    t5 = {"architectures": ["T5EncoderModel"], "model_type": "t5", "dtype": "float16"}
    t5 |= {"dense_act_fn": "gelu_new", "is_gated_act": True, "tie_word_embeddings": True}
    write_json({**t5, **config.T5}, folder, "text_encoder_2", "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(os.path.join(MODEL_FOLDER, name), os.path.join(folder, name))
    write_json(config.SCHEDULER, folder, "scheduler", "scheduler_config.json")
    write_json({"_class_name": "FluxTransformer2DModel", **config.TRANSFORMER}, folder, "transformer_config.json")
    ae = {"_class_name": "AutoencoderKL", **config.VAE, "scaling_factor": scale, "shift_factor": shift}
    write_json(ae, folder, "ae_config.json")
    index = {"_class_name": "FluxPipeline", "max_sequence_length": config.T5_LEN, "default_size": config.RES}
    index |= {"default_steps": config.STEPS, "default_guidance": config.GUIDANCE}
    write_json(index, folder, "model_index.json")


def load(folder):
    """-> state dicts in fp32 by part, and ae_config"""

    def read(file):
        return {k: v.float() for k, v in load_file(os.path.join(folder, file)).items()}

    with open(os.path.join(folder, "ae_config.json")) as f:
        ae_config = json.load(f)
    return {
        "dit": read("transformer.safetensors"),
        "vae": read("ae.safetensors"),
        "clip": read("text_encoder/model.safetensors"),
        "t5": read("text_encoder_2/model.safetensors"),
        "ae_config": ae_config,
    }
