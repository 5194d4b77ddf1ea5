"""Random compositions with their captions: up to three layers of art or plain shapes over a background.

A composition is drawn by artwork.Compositor. What the words do not say varies little (placement by 1.5 % of the side,
colours by 5/255): the model should not have to guess it."""

import random

import numpy as np

from words import COLOR_NAMES, COLORS, SHAPES, SYNONYMS, an, article, plural

ART, SOLID, SHADES = 0, 1, 2  # a layer as it is, in one colour, in shades of one colour
LAYERS, LAYER_FIELDS = (
    3,
    8,
)  # piece (-1: none), x, y, scale, mode, r, g, b; x, y and scale in half sides from the centre

CATEGORY_WEIGHT = {
    "Animals & Nature": 1.4,
    "Food & Drink": 1.4,
    "Objects": 1.0,
    "Travel & Places": 1.1,
    "Activities": 1.0,
    "Smileys & Emotion": 0.5,
}
THINGS = set(CATEGORY_WEIGHT) - {"Smileys & Emotion"}
# Share of captions without a style word: such prompts lean to the first style.
UNSTYLED = {"noto": 0.5, "flat": 0.25, "glossy": 0.12}
SIDE_BY_SIDE, STACKED = [(-0.48, 0), (0.48, 0)], [(0, -0.48), (0, 0.48)]
TRIANGLE = [(0, -0.46), (-0.48, 0.46), (0.48, 0.46)]


