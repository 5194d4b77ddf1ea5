"""Times FLUX.1-dev's architecture with random weights in diffusers on a GPU; prints one JSON line a measurement.

Run by the benchmark next to this project's own engine, on the same card in the same sitting. Needs torch with CUDA and
the packages of test/golden/requirements.txt.
"""

import argparse
import gc
import json
import statistics
import time

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

TEXT_TOKENS = 512
BLOCK_LINEARS = [
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out",
]  # fmt: skip


def random_weights(make):
    """The module that `make` returns, in bf16 on the GPU, without ever being initialised on the CPU."""
    with torch.device("meta"):
        module = make()
    module = module.to(torch.bfloat16).to_empty(device="cuda").eval().requires_grad_(False)
    for tensor in module.parameters():
        tensor.normal_(0, 0.02)
    for name, tensor in module.named_buffers():
        if name.endswith("position_ids"):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    return module


def build(blocks: tuple[int, int]) -> FluxPipeline:
    transformer = random_weights(
        lambda: FluxTransformer2DModel(guidance_embeds=True, num_layers=blocks[0], num_single_layers=blocks[1])
    )
    t5 = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
        "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    }  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=4096
    )
    return FluxPipeline(
        scheduler=scheduler, vae=random_weights(lambda: AutoencoderKL(**vae)),
        text_encoder=random_weights(lambda: CLIPTextModel(clip)), tokenizer=None,
        text_encoder_2=random_weights(lambda: T5EncoderModel(t5)), tokenizer_2=None, transformer=transformer,
    )  # fmt: skip


def encode(pipe: FluxPipeline) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 32000, (1, TEXT_TOKENS), device="cuda")
    text = pipe.text_encoder_2(ids).last_hidden_state
    pooled = pipe.text_encoder(torch.randint(0, 49000, (1, 77), device="cuda")).pooler_output
    return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}


@torch.inference_mode()
def job(pipe: FluxPipeline, size: int, steps: int) -> dict[str, float]:
    marks: list[float] = []

    def mark(_pipe, _index, _timestep, _values):
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return {}

    torch.cuda.synchronize()
    begin = time.perf_counter()
    embeds = encode(pipe)
    torch.cuda.synchronize()
    encoded = time.perf_counter()
    pipe(
        **embeds, num_inference_steps=steps, guidance_scale=3.5, height=size, width=size, output_type="np",
        generator=torch.Generator().manual_seed(1), callback_on_step_end=mark,
    )  # fmt: skip
    torch.cuda.synchronize()
    end = time.perf_counter()
    between = [(b - a) * 1e3 for a, b in zip(marks, marks[1:])]
    return {
        "total_ms": (end - begin) * 1e3,
        "text_ms": (encoded - begin) * 1e3,
        "step_ms": statistics.median(between),
        "decode_ms": (end - marks[-1]) * 1e3,
    }


def measure(pipe: FluxPipeline, what: str, sizes: list[int], steps: list[int]) -> None:
    for size in sizes:
        torch.cuda.reset_peak_memory_stats()
        for count in steps if size == max(sizes) else steps[:1]:
            job(pipe, size, 3)
            line = {"peer": "diffusers", "what": what, "size": size, "steps": count, **job(pipe, size, count)}
            line["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            print(json.dumps({key: round(v, 2) if isinstance(v, float) else v for key, v in line.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="512,768,1024", help="comma-separated square sizes in pixels")
    parser.add_argument("--steps", default="20,28")
    parser.add_argument("--blocks", default="19,38", help="double,single blocks; fewer to try this script out")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    args = parser.parse_args()
    sizes, steps, blocks = ([int(n) for n in text.split(",")] for text in (args.sizes, args.steps, args.blocks))
    largest = [max(sizes)]
    pipe = build((blocks[0], blocks[1]))
    pipe.set_progress_bar_config(disable=True)
    measure(pipe, "bf16 eager", sizes, steps)
    pipe.transformer.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=BLOCK_LINEARS))
    pipe.transformer.to(torch.bfloat16).requires_grad_(False)
    measure(pipe, "bf16 eager, LoRA r16 on all linears, unfused", largest, steps[:1])
    if args.compile:
        pipe.transformer.delete_adapters("default")
        pipe.transformer.compile()
        measure(pipe, "bf16 compiled", largest, steps[:1])
        torch.compiler.reset()
    del pipe
    gc.collect()
    torch.cuda.empty_cache()
    pipe = build((blocks[0], blocks[1]))
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    measure(pipe, "fp8 layerwise casting", largest, steps[:1])


if __name__ == "__main__":
    main()
