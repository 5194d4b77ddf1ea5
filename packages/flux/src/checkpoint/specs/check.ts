import type { MappedWeights } from '../layouts/layout.ts';
import { firstFew, invalid, missing, shown, unsupported } from '../problems.ts';

/** Every tensor that a part must have, and its shape. */
export type ExpectedShapes = ReadonlyMap<string, readonly number[]>;

/** Collects expected shapes module by module. */
export class ShapeTable {
  readonly shapes = new Map<string, readonly number[]>();

  /** `path.weight` of the given shape, and `path.bias` of as many elements as the weight has rows. */
  module(path: string, shape: readonly [number, ...number[]], hasBias = true): void {
    this.shapes.set(`${path}.weight`, shape);
    if (hasBias) this.shapes.set(`${path}.bias`, [shape[0]]);
  }
}

/** The shape of a tensor from which sizes are read; it must have `rank` dimensions, none of them empty. */
export function anchorShape(weights: MappedWeights, name: string, rank: number): readonly number[] {
  const view = weights.get(name);
  if (view.shape.length !== rank || view.shape.includes(0)) {
    throw invalid(
      view.file,
      `tensor ${shown(view.stored)} is ${format(view.shape)}; ${rank} dimensions were expected`,
      {
        tensor: view.stored,
        found: view.shape,
      },
    );
  }
  return view.shape;
}

/** How many different numbers follow `prefix` in the names. Gaps show up as missing tensors later. */
export function countBlocks(weights: MappedWeights, prefix: string): number {
  const numbers = weights
    .names()
    .filter((name) => name.startsWith(prefix))
    .map((name) => name.slice(prefix.length).split('.', 1)[0]!);
  return new Set(numbers.filter((text) => /^\d+$/.test(text))).size;
}

/**
 * Holds every tensor against the spec: none missing, none left over, each of the shape that follows from the spec.
 * A foreign or mangled file must not load quietly.
 */
export function checkTensors(weights: MappedWeights, expected: ExpectedShapes): void {
  const { location, layout } = weights;
  const stored = (names: Iterable<string>) => [...new Set([...names].map((name) => layout.storedName(name)))];
  const absent = stored([...expected.keys()].filter((name) => !weights.has(name)));
  const unknown = stored(weights.names().filter((name) => !expected.has(name)));
  const unknownText = `${unknown.length} unknown tensors (${firstFew(unknown)})`;
  if (absent.length > 0) {
    const also = unknown.length > 0 ? `, and has ${unknownText}` : '';
    throw missing(
      location,
      `lacks ${absent.length} tensors of the ${layout.name} layout: ${firstFew(absent)}${also}`,
      {
        missing: absent.slice(0, 5),
        count: absent.length,
        unknown: unknown.slice(0, 5),
      },
    );
  }
  if (unknown.length > 0) {
    throw unsupported(location, `has ${unknownText} that the ${layout.name} layout does not know`, {
      unknown: unknown.slice(0, 5),
      count: unknown.length,
    });
  }
  for (const [name, shape] of expected) checkShape(weights, name, shape);
}

function checkShape(weights: MappedWeights, name: string, expected: readonly number[]): void {
  const view = weights.get(name);
  if (view.shape.length === expected.length && view.shape.every((size, i) => size === expected[i])) return;
  const what = view.stored.endsWith(name) ? shown(view.stored) : `${shown(view.stored)}, as ${name},`;
  throw invalid(view.file, `tensor ${what} is ${format(view.shape)}; expected ${format(expected)}`, {
    tensor: view.stored,
    canonical: name,
    found: view.shape,
    expected,
  });
}

function format(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}
