"""Artwork of render.mjs -> what the trainer reads: data/art128.bin, data/art.json.

python pack.py [ART_FOLDER]

Every piece at 128 px with premultiplied colours, as WebP: lossless, or at quality 92 where that is smaller and the
art is shaded (the glossy set)."""

import io
import json
import os
import sys
from multiprocessing import Pool

import numpy as np
from PIL import Image

from config import DATA, RES
from words import name_of

ART = sys.argv[1] if len(sys.argv) > 1 else "art"


def encode(piece):
    a = np.asarray(Image.open(f"{ART}/{piece['set']}__{piece['id']}.webp").convert("RGBA")).astype(np.uint32)
    a[..., :3] = (a[..., :3] * a[..., 3:4] + 127) // 255
    a = ((a.reshape(RES, 2, RES, 2, 4).sum((1, 3)) + 2) // 4).astype(np.uint8)

    def webp(**options):
        out = io.BytesIO()
        Image.fromarray(a, "RGBA").save(out, "WEBP", exact=True, method=4, **options)
        return out.getvalue()

    lossless = webp(lossless=True, quality=70)
    if piece["set"] != "glossy":
        return lossless
    return min(lossless, webp(quality=92, alpha_quality=100), key=len)


if __name__ == "__main__":
    with open(f"{ART}/list.json") as f:
        pieces = sorted(json.load(f), key=lambda x: (x["set"], x["id"]))
    os.makedirs(DATA, exist_ok=True)
    items, at = [], 0
    with Pool() as pool, open(f"{DATA}/art128.bin", "wb") as f:
        for piece, data in zip(pieces, pool.imap(encode, pieces, chunksize=16)):
            f.write(data)
            items.append({**piece, "name": name_of(piece["id"]), "at": [at, len(data)]})
            at += len(data)
    with open(f"{DATA}/art.json", "w") as f:
        json.dump({"items": items}, f, separators=(",", ":"))
    print(len(items), "pieces of", len({x["id"] for x in items}), "subjects,", at, "bytes")
