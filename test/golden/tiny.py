"""The two tiny random models: shapes, weights and the files they are stored in.

Their widths share nothing with FLUX.1 and differ from each other in every number, so that a constant
copied from the real model, or two dimensions swapped, cannot pass.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers import CLIPTokenizer

import layouts

CLIP_LENGTH = 77
MINI = "../../../../models/mini"  # from a fixture folder, as written into its catalog entry


@dataclass(frozen=True)
class Spec:
    """One model: its configurations, how it is stored, and the sizes its goldens are made at."""

    name: str
    seed: int
    layout: str  # 'bfl' (single files) or 'diffusers' (folders, sharded)
    max_sequence_length: int
    transformer: dict
    vae: dict
    clip: dict
    t5: dict
    scheduler: dict
    stored: dict[str, torch.dtype]  # number formats of the component files that are not fp32
    tokens: tuple[int, int]  # rows, columns of image tokens in the stage goldens
    pixels: tuple[int, int]  # height, width of the pipeline goldens


def _vae(channels: tuple[int, ...], **rest) -> dict:
    levels = len(channels)
    return dict(
        in_channels=3, out_channels=3, block_out_channels=channels, act_fn="silu",
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=True, force_upcast=False, **rest,
    )  # fmt: skip


DEV = Spec(
    name="tiny-dev", seed=1, layout="bfl", max_sequence_length=24, tokens=(4, 7), pixels=(48, 64),
    stored={"text_encoder": torch.float16, "text_encoder_2": torch.float16},
    transformer=dict(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=20,
        num_attention_heads=3, joint_attention_dim=40, pooled_projection_dim=24, guidance_embeds=True,
        axes_dims_rope=(4, 8, 8),
    ),
    vae=_vae((8, 16, 24), latent_channels=4, layers_per_block=1, norm_num_groups=4, scaling_factor=0.73, shift_factor=0.21),
    # 2 is the end id that configs written before transformers 4.31 carry: it selects the pooling by the largest id.
    clip=dict(hidden_size=24, intermediate_size=72, num_attention_heads=3, num_hidden_layers=2, hidden_act="quick_gelu", eos_token_id=2),
    t5=dict(d_model=40, d_kv=12, d_ff=56, num_heads=3, num_layers=3, relative_attention_num_buckets=32, relative_attention_max_distance=128),
    scheduler=dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True),
)  # fmt: skip

SCHNELL = Spec(
    name="tiny-schnell", seed=2, layout="diffusers", max_sequence_length=16, tokens=(5, 4), pixels=(16, 32),
    stored={"vae": torch.bfloat16, "text_encoder_2": torch.bfloat16},
    transformer=dict(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=2, attention_head_dim=24,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=20, guidance_embeds=False,
        axes_dims_rope=(4, 10, 10),
    ),
    vae=_vae((12, 18), latent_channels=2, layers_per_block=2, norm_num_groups=6, scaling_factor=1.31, shift_factor=-0.17),
    clip=dict(hidden_size=20, intermediate_size=52, num_attention_heads=4, num_hidden_layers=3, hidden_act="gelu"),
    t5=dict(d_model=32, d_kv=10, d_ff=44, num_heads=4, num_layers=2, relative_attention_num_buckets=12, relative_attention_max_distance=20),
    scheduler=dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
)  # fmt: skip


def randomise(model: torch.nn.Module, generator: torch.Generator, gains: dict[str, float]) -> None:
    """Fills every parameter: matrices to keep rms 1, norm gains around 1, biases small; nothing stays 0 or 1.

    `gains` multiplies the tensors whose name ends in the given text.
    """
    norm = {f"{n}.weight" for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            value = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:
                value = 1 + 0.25 * value if name in norm else 0.2 * value
            elif "embedding.weight" not in name and "shared" not in name and "relative" not in name:
                value = value / tensor[0].numel() ** 0.5
            gain = next((g for suffix, g in gains.items() if name.endswith(suffix)), 1.0)
            tensor.copy_(gain * value)


@dataclass
class Model:
    """The modules of one spec, in eval mode and fp32."""

    spec: Spec
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: PreTrainedTokenizerFast
    scheduler: FlowMatchEulerDiscreteScheduler

    def components(self) -> dict:
        """Arguments of FluxPipeline and FluxImg2ImgPipeline."""
        return {k: v for k, v in vars(self).items() if k != "spec"}


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, PreTrainedTokenizerFast]:
    """Tokenizers from tokenizer.json. T5Tokenizer would drop the normalizer of the file, hence the generic class."""
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=CLIP_LENGTH)
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return clip, PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer_2" / "tokenizer.json"), **special)


def build(spec: Spec, mini: Path) -> Model:
    """Random model of `spec`, with the tokenizers and vocabulary sizes of the model folder `mini`."""

    def vocabulary(name: str) -> int:
        return json.loads((mini / name / "config.json").read_text())["vocab_size"]

    def special_tokens() -> dict[str, int]:
        config = json.loads((mini / "text_encoder" / "config.json").read_text())
        return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}

    generator = torch.Generator().manual_seed(spec.seed)
    transformer = FluxTransformer2DModel(**spec.transformer).eval()
    # Gates of rms about 0.5 keep the residual stream near 1 through the blocks.
    randomise(transformer, generator, {"norm1.linear.weight": 0.6, "norm1_context.linear.weight": 0.6, "norm.linear.weight": 0.6})
    vae = AutoencoderKL(**spec.vae).eval()
    # The decoder's last layer is small so that few pixels clip at 0 or 255.
    randomise(vae, generator, {"decoder.conv_out.weight": 0.4, "conv2.weight": 0.6, "to_out.0.weight": 0.6})
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary("text_encoder"), max_position_embeddings=CLIP_LENGTH, **(special_tokens() | spec.clip),
    )).eval()  # fmt: skip
    randomise(clip, generator, {"fc2.weight": 0.6, "out_proj.weight": 0.6})
    t5 = T5EncoderModel(T5Config(
        vocab_size=vocabulary("text_encoder_2"), feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        is_encoder_decoder=False, use_cache=False, **spec.t5,
    )).eval()  # fmt: skip
    # T5 does not divide the attention logits by the root of the head width.
    randomise(t5, generator, {"SelfAttention.q.weight": spec.t5["d_kv"] ** -0.5})
    scheduler = FlowMatchEulerDiscreteScheduler(**spec.scheduler)
    model = Model(spec, transformer, vae, clip, t5, *load_tokenizers(mini), scheduler)
    for name, dtype in spec.stored.items():
        for tensor in getattr(model, name).parameters():
            tensor.data = tensor.to(dtype).float()  # the goldens are those of the rounded weights
    return model


def write_json(path: Path, value: object, compact: bool = False) -> None:
    """JSON with a final newline, folders made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    style = dict(separators=(",", ":")) if compact else dict(indent=2)
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, **style) + "\n")


