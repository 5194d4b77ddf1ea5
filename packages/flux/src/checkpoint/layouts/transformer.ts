import { firstFew, missing, unsupported } from '../problems.ts';
import type { StoredTensors } from '../stored-tensors.ts';
import type { Layout, Part } from './layout.ts';
import {
  DIFFUSERS_ADA_LN,
  DIFFUSERS_HALVES,
  DOUBLE_MODULES,
  isHeadNorm,
  type ModuleTable,
  SINGLE_MODULES,
  TOP_MODULES,
} from './transformer-modules.ts';

/** Both directions of the tables, for one kind of block or for what lies outside the blocks. */
class ModuleMap {
  readonly canonical: ReadonlyMap<string, readonly string[]>;
  readonly stored: ReadonlyMap<string, string>;

  constructor(table: ModuleTable) {
    this.canonical = new Map(table.map(([stored, ...canonical]) => [stored, canonical]));
    this.stored = new Map(table.flatMap(([stored, ...canonical]) => canonical.map((name) => [name, stored])));
  }
}

const BLOCKS = Object.freeze([
  { stored: 'double_blocks.', canonical: 'transformer_blocks.', modules: new ModuleMap(DOUBLE_MODULES) },
  {
    stored: 'single_blocks.',
    canonical: 'single_transformer_blocks.',
    modules: new ModuleMap(SINGLE_MODULES),
  },
  { stored: '', canonical: '', modules: new ModuleMap(TOP_MODULES) },
]);

interface Path {
  /** `<index>.` inside a block, else empty. */
  readonly index: string;
  readonly module: string;
  /** weight, bias or scale. */
  readonly leaf: string;
}

function parsePath(name: string, prefix: string): Path | undefined {
  if (!name.startsWith(prefix)) return undefined;
  const pattern = prefix ? /^(\d+\.)(.+)\.(\w+)$/ : /^()(.+)\.(\w+)$/;
  const [, index, module, leaf] = pattern.exec(name.slice(prefix.length)) ?? [];
  return index !== undefined && module && leaf ? { index, module, leaf } : undefined;
}

/** The single-file layout of Black Forest Labs. */
function bflLayout(tensors: StoredTensors): Layout {
  return {
    name: 'Black Forest Labs',
    qkvBiasOptional: true,
    parts: (stored) => {
      for (const block of BLOCKS) {
        const path = parsePath(stored, block.stored);
        const modules = path && block.modules.canonical.get(path.module);
        if (!modules) continue;
        const norm = isHeadNorm(path.module);
        if (norm !== (path.leaf === 'scale')) break;
        const leaf = norm ? 'weight' : path.leaf;
        const names = modules.map((module) => `${block.canonical}${path.index}${module}.${leaf}`);
        return path.module === 'linear1'
          ? linear1Parts(tensors, path.index, names)
          : names.map((name) => ({ name }));
      }
      return [{ name: stored }];
    },
    storedName: (canonical) => {
      for (const block of BLOCKS) {
        const path = parsePath(canonical, block.canonical);
        const module = path && block.modules.stored.get(path.module);
        if (!module) continue;
        return `${block.stored}${path.index}${module}.${isHeadNorm(module) ? 'scale' : path.leaf}`;
      }
      return canonical;
    },
  };
}

/** linear1 is q, k and v of the width of the stream, which is its number of columns, then the MLP. */
function linear1Parts(tensors: StoredTensors, index: string, names: readonly string[]): Part[] {
  const weight = `single_blocks.${index}linear1.weight`;
  const [rows = 0, width = 0] = tensors.entries.get(weight)?.info.shape ?? [];
  if (!tensors.entries.has(weight))
    throw missing(tensors.location, `has no tensor '${weight}'`, { tensor: weight });
  return names.map((name, i) => ({ name, rows: i < 3 ? width : rows - 3 * width }));
}

/** The layout of diffusers' FluxTransformer2DModel, after which the canonical names are called. */
const diffusersLayout: Layout = {
  name: 'diffusers',
  parts: (stored) => {
    const path = parsePath(stored, '');
    if (path?.module !== DIFFUSERS_ADA_LN) return [{ name: stored }];
    return DIFFUSERS_HALVES.map((module) => ({ name: `${module}.${path.leaf}` }));
  },
  storedName: (canonical) => {
    const path = parsePath(canonical, '');
    return path && DIFFUSERS_HALVES.includes(path.module) ? `${DIFFUSERS_ADA_LN}.${path.leaf}` : canonical;
  },
};

/**
 * Tells the layout of a FLUX transformer by its names.
 *
 * Canonical names are the module paths of diffusers, with split projections, except that the final adaLN is two
 * modules, `norm_out.linear_shift` and `norm_out.linear_scale`, because files disagree about their order.
 */
export function transformerLayout(tensors: StoredTensors): Layout {
  const names = [...tensors.entries.keys()];
  if (names.some((name) => name.startsWith('double_blocks.'))) return bflLayout(tensors);
  if (names.some((name) => name.startsWith('transformer_blocks.'))) return diffusersLayout;
  throw unsupported(
    tensors.location,
    `is not a FLUX transformer: no tensor is called double_blocks.* (Black Forest Labs) or transformer_blocks.* ` +
      `(diffusers); found ${firstFew(names) || 'none'}`,
    { found: names.slice(0, 5) },
  );
}
