import { firstFew, unsupported } from '../problems.ts';
import type { StoredTensors } from '../stored-tensors.ts';
import type { Layout } from './layout.ts';

/** Beginnings of names, Black Forest Labs' and canonical; # stands for a number, the same on both sides. */
const BFL_PREFIXES: readonly (readonly [string, string])[] = [
  ['encoder.norm_out.', 'encoder.conv_norm_out.'],
  ['decoder.norm_out.', 'decoder.conv_norm_out.'],
  ['encoder.down.#.block.#.', 'encoder.down_blocks.#.resnets.#.'],
  ['encoder.down.#.downsample.', 'encoder.down_blocks.#.downsamplers.0.'],
  ['decoder.up.#.block.#.', 'decoder.up_blocks.#.resnets.#.'],
  ['decoder.up.#.upsample.', 'decoder.up_blocks.#.upsamplers.0.'],
  ...['encoder', 'decoder'].flatMap((side): [string, string][] => [
    [`${side}.mid.block_1.`, `${side}.mid_block.resnets.0.`],
    [`${side}.mid.block_2.`, `${side}.mid_block.resnets.1.`],
    [`${side}.mid.attn_1.norm.`, `${side}.mid_block.attentions.0.group_norm.`],
    [`${side}.mid.attn_1.q.`, `${side}.mid_block.attentions.0.to_q.`],
    [`${side}.mid.attn_1.k.`, `${side}.mid_block.attentions.0.to_k.`],
    [`${side}.mid.attn_1.v.`, `${side}.mid_block.attentions.0.to_v.`],
    [`${side}.mid.attn_1.proj_out.`, `${side}.mid_block.attentions.0.to_out.0.`],
  ]),
];

/** Attention names of diffusers before 0.18. */
const OLD_DIFFUSERS_PREFIXES: typeof BFL_PREFIXES = ['encoder', 'decoder'].flatMap(
  (side): [string, string][] => [
    [`${side}.mid_block.attentions.0.query.`, `${side}.mid_block.attentions.0.to_q.`],
    [`${side}.mid_block.attentions.0.key.`, `${side}.mid_block.attentions.0.to_k.`],
    [`${side}.mid_block.attentions.0.value.`, `${side}.mid_block.attentions.0.to_v.`],
    [`${side}.mid_block.attentions.0.proj_attn.`, `${side}.mid_block.attentions.0.to_out.0.`],
  ],
);

interface Rule {
  readonly pattern: RegExp;
  readonly replacement: string;
}

function rule(from: string, to: string): Rule {
  let group = 0;
  return {
    pattern: new RegExp(`^${from.replaceAll('.', '\\.').replaceAll('#', '(\\d+)')}`),
    replacement: to.replaceAll('#', () => `$${++group}`),
  };
}

function rename(name: string, rules: readonly Rule[]): string {
  const match = rules.find(({ pattern }) => pattern.test(name));
  return match ? name.replace(match.pattern, match.replacement) : name;
}

/** Attention projections are 1 x 1 convolutions in some files and linear in others; canonical is [out, in]. */
function attentionShape(canonical: string, shape: readonly number[]): readonly number[] {
  const isProjection = /\.attentions\.0\.to_(q|k|v|out\.0)\.weight$/.test(canonical);
  return isProjection && shape.length === 4 && shape[2] === 1 && shape[3] === 1 ? shape.slice(0, 2) : shape;
}

function prefixLayout(name: string, table: typeof BFL_PREFIXES, levels: number | undefined): Layout {
  const toCanonical = table.map(([stored, canonical]) => rule(stored, canonical));
  const toStored = table.map(([stored, canonical]) => rule(canonical, stored));
  // Black Forest Labs counts the levels of the decoder from the highest resolution, diffusers from the lowest.
  const reverse = (text: string) =>
    levels === undefined
      ? text
      : text.replace(/^(decoder\.up(?:_blocks)?\.)(\d+)\./, (_, head: string, level: string) => {
          return `${head}${levels - 1 - Number(level)}.`;
        });
  return {
    name,
    parts: (stored) => [
      { name: reverse(rename(stored, toCanonical)).replace('.nin_shortcut.', '.conv_shortcut.') },
    ],
    storedName: (canonical) => {
      const stored = reverse(rename(canonical, toStored));
      return name === BFL ? stored.replace('.conv_shortcut.', '.nin_shortcut.') : stored;
    },
    shape: attentionShape,
  };
}

const BFL = 'Black Forest Labs';

/**
 * Tells the layout of an AutoencoderKL by its names. Canonical names are the module paths of diffusers; attention
 * projections are [out, in].
 */
export function vaeLayout(tensors: StoredTensors): Layout {
  const names = [...tensors.entries.keys()];
  const levels = names.flatMap((name) => /^decoder\.up\.(\d+)\./.exec(name)?.[1] ?? []);
  if (levels.length > 0) return prefixLayout(BFL, BFL_PREFIXES, new Set(levels).size);
  if (names.some((name) => name.startsWith('decoder.up_blocks.'))) {
    const isOld = names.some((name) => name.includes('.attentions.0.query.'));
    return prefixLayout('diffusers', isOld ? OLD_DIFFUSERS_PREFIXES : [], undefined);
  }
  throw unsupported(
    tensors.location,
    `is not a FLUX autoencoder: no tensor is called decoder.up.* (Black Forest Labs) or decoder.up_blocks.* ` +
      `(diffusers); found ${firstFew(names) || 'none'}`,
    { found: names.slice(0, 5) },
  );
}
