"""Prompt following, measured on pictures of the 64 prompts of follow_prompts.json with four seeds each.

  python follow.py SHEET.png      (16 x 16 tiles of 128 px: prompt p with seed s at tile 4p + s)

Any engine may have drawn the sheet; it needs the artwork of pack.py.
Background: mean colour of the four 6 px corners; right when the asked one of the 19 named colours is the nearest.
Shape: median of the pixels that differ from the background; right when its nearest named colour is the asked one.
Subject: the picture and all training art, drawn on the asked background, at 32 x 32; the distance to a subject is the
smallest over its styles; top 1 and top 5 of all subjects."""

import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

from artwork import Compositor, load_atlas, load_items
from compositions import LAYER_FIELDS
from config import HERE, RES
from words import COLOR_NAMES, COLORS

with open(os.path.join(HERE, "follow_prompts.json")) as f:
    ENTRIES = json.load(f)
PROMPTS = [e["prompt"] for e in ENTRIES]
CORNER = 6  # pixels
DIFFERS = 40  # rgb distance from the background from which on a pixel belongs to the shape
PALETTE = np.array([COLORS[c] for c in COLOR_NAMES], np.float64)


def corners(pictures):
    """[B, H, W, 3] -> [B, pixels of the corners, 3]; arrays or tensors"""
    ends = (slice(0, CORNER), slice(-CORNER, None))
    parts = [pictures[:, y, x].reshape(len(pictures), -1, 3) for y in ends for x in ends]
    return torch.cat(parts, 1) if torch.is_tensor(pictures) else np.concatenate(parts, 1)


def nearest_color(rgb):
    """rgb [..., 3] in 0..255 -> names"""
    index = ((np.asarray(rgb, np.float64)[..., None, :] - PALETTE) ** 2).sum(-1).argmin(-1)
    return np.array(COLOR_NAMES)[index]


class Subjects:
    """Every piece of the training art as the compositor draws it alone, at 32 x 32."""

    def __init__(self, items, compositor, device):
        self.ids = sorted({x["id"] for x in items})
        at = {k: i for i, k in enumerate(self.ids)}
        self.owner = torch.tensor([at[x["id"]] for x in items], device=device)
        art, alpha = [], []
        for i in range(0, len(items), 256):
            n = min(256, len(items) - i)
            layers = torch.zeros(n, 1, LAYER_FIELDS)
            layers[:, 0, 0], layers[:, 0, 3] = torch.arange(i, i + n), 0.855
            # Drawn on black and on white: that gives colour and alpha.
            black, white = (
                F.avg_pool2d((compositor(layers, torch.full((n, 6), v, device=device)) + 1) / 2, 4) for v in (0.0, 1.0)
            )
            art.append(black)
            alpha.append(1 - (white - black).mean(1, keepdim=True))
        self.art, self.alpha = torch.cat(art), torch.cat(alpha)

    def ranked(self, pictures, background, n=5):
        """Names of the n nearest subjects of each picture."""
        color = torch.tensor(COLORS[background], device=self.art.device).view(1, 3, 1, 1) / 255
        templates = self.art + color * (1 - self.alpha)
        x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float().to(self.art.device) / 255
        distance = torch.cdist(F.avg_pool2d(x, 4).flatten(1), templates.flatten(1))
        best = torch.full((len(x), len(self.ids)), 1e9, device=x.device)
        best = best.scatter_reduce(1, self.owner.expand(len(x), -1), distance, "amin")
        return [[self.ids[k] for k in row] for row in best.argsort(1)[:, :n].tolist()]


def shape_color(picture, background):
    """Name of the colour of what differs from `background` (rgb), None where that is hardly anything."""
    picture = picture.astype(np.float64)
    differs = np.sqrt(((picture - background) ** 2).sum(-1)) > DIFFERS
    return nearest_color(np.median(picture[differs], 0)) if differs.sum() > 100 else None


def score(pictures, subjects):
    """pictures: uint8 [64, seeds, RES, RES, 3] -> {measure: {'right', 'of'}}, and a line for each prompt"""
    totals = {k: {"right": 0, "of": 0} for k in ("background", "shape", "top1", "top5")}
    notes = []
    for entry, drawn in zip(ENTRIES, pictures):
        background = corners(drawn).astype(np.float64).mean(1)
        right = {"background": int((nearest_color(background) == entry["background"]).sum())}
        note = {"prompt": entry["prompt"]}
        if "shape_color" in entry:
            seen = [shape_color(p, b) for p, b in zip(drawn, background)]
            right["shape"] = seen.count(entry["shape_color"])
        if "subjects" in entry:
            wanted = set(entry["subjects"])
            ranked = subjects.ranked(drawn, entry["background"])
            right["top1"] = sum(r[0] in wanted for r in ranked)
            right["top5"] = sum(bool(wanted & set(r)) for r in ranked)
            if right["top1"] < len(drawn):
                note["seen as"] = [r[0] for r in ranked]
        for k, v in right.items():
            totals[k]["right"] += v
            totals[k]["of"] += len(drawn)
        notes.append({**note, **right})
    return totals, notes


if __name__ == "__main__":
    from PIL import Image

    sheet = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
    tiles = sheet.reshape(16, RES, 16, RES, 3).transpose(0, 2, 1, 3, 4).reshape(len(PROMPTS), 4, RES, RES, 3)
    art = load_items()
    totals, notes = score(tiles, Subjects(art, Compositor(load_atlas(art, 2), "cpu"), "cpu"))
    for note in notes:
        print(json.dumps(note))
    for measure, count in totals.items():
        print(f"{measure:10} {count['right']}/{count['of']} = {count['right'] / count['of']:.1%}")
