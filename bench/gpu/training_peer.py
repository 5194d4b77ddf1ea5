"""Times optimizer steps of a LoRA on FLUX.1-dev's architecture with random bf16 weights in PyTorch, diffusers and peft.

The counterpart of training.ts: same sizes, rank and modules, gradient checkpointing, LoRA and AdamW in fp32, bf16
autocast. Prints one JSON line. Needs torch with CUDA and the packages of test/golden/requirements.txt; tries itself out
with --device cpu --blocks 1,1 --resolution 64 --text 32.
"""

import argparse
import json
import statistics
import time

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
MLP = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"]
# proj_out is also the name of the model's last layer, which is not trained.
OUTER = r"^proj_out$"


def build(args: argparse.Namespace) -> FluxTransformer2DModel:
    """The transformer with random weights, never initialised on the CPU, and its LoRA in fp32."""
    double, single = args.blocks
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True, num_layers=double, num_single_layers=single)
    model = model.to(torch.bfloat16).to_empty(device=args.device).requires_grad_(False)
    for tensor in model.parameters():
        if tensor.dim() > 1:
            tensor.normal_(0, 0.03)
        else:
            tensor.zero_()
    for name, tensor in model.named_parameters():
        if "norm_" in name and tensor.dim() == 1 and name.endswith("weight"):
            tensor.fill_(1)
    modules = ATTENTION + MLP if args.targets == "all" else ATTENTION
    model.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=modules, exclude_modules=OUTER)
    )
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.data = tensor.data.float()
    model.enable_gradient_checkpointing()
    return model.train()


def loss_of(model, args: argparse.Namespace) -> torch.Tensor:
    """Mean squared error of the velocity of a batch of random latents at random noise levels."""
    side = args.resolution // 16
    tokens = side * side
    random = {"device": args.device, "dtype": torch.float32}
    latents = torch.randn(args.batch, tokens, 64, **random)
    noise = torch.randn_like(latents)
    sigma = torch.sigmoid(torch.randn(args.batch, **random))
    mix = sigma[:, None, None]
    ids = torch.zeros(side, side, 3, **random)
    ids[..., 1] += torch.arange(side, device=args.device)[:, None]
    ids[..., 2] += torch.arange(side, device=args.device)[None]
    with torch.autocast(args.device, torch.bfloat16):
        velocity = model(
            hidden_states=(mix * noise + (1 - mix) * latents).bfloat16(),
            encoder_hidden_states=torch.randn(args.batch, args.text, 4096, **random).bfloat16(),
            pooled_projections=torch.randn(args.batch, 768, **random).bfloat16(),
            timestep=sigma,
            guidance=torch.ones_like(sigma),
            txt_ids=torch.zeros(args.text, 3, **random),
            img_ids=ids.reshape(tokens, 3),
            return_dict=False,
        )[0]
    return (velocity.float() - (noise - latents)).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=lambda text: tuple(map(int, text.split(","))), default=(19, 38))
    parser.add_argument("--resolution", type=int, default=768)
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one untimed")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--targets", choices=("attention", "all"), default="attention")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(1)
    model = build(args)
    parameters = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    on_gpu = args.device == "cuda"
    times, losses = [], []
    for _ in range(args.steps + 1):
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        optimizer.zero_grad()
        total = 0.0
        for _ in range(args.accumulation):
            loss = loss_of(model, args) / args.accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        losses.append(round(total, 4))
    first, *later = times
    result = {
        "who": "peft",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "resolution": args.resolution,
        "text": args.text,
        "blocks": args.blocks,
        "batch": args.batch,
        "accumulation": args.accumulation,
        "rank": args.rank,
        "targets": args.targets,
        "trained": sum(tensor.numel() for tensor in parameters),
        "first_step_s": round(first, 4),
        "step_s": round(statistics.median(later), 4),
        "losses": losses,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if on_gpu else None,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
