"""The bundled model in diffusers, every weight widened to fp32, and its reference pictures."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, T5EncoderModel

import layouts
from tiny import load_tokenizers, write_json

PROMPTS = [
    "a red apple on a blue background",
    "a pizza on a yellow background",
    "a red circle on a green background",
    "two yellow stars on a dark blue background",
    "a tree on a pink background",
    "a smiling face with sunglasses",
    "a butterfly on a black background",
    "a green square and an orange triangle",
]
GUIDANCE = 3.5


def load_pipeline(folder: Path) -> FluxPipeline:
    """FluxPipeline in fp32 from a folder of BFL single files, as models/mini is laid out."""

    def read(name: str) -> dict:
        return json.loads((folder / name).read_text())

    def weights(name: str) -> layouts.Tensors:
        return {key: tensor.float() for key, tensor in load_file(folder / name).items()}

    config = {key: value for key, value in read("transformer_config.json").items() if key not in ("_class_name", "bfl")}
    transformer = FluxTransformer2DModel(**config).eval()
    transformer.load_state_dict(layouts.transformer_from_bfl(weights("transformer.safetensors")))
    config = {key: value for key, value in read("ae_config.json").items() if key not in ("_class_name", "bfl")}
    levels = len(config["block_out_channels"])
    config |= {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    vae = AutoencoderKL(**config).eval()
    vae.load_state_dict(layouts.autoencoder_from_bfl(weights("ae.safetensors"), levels))
    tokenizer, tokenizer_2 = load_tokenizers(folder)
    pipe = FluxPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        text_encoder_2=T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(**{k: v for k, v in read("scheduler/scheduler_config.json").items() if k[0] != "_"}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(folder: Path, out: Path) -> None:
    """One picture for each of PROMPTS at the model's own size and steps, and `cases.json` with the requests."""
    index = json.loads((folder / "model_index.json").read_text())
    size, steps = index["default_size"], index["default_steps"]
    pipe = load_pipeline(folder)
    cases = []
    for seed, prompt in enumerate(PROMPTS, start=1):
        case = {"prompt": prompt, "seed": seed, "steps": steps, "guidance": GUIDANCE, "width": size, "height": size}
        image = pipe(
            prompt, num_inference_steps=steps, guidance_scale=GUIDANCE, height=size, width=size,
            max_sequence_length=index["max_sequence_length"], generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        file = f"{seed}.png"
        out.mkdir(parents=True, exist_ok=True)
        image.save(out / file, optimize=True)
        cases.append({**case, "file": file})
    write_json(out / "cases.json", cases)
