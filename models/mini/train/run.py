"""A training run: networks, their averages, progress, and the checkpoint that a later call goes on from."""

import copy
import os
import time

import torch
import torch.nn as nn

import config
import export
from artwork import Compositor, load_atlas
from model.text import ClipText, T5Encoder
from model.transformer import Flux
from model.vae import AutoEncoder
from rectified_flow import LatentBuffer, encode_text, frozen_copy, latents_of, rope
from tokens import load_tokenizers, tokenize


def new_networks():
    dit, clip, t5 = Flux(config.TRANSFORMER), ClipText(config.CLIP), T5Encoder(config.T5)
    nets = nn.ModuleDict({"dit": dit.init_weights(), "clip": clip.init_weights(), "t5": t5.init_weights()})
    return AutoEncoder(config.VAE), nets


class Run:
    """args: train.py's. The networks that are kept are the averages, `ema` and `ema_vae`."""

    def __init__(self, args, feed):
        self.args, self.feed, self.started = args, feed, time.time()
        self.stop_requested = False
        for folder in (args.out, args.state):
            os.makedirs(folder, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cuda = self.device.type == "cuda"
        self.half = torch.bfloat16 if self.cuda else torch.float32
        self.memory_format = torch.channels_last if self.cuda else torch.contiguous_format
        if self.cuda:
            torch.backends.cudnn.benchmark = True
            set_tf32(True)
        self.compositor = Compositor(load_atlas(feed.items, os.cpu_count() or 2), self.device)

        torch.manual_seed(args.seed)
        vae, nets = new_networks()
        self.vae = vae.to(self.device, memory_format=self.memory_format)
        self.nets = nets.to(self.device)
        self.ema_vae, self.ema = frozen_copy(self.vae), frozen_copy(self.nets)
        self.stage, self.scale, self.shift = "vae", None, None
        self.steps = {"vae": 0, "flow": 0, "distill": 0}
        self.seconds = {"vae": 0.0, "flow": 0.0, "distill": 0.0}
        self.metrics = {}
        self.teacher = self.optimizer = self.saved_optimizer = None
        self._restore()
        torch.manual_seed(args.seed + sum(self.steps.values()))  # a later call must not repeat the noise

        self.rope = rope(self.device)
        self.null = tuple(torch.from_numpy(a).to(self.device) for a in tokenize(load_tokenizers(), [""]))
        with torch.no_grad():  # fills T5's position buckets before anything is compiled
            encode_text(self.nets, *self.null), encode_text(self.ema, *self.null)

    def log(self, *words):
        line = f"[{time.time() - self.started:6.1f}] " + " ".join(str(w) for w in words)
        print(line, flush=True)
        with open(os.path.join(self.args.out, "log.txt"), "a") as f:
            f.write(line + "\n")

    def should_stop(self):
        limit = self.args.seconds
        return self.stop_requested or (limit is not None and time.time() - self.started >= limit)

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.cuda)

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def draw(self, n):
        return self.feed.take(n, self.device)

    def latent_buffer(self):
        encoder = copy.deepcopy(self.ema_vae).to(self.half, memory_format=self.memory_format)

        def encode(layers, backgrounds):
            return latents_of(encoder, self.compositor, layers, backgrounds, self.scale, self.shift, self.half)

        buffer = LatentBuffer(self.args.buffer, self.draw, encode, self.half, self.device)
        while buffer.filled < min(self.args.prefill, self.args.buffer):
            buffer.add(min(512, self.args.prefill))
        latents = buffer.latents[: buffer.filled].float()
        self.log(f"{buffer.filled} latents, mean {latents.mean():.3f}, std {latents.std():.3f}")
        return buffer

    # ------------------------------------------------------------ checkpoint
    def _path(self):
        return os.path.join(self.args.state, "state.pt")

    def save(self):
        state = {
            "progress": {k: getattr(self, k) for k in ("stage", "scale", "shift", "steps", "seconds", "metrics")},
            "networks": [m.state_dict() for m in (self.vae, self.ema_vae, self.nets, self.ema)],
            "teacher": self.teacher and self.teacher.state_dict(),
            "optimizer": self.optimizer and (self.stage, self.optimizer.state_dict()),
        }
        torch.save(state, self._path() + ".new")
        os.replace(self._path() + ".new", self._path())

    def _restore(self):
        if os.path.exists(self._path()):
            state = torch.load(self._path(), map_location="cpu", weights_only=True)
            for k, v in state["progress"].items():
                setattr(self, k, v)
            for m, weights in zip((self.vae, self.ema_vae, self.nets, self.ema), state["networks"]):
                m.load_state_dict(weights)
            if state["teacher"]:
                self.teacher = frozen_copy(self.ema)
                self.teacher.load_state_dict(state["teacher"])
            self.saved_optimizer = state["optimizer"]
            self.log("goes on with", self.stage, "after", self.steps)
        elif self.args.init:
            parts = export.load(self.args.init)
            for m in (self.vae, self.ema_vae):
                m.load_state_dict(parts["vae"])
            for m in (self.nets, self.ema):
                for part in ("dit", "clip", "t5"):
                    m[part].load_state_dict(parts[part])
            self.stage = "flow"
            self.scale, self.shift = (parts["ae_config"][k] for k in ("scaling_factor", "shift_factor"))

    def use_optimizer(self, optimizer):
        """Takes the stage's optimizer, with what the checkpoint holds of it."""
        self.optimizer = optimizer
        if self.saved_optimizer and self.saved_optimizer[0] == self.stage:
            optimizer.load_state_dict(self.saved_optimizer[1])
        self.saved_optimizer = None

    def finish_stage(self, following):
        self.log(self.stage, "done:", self.steps[self.stage], "steps,", round(self.seconds[self.stage]), "s")
        self.stage, self.optimizer = following, None
        self.save()


