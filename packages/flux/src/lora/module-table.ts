import {
  DIFFUSERS_ADA_LN,
  DIFFUSERS_HALVES,
  DOUBLE_MODULES,
  isHeadNorm,
  type ModuleTable,
  SINGLE_MODULES,
  TOP_MODULES,
} from '../checkpoint/layouts/transformer-modules.ts';

/** A linear module as a file names it: the canonical modules that are its rows, in order. */
export interface FileModule {
  readonly kind: 'module';
  readonly part: 'transformer' | 'clip';
  readonly modules: readonly string[];
  /** Equal shares; or those of linear1: q, k and v as tall as the module is wide, then the MLP. */
  readonly rows: 'equal' | 'linear1';
}

/** Something that files hold and no linear module of the engine is. */
export interface Outside {
  readonly kind: 'outside';
  readonly what: string;
  /** Whether FLUX makes its pictures without it, so that a change of it changes nothing. */
  readonly unused: boolean;
}

export type Place = FileModule | Outside;

/** What the paths of one family of names stand for. */
export interface Names {
  /** @param separator what stands between the parts of `path` */
  find(path: string, separator: '.' | '_'): Place | undefined;
}

/** The module of a file that holds a canonical one: its path, and the modules that are its rows. */
export type Owner = Pick<FileModule, 'modules' | 'rows'> & { readonly path: string };

/** Stands for the index of a block in the tables. */
const INDEX = '#';
/** The first number between separators; without leading zeros, so that a block has one name. */
const INDEXED = Object.freeze({
  '.': /^([a-z_.]+?)\.(0|[1-9]\d{0,2})\.(.+)$/,
  _: /^([a-z_]+?)_(0|[1-9]\d{0,2})_(.+)$/,
});

function rowsOf(stored: string): FileModule['rows'] {
  return stored.endsWith('linear1') ? 'linear1' : 'equal';
}

/**
 * A closed list of modules. Paths that are joined with underscores are looked up in it as well, since their parts
 * cannot be told apart otherwise (`transformer_blocks_0_attn_to_q`).
 */
export class ModuleNames implements Names {
  readonly #places = { '.': new Map<string, Place>(), _: new Map<string, Place>() };
  readonly #owners = new Map<string, ModuleTable[number]>();

  /** @param table paths in which {@link INDEX} is any block, and the canonical modules of each */
  constructor(part: FileModule['part'], table: ModuleTable, outside: Readonly<Record<string, Outside>> = {}) {
    for (const row of table) {
      const [stored, ...modules] = row;
      for (const module of modules) this.#owners.set(module, row);
      this.#add(stored, {
        kind: 'module',
        part,
        modules,
        rows: rowsOf(stored),
      });
    }
    for (const [stored, place] of Object.entries(outside)) this.#add(stored, place);
  }

  #add(stored: string, place: Place): void {
    this.#places['.'].set(stored, place);
    const flat = stored.replaceAll('.', '_');
    if (this.#places._.has(flat)) throw new Error(`two modules are called ${flat}`);
    this.#places._.set(flat, place);
  }

  find(path: string, separator: '.' | '_'): Place | undefined {
    const places = this.#places[separator];
    const [, block, index, module] = INDEXED[separator].exec(path) ?? [];
    if (index === undefined) return places.get(path);
    const place = places.get([block, INDEX, module].join(separator));
    if (place?.kind !== 'module') return place;
    return { ...place, modules: place.modules.map((name) => name.replace(INDEX, index)) };
  }

  /** The way back: what holds a canonical module. */
  owner(module: string): Owner | undefined {
    const [, block, index, rest] = INDEXED['.'].exec(module) ?? [];
    const row = this.#owners.get(index === undefined ? module : [block, INDEX, rest].join('.'));
    if (!row) return undefined;
    const [path, ...modules] = row.map((name) => (index === undefined ? name : name.replace(INDEX, index)));
    return { path: path!, modules, rows: rowsOf(row[0]) };
  }
}

const linears = (table: ModuleTable): ModuleTable => table.filter(([stored]) => !isHeadNorm(stored));

function inBlocks(table: ModuleTable, stored: string, canonical: string): ModuleTable {
  return linears(table).map(([name, ...modules]) => [
    `${stored}.${INDEX}.${name}`,
    ...modules.map((module) => `${canonical}.${INDEX}.${module}`),
  ]);
}

const BFL_TABLE: ModuleTable = [
  ...linears(TOP_MODULES),
  ...inBlocks(DOUBLE_MODULES, 'double_blocks', 'transformer_blocks'),
  ...inBlocks(SINGLE_MODULES, 'single_blocks', 'single_transformer_blocks'),
];

/** Black Forest Labs' names, with fused projections. */
export const BFL = new ModuleNames('transformer', BFL_TABLE);

/** diffusers' names: the canonical ones, but for the final adaLN. */
export const DIFFUSERS = new ModuleNames('transformer', [
  [DIFFUSERS_ADA_LN, ...DIFFUSERS_HALVES],
  ...BFL_TABLE.flatMap(([, ...modules]) => modules)
    .filter((module) => !DIFFUSERS_HALVES.includes(module))
    .map((module): [string, string] => [module, module]),
]);

const CLIP_LAYER = [
  ...['q_proj', 'k_proj', 'v_proj', 'out_proj'].map((name) => `self_attn.${name}`),
  'mlp.fc1',
  'mlp.fc2',
];
export const CLIP_ROOT = 'text_model.';

function clipNames(root: string): ModuleNames {
  const outside = (what: string, unused: boolean): Outside => ({ kind: 'outside', what, unused });
  return new ModuleNames(
    'clip',
    CLIP_LAYER.map((name) => [
      `${root}encoder.layers.${INDEX}.${name}`,
      `${CLIP_ROOT}encoder.layers.${INDEX}.${name}`,
    ]),
    {
      [`${root}embeddings.position_embedding`]: outside('the position embedding of CLIP', false),
      [`${root}embeddings.token_embedding`]: outside('the token embedding of CLIP', false),
      text_projection: outside('the text projection of CLIP, which FLUX does not use', true),
    },
  );
}

/** CLIP's names as published; newer versions of transformers leave `text_model.` out. */
export const CLIP = clipNames(CLIP_ROOT);
export const CLIP_WITHOUT_ROOT = clipNames('');

/** Anything in T5, of which no module can be changed. */
export const T5: Names = {
  find: () => ({ kind: 'outside', what: 'the T5 text encoder', unused: false }),
};
