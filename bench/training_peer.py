"""Times LoRA training of the bundled model in PyTorch, diffusers and peft on the CPU, in fp32.

Run by the training benchmark next to this project's own engine: same weights, pictures, captions, recipe and threads.
Prints one JSON line with gradient checkpointing, then one without.
Needs the packages of test/golden/requirements.txt.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test" / "golden"))

import numpy  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402
from PIL import Image  # noqa: E402

from mini import load_pipeline  # noqa: E402
from peer import peak_rss_mb  # noqa: E402
from stages import image_ids  # noqa: E402
from training import ALL, ATTENTION, OUTER  # noqa: E402


def encode(pipe, args: argparse.Namespace, length: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(latents as the transformer sees them but unpacked, text, pooled text) of every picture."""
    items = []
    for path in sorted((args.dataset / "images").iterdir()):
        caption = (args.dataset / "prompts" / f"{path.stem}.txt").read_text().strip()
        picture = Image.open(path).convert("RGB").resize((args.resolution, args.resolution), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(numpy.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.sample()
        latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        text, pooled, _ = pipe.encode_prompt(caption, None, max_sequence_length=length)
        items.append((latents, text, pooled))
    return items


def batch_loss(pipe, model, items, args: argparse.Namespace) -> torch.Tensor:
    """Mean squared error of the velocity for one micro-batch, at random noise levels."""
    latents, text, pooled = (torch.cat(parts) for parts in zip(*items, strict=True))
    noise = torch.randn_like(latents)
    sigma = torch.sigmoid(torch.randn(len(latents)))
    mix = sigma[:, None, None, None]
    height, width = latents.shape[2:]
    pack = lambda x: pipe._pack_latents(x, len(x), x.shape[1], height, width)  # noqa: E731
    velocity = model(
        hidden_states=pack(mix * noise + (1 - mix) * latents),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=sigma,
        guidance=torch.full_like(sigma, args.guidance),
        txt_ids=torch.zeros(text.shape[1], 3),
        img_ids=image_ids(height // 2, width // 2),
        return_dict=False,
    )[0]
    return (velocity - pack(noise - latents)).square().mean()


def train(pipe, model, items, args: argparse.Namespace) -> dict:
    """One epoch; the first step is a warm-up."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate)
    times, losses = [], []
    order = torch.randperm(len(items)).tolist()
    for step in range(args.steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        total = 0.0
        for micro in range(args.accumulation):
            first = (step * args.accumulation + micro) * args.batch
            chosen = [items[i] for i in order[first : first + args.batch]]
            loss = batch_loss(pipe, model, chosen, args) / args.accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step:
            times.append(round((time.perf_counter() - began) * 1e3, 2))
            losses.append(round(total, 4))
    return {"step_ms": times, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "mini")
    parser.add_argument("--dataset", type=Path, required=True, help="folder with images/ and prompts/")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one untimed")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--alpha", type=int, default=8)
    parser.add_argument("--targets", choices=("attention", "all"), default="attention")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    length = json.loads((args.model / "model_index.json").read_text())["max_sequence_length"]
    pipe = load_pipeline(args.model)
    with torch.inference_mode():
        encoded = encode(pipe, args, length)
    # Tensors of inference mode may not enter a backward pass.
    items = [tuple(tensor.clone() for tensor in item) for item in encoded]
    model = pipe.transformer.requires_grad_(False)
    modules = ALL if args.targets == "all" else ATTENTION
    model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=modules, exclude_modules=OUTER))
    model.train()
    # With checkpointing first: the peak of memory is that of the process so far.
    for checkpointing in (True, False):
        if checkpointing:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        line = {"torch": torch.__version__, "gradient_checkpointing": checkpointing}
        print(json.dumps(line | train(pipe, model, items, args) | {"peak_mb": round(peak_rss_mb(), 1)}), flush=True)


if __name__ == "__main__":
    main()
