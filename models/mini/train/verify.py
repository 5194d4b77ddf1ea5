"""An exported folder through diffusers on the CPU: file layouts, equality with the networks here, a contact sheet.

python verify.py MODEL_FOLDER SHEET.png [--steps 20] [--guidance 3] [--seed 0] [--prompts 16]"""

import argparse
import json
import os

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

import export
from config import CLIP_LEN, GRID, RES, SHEET_PROMPTS, T5_LEN
from diffusers_names import ae_from_bfl, transformer_from_bfl
from model.text import ClipText, T5Encoder
from model.transformer import Flux, position_ids, rope_table
from model.vae import AutoEncoder
from tokens import load_tokenizers, tokenize

TOLERANCE = 1e-4  # largest difference of an output; outputs are around 1


def read_json(*path):
    with open(os.path.join(*path)) as f:
        return {k: v for k, v in json.load(f).items() if not k.startswith("_")}


def pipeline(folder):
    """The folder as diffusers' FluxPipeline in fp32."""

    def at(name):
        return os.path.join(folder, name)

    transformer = FluxTransformer2DModel(**read_json(at("transformer_config.json")))
    weights = {k: v.float() for k, v in load_file(at("transformer.safetensors")).items()}
    transformer.load_state_dict(transformer_from_bfl(weights))
    config = read_json(at("ae_config.json"))
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        **config,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        act_fn="silu",
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.load_state_dict(ae_from_bfl({k: v.float() for k, v in load_file(at("ae.safetensors")).items()}))
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(at("scheduler")),
        text_encoder=CLIPTextModel.from_pretrained(at("text_encoder"), dtype=torch.float32).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(at("tokenizer")),
        text_encoder_2=T5EncoderModel.from_pretrained(at("text_encoder_2"), dtype=torch.float32).eval(),
        tokenizer_2=PreTrainedTokenizerFast.from_pretrained(at("tokenizer_2")),
        vae=vae.eval(),
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def token_ids(tokenizer, length):
    batch = tokenizer(SHEET_PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    return batch.input_ids


@torch.no_grad()
def differences(folder, pipe):
    """Largest absolute difference of each part's output from diffusers' and transformers', on random inputs."""
    parts = export.load(folder)
    own = {
        "dit": Flux(read_json(folder, "transformer_config.json")),
        "vae": AutoEncoder(parts["ae_config"]),
        "clip": ClipText(read_json(folder, "text_encoder", "config.json")),
        "t5": T5Encoder(read_json(folder, "text_encoder_2", "config.json")),
    }
    for part, module in own.items():
        module.load_state_dict(parts[part])
    torch.manual_seed(0)
    clip_ids, t5_ids = (torch.from_numpy(a[:2]) for a in tokenize(load_tokenizers(folder, 77), SHEET_PROMPTS))
    context = pipe.text_encoder_2(input_ids=t5_ids)[0]
    pooled = pipe.text_encoder(input_ids=clip_ids).pooler_output
    ids, axes = position_ids(T5_LEN, GRID), own["dit"].cfg["axes_dims_rope"]
    x, sigma, guidance = torch.randn(2, GRID**2, 64), torch.tensor([0.3, 0.9]), torch.tensor([1.0, 4.0])
    v = pipe.transformer(
        hidden_states=x,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=sigma,
        guidance=guidance,
        img_ids=ids[T5_LEN:],
        txt_ids=ids[:T5_LEN],
        return_dict=False,
    )[0]
    picture = torch.rand(1, 3, RES, RES) * 2 - 1
    latent = own["vae"].encode(picture)[0]
    pairs = {
        "CLIP": (own["clip"](clip_ids[:, :CLIP_LEN]), pooled),
        "T5": (own["t5"](t5_ids), context),
        "transformer": (own["dit"](x, context, pooled, sigma, guidance, rope_table(ids, axes)), v),
        "encoder": (latent, pipe.vae.encode(picture).latent_dist.mean),
        "decoder": (own["vae"].decode(latent), pipe.vae.decode(latent).sample),
    }
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sheet")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=16)
    args = parser.parse_args()
    pipe = pipeline(args.folder)

    clip_ids, t5_ids = tokenize(load_tokenizers(args.folder, 77), SHEET_PROMPTS)
    assert (token_ids(pipe.tokenizer, 77) == clip_ids).all()
    assert (token_ids(pipe.tokenizer_2, T5_LEN) == t5_ids).all()
    print("tokenizers agree")
    for part, difference in differences(args.folder, pipe).items():
        print(f"{part}: {difference:.1e}")
        assert difference < TOLERANCE, part

    sheet = Image.new("RGB", (4 * RES, -(-args.prompts // 4) * RES))
    for i, prompt in enumerate(SHEET_PROMPTS[: args.prompts]):
        picture = pipe(
            prompt,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            height=RES,
            width=RES,
            max_sequence_length=T5_LEN,
            generator=torch.Generator().manual_seed(args.seed),
        ).images[0]
        sheet.paste(picture, (i % 4 * RES, i // 4 * RES))
    sheet.save(args.sheet)


if __name__ == "__main__":
    main()