def write_tensors(path: Path, tensors: layouts.Tensors, shards: int = 1) -> None:
    """One safetensors file, or `shards` of them with the index.json that transformers and diffusers write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().clone().contiguous() for name, t in sorted(tensors.items())}
    if shards == 1:
        return save_file(tensors, path, metadata={"format": "pt"})
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"{path.stem}-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]  # interleaved, so that every module needs both files
        save_file({n: tensors[n] for n in part}, path.with_name(file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(path.with_name(path.name + ".index.json"), {"metadata": {"total_size": size}, "weight_map": weight_map})


def save(model: Model, folder: Path) -> None:
    """Writes the model's files and its catalog entry `model.json` in the layout its spec asks for."""
    spec, bfl = model.spec, model.spec.layout == "bfl"

    def weights(name: str) -> layouts.Tensors:
        dtype = spec.stored.get(name, torch.float32)
        return {n: t.to(dtype) for n, t in getattr(model, name).state_dict().items()}

    transformer, vae = weights("transformer"), weights("vae")
    configs = {
        "transformer": {"_class_name": "FluxTransformer2DModel", **spec.transformer},
        "vae": {"_class_name": "AutoencoderKL", **spec.vae},
    }
    if bfl:
        write_tensors(folder / "transformer.safetensors", layouts.transformer_to_bfl(transformer))
        write_tensors(folder / "ae.safetensors", layouts.autoencoder_to_bfl(vae, len(spec.vae["block_out_channels"])))
        write_json(folder / "transformer_config.json", configs["transformer"])
        write_json(folder / "ae_config.json", configs["vae"])
    else:
        write_tensors(folder / "transformer/diffusion_pytorch_model.safetensors", transformer, shards=2)
        write_tensors(folder / "vae/diffusion_pytorch_model.safetensors", vae)
        for name, config in configs.items():
            write_json(folder / name / "config.json", config)
    # Published CLIP folders keep the text_model prefix that transformers 5 dropped in memory.
    clip = {n if n.startswith("text_model.") else f"text_model.{n}": t for n, t in weights("text_encoder").items()}
    t5 = {n: t for n, t in weights("text_encoder_2").items() if n != "encoder.embed_tokens.weight"}
    write_tensors(folder / "text_encoder/model.safetensors", clip)
    write_tensors(folder / "text_encoder_2/model.safetensors", t5, shards=1 if bfl else 2)
    for name in ("text_encoder", "text_encoder_2"):
        module = getattr(model, name)
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder / name)
    write_json(folder / "scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", **spec.scheduler})
    files = {
        "transformer": "transformer.safetensors" if bfl else "transformer",
        "vae": "ae.safetensors" if bfl else "vae",
        "text_encoder": "text_encoder",
        "text_encoder_2": "text_encoder_2",
        "tokenizer": f"{MINI}/tokenizer",
        "tokenizer_2": f"{MINI}/tokenizer_2",
        "scheduler": "scheduler",
    }
    entry = {"name": spec.name, "family": "flux", "files": files, "max_sequence_length": spec.max_sequence_length}
    write_json(folder / "model.json", entry)
