"""The art and the shapes at hand, and the compositor that draws compositions from them on the training device."""

import io
import json
import math
import os
from multiprocessing.dummy import Pool  # threads: the decoder releases the GIL

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from compositions import SHADES, SOLID
from config import DATA, RES
from words import SHAPES


def load_items():
    with open(os.path.join(DATA, "art.json")) as f:
        return json.load(f)["items"]


def shape_masks(res=RES, oversampling=3):
    """Alpha masks of SHAPES, uint8 [n, res, res]."""
    n = res * oversampling
    y, x = (v / n * 2 - 1 for v in np.mgrid[0:n, 0:n] + 0.5)

    def polygon(points):
        image = Image.new("L", (n, n), 0)
        ImageDraw.Draw(image).polygon([((px + 1) / 2 * n, (py + 1) / 2 * n) for px, py in points], fill=255)
        return np.asarray(image) > 0

    def ring_point(k, of, radius, start=-math.pi / 2):
        return radius * math.cos(2 * math.pi * k / of + start), radius * math.sin(2 * math.pi * k / of + start)

    r = np.hypot(x, y)
    hx, hy = x * 1.25, -y * 1.2 + 0.18
    masks = {
        "circle": r < 0.95,
        "square": (abs(x) < 0.85) & (abs(y) < 0.85),
        "triangle": polygon([(0, -0.9), (0.95, 0.8), (-0.95, 0.8)]),
        "star": polygon([ring_point(k, 10, 0.98 if k % 2 == 0 else 0.40) for k in range(10)]),
        "heart shape": (hx**2 + hy**2 - 1) ** 3 - hx**2 * hy**3 < 0,
        "diamond": abs(x) / 0.72 + abs(y) / 0.95 < 1,
        "hexagon": polygon([ring_point(k, 6, 0.95, 0) for k in range(6)]),
        "ring": (r < 0.95) & (r > 0.58),
        "cross": ((abs(x) < 0.3) & (abs(y) < 0.9)) | ((abs(y) < 0.3) & (abs(x) < 0.9)),
        "rectangle": (abs(x) < 0.95) & (abs(y) < 0.55),
        "oval": (x / 0.97) ** 2 + (y / 0.6) ** 2 < 1,
        "crescent": (r < 0.92) & (np.hypot(x - 0.42, y + 0.1) > 0.75),
    }
    cells = (masks[s].astype(np.float32).reshape(res, oversampling, res, oversampling) for s in SHAPES)
    return (np.stack([c.mean((1, 3)) for c in cells]) * 255 + 0.5).astype(np.uint8)


def load_atlas(items, threads):
    """-> uint8 [items + shapes, 4, RES, RES]: the art, then the shapes in white; premultiplied"""
    with open(os.path.join(DATA, "art128.bin"), "rb") as f:
        blob = f.read()

    def decode(item):
        at, size = item["at"]
        return np.array(Image.open(io.BytesIO(blob[at : at + size])).convert("RGBA")).transpose(2, 0, 1)

    n = len(items)
    atlas = torch.zeros(n + len(SHAPES), 4, RES, RES, dtype=torch.uint8)
    with Pool(threads) as pool:
        for i, art in enumerate(pool.imap(decode, items, chunksize=16)):
            atlas[i] = torch.from_numpy(art.copy())
    atlas[n:] = torch.from_numpy(shape_masks())[:, None].expand(-1, 4, -1, -1)
    return atlas


class Compositor:
    def __init__(self, atlas, device):
        self.device = torch.device(device)
        self.full = atlas.to(device)
        # Small layers are drawn from art of half the size: bilinear sampling alone would alias.
        self.half = torch.empty(len(atlas), 4, RES // 2, RES // 2, dtype=torch.uint8, device=device)
        for i in range(0, len(atlas), 256):
            self.half[i : i + 256] = F.avg_pool2d(self.full[i : i + 256].float(), 2).round().to(torch.uint8)
        self.ramp = torch.linspace(0, 1, RES, device=device).view(1, 1, RES, 1)
        self.luma = torch.tensor([0.3, 0.59, 0.11], device=device).view(1, 3, 1, 1)

    def __call__(self, layers, backgrounds):
        """layers [B, 3, 8] on the CPU, backgrounds [B, 6] on the device -> [B, 3, RES, RES] in -1..1"""
        n = len(layers)
        picture = backgrounds[:, :3, None, None] * (1 - self.ramp) + backgrounds[:, 3:, None, None] * self.ramp
        picture = picture.expand(n, 3, RES, RES).clone()
        for k in range(layers.shape[1]):
            for source, low, high in ((self.full, 0.52, 9.0), (self.half, 0.0, 0.52)):
                layer = layers[:, k]
                at = ((layer[:, 0] >= 0) & (layer[:, 3] >= low) & (layer[:, 3] < high)).nonzero()[:, 0]
                if at.numel() == 0:
                    continue
                layer = layer[at]
                if self.device.type == "cuda":
                    layer, at = (v.pin_memory().to(self.device, non_blocking=True) for v in (layer, at))
                art = self._placed(self._colored(source[layer[:, 0].long()].float() / 255, layer), layer)
                picture[at] = art[:, :3] + picture[at] * (1 - art[:, 3:])
        return (picture * 2 - 1).clamp(-1, 1)

    def _colored(self, art, layer):
        rgb, alpha = art[:, :3], art[:, 3:]
        mode, color = layer[:, 4].view(-1, 1, 1, 1), layer[:, 5:8].view(-1, 3, 1, 1)
        light = (rgb * self.luma).sum(1, keepdim=True) / alpha.clamp_min(1 / 255)
        light = light.clamp(0, 1) * 0.85 + 0.05
        shades = torch.where(light < 0.5, color * 2 * light, color + (1 - color) * (2 * light - 1)) * alpha
        rgb = torch.where(mode == SOLID, color * alpha, torch.where(mode == SHADES, shades, rgb))
        return torch.cat([rgb, alpha], 1)

    def _placed(self, art, layer):
        inverse = 1 / layer[:, 3]
        theta = torch.zeros(len(layer), 2, 3, device=self.device)
        theta[:, 0, 0] = theta[:, 1, 1] = inverse
        theta[:, 0, 2], theta[:, 1, 2] = -layer[:, 1] * inverse, -layer[:, 2] * inverse
        grid = F.affine_grid(theta, (len(layer), 4, RES, RES), align_corners=False)
        return F.grid_sample(art, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
