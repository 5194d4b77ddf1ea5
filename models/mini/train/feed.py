"""Compositions with their tokens, drawn up by processes beside the training."""

import multiprocessing as mp
import signal

import numpy as np
import torch

from compositions import Compositions
from tokens import load_tokenizers, tokenize


def _work(queue, items, seed, n):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    compositions, tokenizers = Compositions(items, seed), load_tokenizers()
    while True:
        layers, backgrounds, captions = compositions.batch(n)
        queue.put((layers, backgrounds, *tokenize(tokenizers, captions)))


class Feed:
    """Construct it before CUDA starts: the workers are forked."""

    def __init__(self, items, seed, workers, chunk=128):
        context = mp.get_context("fork")
        self.items, self.pending, self.available = items, [], 0
        self.queue = context.Queue(maxsize=96)
        self.workers = [
            context.Process(target=_work, args=(self.queue, items, seed + 7919 * i, chunk), daemon=True)
            for i in range(workers)
        ]
        for w in self.workers:
            w.start()

    def take(self, n, device):
        """The next n compositions: layers (on the CPU, as the compositor wants them), backgrounds, CLIP ids, T5 ids."""
        while self.available < n:
            self.pending.append(self.queue.get(timeout=120))
            self.available += len(self.pending[-1][0])
        whole = [np.concatenate(parts) for parts in zip(*self.pending)]
        self.available -= n
        self.pending = [tuple(a[n:] for a in whole)] if self.available else []
        return to_device([a[:n] for a in whole], device)

    def fixed(self, n, seed, device):
        """n compositions that depend on `seed` alone, and their captions."""
        layers, backgrounds, captions = Compositions(self.items, seed).batch(n)
        return to_device([layers, backgrounds, *tokenize(load_tokenizers(), captions)], device), captions

    def close(self):
        for w in self.workers:
            w.terminate()


def to_device(arrays, device):
    layers, *rest = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    if device.type == "cuda":
        rest = [t.pin_memory().to(device, non_blocking=True) for t in rest]
    return layers, *rest
