/** What is measured of a picture, in CIE L*a*b* (D65). */
export interface Colour {
  /**
   * Mean chroma √(a*² + b*²) of what is drawn, the pixels that are clearly not paper; 0 is grey, the primaries of
   * sRGB have 104 to 134.
   */
  chroma: number;
  /** Mean L*a*b* of the four corners, where pictures of one thing show what they are painted on. */
  paper: Lab;
}

export type Lab = readonly [lightness: number, a: number, b: number];

/** Side of a corner as a part of the picture's. The outermost pixels are left out: edges of a canvas are there. */
const CORNER = 0.12;
const EDGE = 0.03;
/** Distance from the paper beyond which a pixel is drawn: ten just noticeable differences. */
const DRAWN = 20;

/** D65, as sRGB (IEC 61966-2-1) defines it. */
const WHITE = [0.95047, 1, 1.08883] as const;

/** Measures an RGB8 picture [h, w, 3]. */
export function measure(pixels: Uint8Array, width: number, height: number): Colour {
  const labs = Array.from({ length: width * height }, (_, i) =>
    toLab(pixels[3 * i]!, pixels[3 * i + 1]!, pixels[3 * i + 2]!),
  );
  const paper = meanLab(
    labs.filter((_, i) => inCorner((i % width) / width) && inCorner(Math.floor(i / width) / height)),
  );
  const drawn = labs.filter((lab) => deltaE(lab, paper) > DRAWN);
  const chroma = drawn.reduce((sum, [, a, b]) => sum + Math.hypot(a, b), 0) / Math.max(drawn.length, 1);
  return { chroma, paper };
}

/** The mean of several pictures. */
export function meanColour(colours: readonly Colour[]): Colour {
  return {
    chroma: colours.reduce((sum, { chroma }) => sum + chroma, 0) / colours.length,
    paper: meanLab(colours.map(({ paper }) => paper)),
  };
}

/** CIE 1976 colour difference; about 2 is just noticeable. */
export function deltaE(a: Lab, b: Lab): number {
  return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

/** sRGB bytes to CIE L*a*b* (CIE 15, with the exact constants 216/24389 and 24389/27). */
export function toLab(red: number, green: number, blue: number): Lab {
  const [r, g, b] = [LINEAR[red]!, LINEAR[green]!, LINEAR[blue]!];
  const x = f((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / WHITE[0]);
  const y = f((0.2126729 * r + 0.7151522 * g + 0.072175 * b) / WHITE[1]);
  const z = f((0.0193339 * r + 0.119192 * g + 0.9503041 * b) / WHITE[2]);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const LINEAR = Float64Array.from({ length: 256 }, (_, byte) => {
  const value = byte / 255;
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
});

function f(t: number): number {
  return t > 216 / 24389 ? Math.cbrt(t) : ((24389 / 27) * t + 16) / 116;
}

function meanLab(labs: readonly Lab[]): Lab {
  const mean = (axis: 0 | 1 | 2) => labs.reduce((sum, lab) => sum + lab[axis], 0) / labs.length;
  return [mean(0), mean(1), mean(2)];
}

function inCorner(position: number): boolean {
  const fromEdge = Math.min(position, 1 - position);
  return fromEdge >= EDGE && fromEdge < CORNER;
}
