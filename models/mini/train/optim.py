"""The flow's optimizer: Muon on the matrices of the blocks, AdamW on everything else.

Muon (Jordan et al. 2024): momentum, orthogonalised by five Newton-Schulz steps. The matrices are cut into square tiles
of the model's width, so that one batched product serves all of them. Updates are scaled to the size of AdamW's (root
mean square 0.2 of the rate; Liu et al. 2025)."""

import torch


def orthogonalise(g, steps=5):
    """g [n, w, w] -> its nearest orthogonal matrices, approximately; fp32"""
    x = g.to(torch.bfloat16) if g.is_cuda else g.clone()
    norm = x.float().flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    x = x / (norm.to(x.dtype) * 1.01)
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.float()


class Optimizer:
    def __init__(self, blocks, rest, lr_muon, lr_adam, width, weight_decay=0.02, momentum=0.95):
        """blocks, rest: parameters. Muon takes the matrices of `blocks` whose sides are multiples of `width`."""
        self.width, self.weight_decay, self.momentum = width, weight_decay, momentum
        self.lr_muon, self.lr_adam = lr_muon, lr_adam
        self.matrices = [p for p in blocks if p.ndim == 2 and all(n % width == 0 for n in p.shape)]
        taken = {id(p) for p in self.matrices}
        others = [p for p in [*blocks, *rest] if id(p) not in taken]
        self.spans, n = [], 0
        for p in self.matrices:
            k = p.numel() // width**2
            self.spans.append((n, n + k))
            n += k
        device = self.matrices[0].device
        self.buffer, self.grad = (torch.zeros(n, width, width, device=device) for _ in range(2))
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=lr_adam,
            betas=(0.9, 0.99),
            eps=1e-8,
            fused=device.type == "cuda",
        )
        self.params = [*self.matrices, *others]

    def _sides(self, p):
        return p.shape[0] // self.width, p.shape[1] // self.width

    def _tiles(self, p, tiles):
        """tiles [k, width, width] in the shape of _blocks(p)"""
        rows, columns = self._sides(p)
        return tiles.view(rows, columns, self.width, self.width).permute(0, 2, 1, 3)

    def _blocks(self, p):
        rows, columns = self._sides(p)
        return p.view(rows, self.width, columns, self.width)

    @torch.no_grad()
    def step(self, rate):
        """One update at `rate` times the learning rates."""
        tiles = [self._tiles(p, self.grad[a:b]) for p, (a, b) in zip(self.matrices, self.spans)]
        torch._foreach_copy_(tiles, [self._blocks(p.grad) for p in self.matrices])
        self.buffer.lerp_(self.grad, 1 - self.momentum)
        update = orthogonalise(torch.lerp(self.grad, self.buffer, self.momentum))
        lr = self.lr_muon * rate
        torch._foreach_mul_(self.matrices, 1 - lr * self.weight_decay)
        updates = [self._tiles(p, update[a:b]) for p, (a, b) in zip(self.matrices, self.spans)]
        torch._foreach_add_([self._blocks(p) for p in self.matrices], updates, alpha=-lr * 0.2 * self.width**0.5)
        for group in self.adam.param_groups:
            group["lr"] = self.lr_adam * rate
        self.adam.step()

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def state_dict(self):
        return {"buffer": self.buffer, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        self.buffer.copy_(state["buffer"])
        self.adam.load_state_dict(state["adam"])