class Compositions:
    """items: the pieces of art.json. The same seed gives the same compositions."""

    JITTER, COLOR_JITTER = 0.015, 5

    def __init__(self, items, seed):
        self.rng = random.Random(seed)
        self.items = items
        self.shape0 = len(items)  # shape masks follow the art in the atlas
        self.cumulative = np.cumsum([CATEGORY_WEIGHT[x["cat"]] for x in items]).tolist()
        self.indices = range(len(items))
        self.things = {}
        for i, x in enumerate(items):
            if x["cat"] in THINGS:
                self.things.setdefault(x["set"], []).append(i)

    def batch(self, n):
        """-> layers [n, 3, 8] and backgrounds [n, 6] (rgb at the top, at the bottom) as float32, n captions"""
        layers = np.zeros((n, LAYERS, LAYER_FIELDS), np.float32)
        layers[:, :, 0] = -1
        backgrounds = np.zeros((n, 6), np.float32)
        captions = []
        for b in range(n):
            drawn, backgrounds[b], caption = self.one()
            for k, layer in enumerate(drawn):
                layers[b, k] = layer
            captions.append(caption)
        return layers, backgrounds, captions

    def one(self):
        kind = self.rng.random()
        if kind < 0.74:
            return self.single()
        if kind < 0.82:
            return self.pair()
        if kind < 0.86:
            return self.several()
        return self.shapes()

    def single(self):
        r = self.rng
        i = r.choices(self.indices, cum_weights=self.cumulative)[0]
        item = self.items[i]
        name = self.name(i)
        background, words, color_name = self.background()
        scale = r.uniform(0.84, 0.87)
        mode, rgb = ART, (0, 0, 0)
        if item["cat"] in THINGS and r.random() < 0.08:
            c = self.color((color_name, "white", "beige"))
            w = name.split(" ")
            if len(w) > 1 and w[0] in COLORS:
                w = w[1:]
            name = c + " " + " ".join(w)
            mode, rgb = SHADES, self.rgb(c)
        elif r.random() < 0.05:
            if r.random() < 0.6:
                name = "small " + name
                scale = r.uniform(0.42, 0.46)
            else:
                name = "big " + name
                scale = r.uniform(0.98, 1.02)
        layer = (i, self.jitter(), self.jitter(), scale, mode, *rgb)
        return [layer], background, self.styled(item["set"], article(name, r), name, words)

    def pair(self):
        r = self.rng
        style = r.choice(list(self.things))
        a, b = r.sample(self.things[style], 2)
        background, words, _ = self.background()
        one, other = article(self.name(a), r), article(self.name(b), r)
        scale = r.uniform(0.44, 0.46)
        side = r.random() < 0.7
        layers = [self.at(i, p, scale) for i, p in zip((a, b), SIDE_BY_SIDE if side else STACKED)]
        if side:
            subject = r.choice([f"{one} and {other}"] * 2 + [f"{one} next to {other}", f"{one} to the left of {other}"])
        else:
            subject = r.choice([f"{one} above {other}", f"{one} on top of {other}"])
        return layers, background, self.styled(style, subject, None, words)

    def several(self):
        r = self.rng
        style = r.choice(list(self.things))
        a = r.choice(self.things[style])
        background, words, _ = self.background()
        n = r.choice([2, 2, 3])
        scale = r.uniform(0.44, 0.46)
        subject = ("two " if n == 2 else "three ") + plural(self.name(a))
        layers = [self.at(a, p, scale) for p in (SIDE_BY_SIDE if n == 2 else TRIANGLE)]
        return layers, background, self.styled(style, subject, None, words)

    def shapes(self):
        r = self.rng
        background, words, color_name = self.background(0.75)
        kind = r.choice(["one", "one", "one", "pair", "pair", "two", "three"])
        shape = r.randrange(len(SHAPES))
        if kind == "one":
            c = self.color((color_name,))
            subject = f"{c} {SHAPES[shape]}"
            x, y = self.jitter(2), self.jitter(2)
            layers = [(self.shape0 + shape, x, y, r.uniform(0.62, 0.72), SOLID, *self.rgb(c))]
            if r.random() < 0.85:
                subject = an(subject)
        elif kind == "pair":
            other = r.randrange(len(SHAPES))
            colors = self.color((color_name,)), self.color((color_name,))
            scale = r.uniform(0.38, 0.42)
            a, b = (an(f"{c} {SHAPES[s]}") for c, s in zip(colors, (shape, other)))
            side = r.random() < 0.65
            if side:
                subject = r.choice([f"{a} and {b}", f"{a} next to {b}", f"{a} to the left of {b}"])
            else:
                subject = r.choice([f"{a} above {b}", f"{a} on top of {b}"])
            layers = []
            for p, s, c in zip(SIDE_BY_SIDE if side else STACKED, (shape, other), colors):
                layers.append((*self.at(self.shape0 + s, p, scale)[:4], SOLID, *self.rgb(c)))
        else:
            c = self.color((color_name,))
            rgb = self.rgb(c)
            scale = r.uniform(0.38, 0.42)
            subject = f"{kind} {c} {plural(SHAPES[shape])}"
            places = SIDE_BY_SIDE if kind == "two" else TRIANGLE
            layers = [(*self.at(self.shape0 + shape, p, scale)[:4], SOLID, *rgb) for p in places]
        return layers, background, subject + words

    def jitter(self, k=1.0):
        return self.rng.uniform(-self.JITTER, self.JITTER) * k

    def at(self, piece, place, scale):
        return piece, place[0] + self.jitter(), place[1] + self.jitter(), scale, ART, 0, 0, 0

    def color(self, avoid=()):
        while True:
            c = self.rng.choice(COLOR_NAMES)
            if c not in avoid:
                return c

    def rgb(self, color):
        if color == "white":
            return [1.0, 1.0, 1.0]
        j = self.COLOR_JITTER
        return [min(255, max(0, v + self.rng.uniform(-j, j))) / 255 for v in COLORS[color]]

    def name(self, i):
        synonyms = SYNONYMS.get(self.items[i]["id"])
        return self.rng.choice(synonyms) if synonyms and self.rng.random() < 0.5 else self.items[i]["name"]

    def background(self, share=0.5):
        """-> rgb at the top and at the bottom, words, colour name; white, and not spoken of, but for `share`"""
        r = self.rng
        if r.random() >= share:
            return [1.0] * 6, "", "white"
        c = self.color()
        words = r.choice([f" on {an(c)} background"] * 3 + [f", {c} background", f" on {c}"])
        v = self.rgb(c)
        if r.random() < 0.06 and c != "white":
            other = self.color((c,))
            return v + self.rgb(other), f" on {an(c)} and {other} gradient background", c
        return v + v, words, c

    def styled(self, style, s, bare, bg):
        """Caption of subject s on background bg; bare: the subject's name without article, None for several."""
        r = self.rng
        if r.random() < UNSTYLED[style]:
            k = r.random()
            for share, words in (
                (0.08, "an emoji of "),
                (0.16, "an icon of "),
                (0.23, "a picture of "),
                (0.30, "an illustration of "),
            ):
                if k < share:
                    return words + s + bg
            return s + bg
        forms = [f"{s}{bg}, {style} style"] * 2
        if style == "noto":
            forms += [f"{s}, noto style{bg}", f"noto emoji of {s}{bg}", f"{s} in noto style{bg}"]
        elif style == "flat":
            forms += [f"flat illustration of {s}{bg}", f"{s} in flat style{bg}", f"flat icon of {s}{bg}"]
        else:
            if bare is not None:
                forms += [f"a 3d {bare}{bg}, glossy style", f"a 3d {bare}{bg}"]
            forms += [f"3d render of {s}{bg}", f"{s} in glossy style{bg}"]
        return r.choice(forms)