def set_tf32(on):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def update_average(average, module, decay):
    with torch.no_grad():
        parameters = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)


class Compiled:
    """Compiles the modules in place, on a GPU; eager again on leaving. For blocks: whole networks take minutes."""

    def __init__(self, run, modules):
        self.modules = modules if run.cuda and run.args.compile else []

    def __enter__(self):
        if self.modules:  # blocks of a kind share their code, and with it the count of compilations
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 256
            dynamo.automatic_dynamic_shapes = False
        for m in self.modules:
            m.compile(dynamic=False)

    def __exit__(self, *_):
        for m in self.modules:
            m._compiled_call_impl = None


class Meter:
    """Adds up a step's figures on the device, and logs and saves now and then."""

    LOG_SECONDS, SAVE_SECONDS = 10, 100

    def __init__(self, run, batch):
        self.run, self.batch = run, batch
        self.sums, self.n = None, 0
        self.tick = self.logged = self.saved = time.time()

    def step(self, **figures):
        """Counts a step of the run's stage; figures: scalars on the device."""
        run, stage = self.run, self.run.stage
        run.steps[stage] += 1
        values = torch.stack([f.detach().float() for f in figures.values()])
        self.sums = values if self.sums is None else self.sums + values
        self.n += 1
        if run.steps[stage] % 10 == 0:
            run.synchronize()
        now = time.time()
        run.seconds[stage] += now - self.tick
        self.tick = now
        if now - self.logged > self.LOG_SECONDS:
            means = (self.sums / self.n).tolist()
            if not all(abs(m) < float("inf") for m in means):
                raise RuntimeError(f"{stage}: not finite at step {run.steps[stage]}; lower the learning rate")
            text = " ".join(f"{k} {m:.4f}" for k, m in zip(figures, means))
            run.log(f"{stage} {run.steps[stage]}: {text}, {self.n / (now - self.logged):.1f} steps/s of {self.batch}")
            self.sums, self.n, self.logged = None, 0, now
        if now - self.saved > self.SAVE_SECONDS:
            run.save()
            self.saved = time.time()
