import { isFloatDtype, FLOAT_DTYPES } from '../dtypes.ts';
import { invalid, missing, shown, unsupported } from '../problems.ts';
import type { StoredTensors } from '../stored-tensors.ts';
import { TensorView } from '../tensor-view.ts';
import type { WeightSource } from '../weights.ts';

/** The rows of a stored tensor that are one canonical tensor. Parts without `rows` share the tensor equally. */
export interface Part {
  readonly name: string;
  readonly rows?: number;
}

/**
 * How one family of files spells and arranges the tensors of a model part. Names that a layout does not know pass
 * unchanged in both directions; the check against the spec then reports them.
 */
export interface Layout {
  readonly name: string;
  /** Whether all q, k and v projections of a transformer's double blocks may lack biases. */
  readonly qkvBiasOptional?: boolean;
  /** The canonical tensors, in row order, that the stored tensor holds; none for one that is of no use here. */
  parts(stored: string): readonly Part[];
  /** The stored name that holds a canonical tensor, for messages about the user's own file. */
  storedName(canonical: string): string;
  /** The shape under which a canonical tensor is known, where files differ. */
  shape?(canonical: string, shape: readonly number[]): readonly number[];
}

/** Weights under canonical names that know the file they come from. */
export class MappedWeights implements WeightSource {
  readonly location: string;
  readonly layout: Layout;
  readonly #views: ReadonlyMap<string, TensorView>;

  constructor(location: string, layout: Layout, views: ReadonlyMap<string, TensorView>) {
    this.location = location;
    this.layout = layout;
    this.#views = views;
  }

  get(name: string): TensorView {
    const view = this.#views.get(name);
    if (view) return view;
    const stored = this.layout.storedName(name);
    throw missing(this.location, `has no tensor ${shown(stored)}`, { tensor: stored, canonical: name });
  }

  has(name: string): boolean {
    return this.#views.has(name);
  }

  names(): string[] {
    return [...this.#views.keys()];
  }
}

/** Puts the tensors of a file under canonical names. Only headers are used. */
export function applyLayout(tensors: StoredTensors, layout: Layout): MappedWeights {
  const views = new Map<string, TensorView>();
  for (const [stored, { info, scale }] of tensors.entries) {
    const parts = layout.parts(stored);
    if (parts.length === 0) continue;
    const { dtype } = info;
    if (!isFloatDtype(dtype)) {
      const allowed = FLOAT_DTYPES.join(', ');
      throw unsupported(
        info.file,
        `tensor ${shown(info.name)} has dtype ${dtype}; weights may be ${allowed}`,
        {
          tensor: info.name,
          found: dtype,
          allowed: FLOAT_DTYPES,
        },
      );
    }
    const whole = new TensorView({ ...info, dtype, stored: info.name, scale });
    for (const view of split(whole, parts)) {
      const rival = views.get(view.name);
      if (rival) {
        throw invalid(
          info.file,
          `tensors ${shown(rival.stored)} and ${shown(view.stored)} are the same weight`,
          {
            tensor: view.name,
          },
        );
      }
      const shape = layout.shape?.(view.name, view.shape) ?? view.shape;
      views.set(view.name, shape === view.shape ? view : view.reshaped(shape));
    }
  }
  return new MappedWeights(tensors.location, layout, views);
}

function split(whole: TensorView, parts: readonly Part[]): TensorView[] {
  const [only] = parts;
  if (parts.length === 1 && only) return [whole.named(only.name)];
  const [rows = 0] = whole.shape;
  const sizes = parts.map((part) => part.rows ?? rows / parts.length);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (total !== rows || !sizes.every((size) => Number.isInteger(size) && size >= 0)) {
    const expected = parts.map((part, i) => `${part.name} (${sizes[i]})`).join(', ');
    throw invalid(whole.file, `tensor ${shown(whole.stored)} has ${rows} rows; they cannot be ${expected}`, {
      tensor: whole.stored,
      found: rows,
    });
  }
  let begin = 0;
  return parts.map((part, i) => {
    const view = whole.rows(begin, begin + sizes[i]!).named(part.name);
    begin += sizes[i]!;
    return view;
  });
}
