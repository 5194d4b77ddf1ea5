"""Reference values of every stage of one model, each with the inputs that make it testable alone."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from tiny import CLIP_LENGTH, Model

PROMPTS = [
    "",
    "a red apple on a blue background",
    "A Red APPLE, Noto STYLE",
    "flat illustration of a sailboat",
    "two yellow stars on a dark blue background, " * 12 + "the end",
    "café crème ﬁancé — naïve Ångström",
    "一只猫 🐱 on a yellow background",
    "3 cats, 42 dogs and 1,024 robots in 2077",
    "a woman's hat; it's \"glossy\" (3d)... really?! #1 & <b>50%</b>",
    "  leading,   inner \t and trailing spaces \n",
    "e\u0301 e\u0308 \u00a0 \u200b ½ ² Ⅷ ｆｕｌｌ",
    "literal <|endoftext|> and </s> then <pad> tokens",
    "antidisestablishmentarianism zyzzyva qwrtpsdf",
]
ENCODED = [1, 4]  # prompts whose text encoder outputs are stored: a short one, and one longer than both limits
CASES = [{"sigma": 0.9375, "guidance": 3.5}, {"sigma": 0.2841, "guidance": 1.0}]
SIGMAS = [1.0, 0.9375, 0.75, 0.2841, 0.05, 0.001]
GUIDANCES = [1.0, 3.5, 30.0]
LATENT = (6, 4)  # rows, columns of the latent in the autoencoder goldens
PIPELINE_SEED = 42

Tensors = dict[str, torch.Tensor]


def record(root: torch.nn.Module, names: dict[str, str], call: Callable[[], object]) -> Tensors:
    """Runs `call` and returns the outputs of the named submodules, keyed by the values of `names`."""
    out: Tensors = {}

    def keep(key: str):
        def hook(_module, _inputs, output):
            # Flux blocks return (text, image); stored as they run: one sequence for single blocks, two for double.
            if not isinstance(output, tuple):
                out[key] = output
            elif ".single" in key or key.startswith("single"):
                out[key] = torch.cat(output, dim=1)
            else:
                out[f"{key}.txt"], out[f"{key}.img"] = output

        return hook

    handles = [root.get_submodule(name).register_forward_hook(keep(key)) for name, key in names.items()]
    call()
    for handle in handles:
        handle.remove()
    return out


def token_ids(model: Model) -> list[dict]:
    """Ids of all prompts, padded and truncated as FluxPipeline does."""

    def ids(tokenizer, length: int) -> list[list[int]]:
        return tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True).input_ids

    clip, t5 = ids(model.tokenizer, CLIP_LENGTH), ids(model.tokenizer_2, model.spec.max_sequence_length)
    return [{"prompt": p, "clip": c, "t5": t} for p, c, t in zip(PROMPTS, clip, t5, strict=True)]


def text(model: Model, tokens: list[dict]) -> Tensors:
    """CLIP and T5 outputs; no attention mask is passed, so padding is attended to."""
    out: Tensors = {}
    for index in ENCODED:
        clip = model.text_encoder(torch.tensor([tokens[index]["clip"]]))
        out[f"clip/{index}/last_hidden_state"], out[f"clip/{index}/pooled"] = clip.last_hidden_state, clip.pooler_output
        out[f"t5/{index}/last_hidden_state"] = model.text_encoder_2(torch.tensor([tokens[index]["t5"]]))[0]
    return out


def image_ids(rows: int, columns: int) -> torch.Tensor:
    """Positions (0, row, column) of image tokens, [rows * columns, 3]."""
    return FluxPipeline._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32)


def embeddings(model: Model) -> Tensors:
    """Sinusoidal embeddings, of values multiplied by 1000 in fp32 as the transformer does, and rotary tables."""
    project, positions = model.transformer.time_text_embed.time_proj, model.transformer.pos_embed
    out: Tensors = {"embed/sigma": torch.tensor(SIGMAS), "embed/guidance": torch.tensor(GUIDANCES)}
    out["embed/sigma_sinusoid"] = project(out["embed/sigma"] * 1000)
    out["embed/guidance_sinusoid"] = project(out["embed/guidance"] * 1000)
    far = torch.tensor([[0, y, x] for y in (0, 1, 63) for x in (0, 5, 127)], dtype=torch.float32)
    near = torch.cat([torch.zeros(model.spec.max_sequence_length, 3), image_ids(*model.spec.tokens)])
    for name, ids in (("rope", near), ("rope_far", far)):
        out[f"{name}/ids"] = ids
        out[f"{name}/cos"], out[f"{name}/sin"] = positions(ids)
    return out


def transformer_inputs(model: Model, index: int) -> Tensors:
    """Random inputs of rms 1 for case `index`."""
    config, spec = model.transformer.config, model.spec
    generator = torch.Generator().manual_seed(100 + index)
    return {
        "hidden_states": torch.randn(1, spec.tokens[0] * spec.tokens[1], config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(1, spec.max_sequence_length, config.joint_attention_dim, generator=generator),
        "pooled": torch.randn(1, config.pooled_projection_dim, generator=generator),
    }


def run_transformer(transformer, inputs: Tensors, case: dict, tokens: tuple[int, int]) -> torch.Tensor:
    """Velocity prediction for one case, [1, image tokens, in_channels]."""
    return transformer(
        hidden_states=inputs["hidden_states"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        pooled_projections=inputs["pooled"],
        timestep=torch.tensor([case["sigma"]]),
        guidance=torch.tensor([case["guidance"]]) if transformer.config.guidance_embeds else None,
        txt_ids=torch.zeros(inputs["encoder_hidden_states"].shape[1], 3),
        img_ids=image_ids(*tokens),
        return_dict=False,
    )[0]


def transformer(model: Model) -> Tensors:
    """Inputs, conditioning, modulations, every block and the output, for each of CASES."""
    config = model.transformer.config
    names = {"x_embedder": "x_embedder", "context_embedder": "context_embedder", "time_text_embed": "temb"}
    for i in range(config.num_layers):
        block = f"transformer_blocks.{i}"
        names |= {block: f"double.{i}", f"{block}.norm1.linear": f"double.{i}.img_mod"}
        names |= {f"{block}.norm1_context.linear": f"double.{i}.txt_mod"}
    for i in range(config.num_single_layers):
        block = f"single_transformer_blocks.{i}"
        names |= {block: f"single.{i}", f"{block}.norm.linear": f"single.{i}.mod"}
    names["norm_out.linear"] = "norm_out.mod"
    out: Tensors = {}
    for index, case in enumerate(CASES):
        inputs = transformer_inputs(model, index)
        result: Tensors = {}

        def call():
            result["output"] = run_transformer(model.transformer, inputs, case, model.spec.tokens)

        values = inputs | record(model.transformer, names, call) | result
        out |= {f"transformer/{index}/{name}": value for name, value in values.items()}
    return out


def vae(model: Model) -> Tensors:
    """Encoder moments of a fixed image and decoder output of a fixed latent, with the stages in between."""
    levels = len(model.spec.vae["block_out_channels"])
    rows, columns = LATENT
    generator = torch.Generator().manual_seed(200)
    factor = 2 ** (levels - 1)
    image = torch.rand(1, 3, rows * factor, columns * factor, generator=generator) * 2 - 1
    latent = torch.randn(1, model.spec.vae["latent_channels"], rows, columns, generator=generator)
    out: Tensors = {"vae/encode/image": image, "vae/decode/latent": latent}
    for verb, blocks in (("encode", "down"), ("decode", "up")):
        side = f"{verb}r"
        names = {f"{side}.conv_in": "conv_in", f"{side}.mid_block": "mid"}
        names |= {f"{side}.{blocks}_blocks.{i}": f"{blocks}.{i}" for i in range(levels)}
        result: Tensors = {}

        def call():
            if verb == "encode":
                posterior = model.vae.encode(image).latent_dist
                result["mean"], result["logvar"] = posterior.mean, posterior.logvar
            else:
                result["image"] = model.vae.decode(latent).sample

        values = record(model.vae, names, call) | result
        out |= {f"vae/{verb}/{name}": value for name, value in values.items()}
    return out


def packing(model: Model) -> Tensors:
    """Latent [1, C, 2 rows, 2 columns] and its tokens [1, rows * columns, 4 C]."""
    channels, (rows, columns) = model.spec.vae["latent_channels"], model.spec.tokens
    latent = torch.arange(channels * rows * columns * 4, dtype=torch.float32).reshape(1, channels, 2 * rows, 2 * columns)
    return {"pack/latent": latent, "pack/tokens": FluxPipeline._pack_latents(latent, 1, channels, 2 * rows, 2 * columns)}


def pictures(pipe, latents: torch.Tensor, height: int, width: int) -> Tensors:
    """Decodes packed latents as the pipelines do: raw decoder output, float [0, 1] and 8-bit pixels."""
    latent = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    latent = latent / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(latent, return_dict=False)[0]
    floats = pipe.image_processor.postprocess(decoded, output_type="np")[0]
    pixels = np.asarray(pipe.image_processor.postprocess(decoded, output_type="pil")[0])
    return {"decoded": decoded, "image": torch.from_numpy(floats.copy()), "image_u8": torch.from_numpy(pixels.copy())}


def pipelines(model: Model) -> tuple[Tensors, dict]:
    """Whole text-to-image and image-to-image runs, with latents after every step and all noise drawn."""
    height, width = model.spec.pixels
    channels = model.spec.vae["latent_channels"]
    common = dict(
        prompt=PROMPTS[1], height=height, width=width, guidance_scale=3.5,
        max_sequence_length=model.spec.max_sequence_length, output_type="latent",
    )  # fmt: skip
    out: Tensors = {}

    def run(name: str, cls, **options) -> FluxPipeline:
        pipe = cls(**model.components())
        pipe.set_progress_bar_config(disable=True)
        prepare = pipe.prepare_latents

        def spy(*args, **kwargs):
            latents, ids = prepare(*args, **kwargs)
            out[f"{name}/initial_latents"] = latents
            return latents, ids

        def step(_pipe, index, _timestep, values):
            out[f"{name}/latents.{index}"] = values["latents"]
            return {}

        pipe.prepare_latents = spy
        generator = torch.Generator().manual_seed(PIPELINE_SEED)
        final = pipe(generator=generator, callback_on_step_end=step, **common, **options).images
        out.update({f"{name}/{k}": v for k, v in pictures(pipe, final, height, width).items()})
        out[f"{name}/timesteps"], out[f"{name}/sigmas"] = pipe.scheduler.timesteps, pipe.scheduler.sigmas
        return pipe

    pipe = run("txt2img", FluxPipeline, num_inference_steps=4)
    embeds, pooled, _ = pipe.encode_prompt(PROMPTS[1], max_sequence_length=model.spec.max_sequence_length)
    factor = pipe.vae_scale_factor
    shape = (1, channels, height // factor, width // factor)
    generator = torch.Generator().manual_seed(PIPELINE_SEED)
    first, second = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    out |= {"txt2img/prompt_embeds": embeds, "txt2img/pooled": pooled, "txt2img/noise": first}
    assert torch.equal(out["txt2img/initial_latents"], pipe._pack_latents(first, *shape))

    ramp = np.add.outer(np.arange(height) * 5, np.arange(width) * 3)
    source = np.stack([ramp % 256, (ramp * 2 + 64) % 256, 255 - ramp % 256], axis=-1).astype(np.uint8)
    pipe = run("img2img", FluxImg2ImgPipeline, image=Image.fromarray(source), strength=0.6, num_inference_steps=5)
    prepared = pipe.image_processor.preprocess(Image.fromarray(source), height=height, width=width)
    posterior = model.vae.encode(prepared).latent_dist
    latents = (posterior.mean + posterior.std * first - model.vae.config.shift_factor) * model.vae.config.scaling_factor
    sigma = pipe.scheduler.sigmas[2]  # 5 steps at strength 0.6 start at the third
    assert torch.equal(out["img2img/initial_latents"], pipe._pack_latents(sigma * second + (1 - sigma) * latents, *shape))
    out |= {
        "img2img/source_u8": torch.from_numpy(source),
        "img2img/prepared": prepared,
        "img2img/mean": posterior.mean,
        "img2img/logvar": posterior.logvar,
        "img2img/posterior_noise": first,
        "img2img/image_latents": latents,
        "img2img/noise": second,
    }
    shared = {"prompt": PROMPTS[1], "width": width, "height": height, "guidance": 3.5, "seed": PIPELINE_SEED}
    requests = {"txt2img": {**shared, "steps": 4}, "img2img": {**shared, "steps": 5, "strength": 0.6, "first_step": 2}}
    return out, requests


def all_stages(model: Model) -> tuple[Tensors, dict]:
    """Tensors and scalars of every stage of `model`."""
    rows, columns = model.spec.tokens
    tokens = token_ids(model)
    tensors, requests = pipelines(model)
    tensors |= text(model, tokens) | embeddings(model) | transformer(model) | vae(model) | packing(model)
    scalars = {
        "tokens": tokens,
        "encoded": ENCODED,
        "transformer": [{**case, "rows": rows, "columns": columns} for case in CASES],
        **requests,
    }
    return tensors, scalars
