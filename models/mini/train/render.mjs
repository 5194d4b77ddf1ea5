// Draws the emoji of three npm packages as 256 px WebP files: node render.mjs [FOLDER], "art" by default.
// FOLDER/list.json names the pieces: [{ set, id, cat }]. Pieces that are there already are not drawn again.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { Resvg } from '@resvg/resvg-js';
import sharp from 'sharp';

const require = createRequire(import.meta.url);
const folder = process.argv[2] ?? 'art';
const SIZE = 256;
// Later categories win: Noto's names are the ones the captions use.
const SETS = { noto: 'noto', flat: 'fluent-emoji-flat', glossy: 'fluent-emoji' };
const CATEGORIES = new Set([
  'Animals & Nature',
  'Food & Drink',
  'Objects',
  'Travel & Places',
  'Activities',
  'Smileys & Emotion',
]);

// A path in it makes resvg abort the whole process.
const UNDRAWABLE = new Set(['noto/package']);

const category = { ...categoriesOf('fluent-emoji-flat'), ...categoriesOf('noto') };

function categoriesOf(name) {
  const { categories } = require(`@iconify-json/${name}/metadata.json`);
  return Object.fromEntries(Object.entries(categories).flatMap(([cat, ids]) => ids.map((id) => [id, cat])));
}

/** Text, flags, families, clock faces and variants of one piece: nothing that a caption could name. */
function isDropped(id, ids, set) {
  const variant = id.match(/^(.*?)-(medium-light|medium-dark|light|medium|dark)(-.*)?$/);
  return (
    /tone/.test(id) ||
    (variant !== null && set !== 'noto' && (ids.has(variant[1]) || variant[3] !== undefined)) ||
    id.length === 1 ||
    (/^(keycap|letter|digit|input|flag|family|kiss|couple)(-|$)/.test(id) &&
      !['kiss-mark', 'family', 'flag-in-hole'].includes(id)) ||
    /^japanese-.*-button$/.test(id) ||
    (/-(oclock|thirty)$/.test(id) && !['three-oclock', 'ten-oclock'].includes(id)) ||
    /^(asterisk|minus|plus|divide|multiply|copyright|registered|trade-mark|pound|knot|om|antenna-bars)$/.test(
      id,
    ) ||
    /^(wavy-dash|curly-loop|double-curly-loop|part-alternation-mark|eight-spoked-asterisk)$/.test(id) ||
    /^hand-with-index-finger-and-thumb-crossed$/.test(id) ||
    /-facing-right$/.test(id)
  );
}

/** The smaller of lossy and lossless; shaded art is always lossy. */
async function encode(png, set) {
  const lossy = await sharp(png).webp({ quality: 90, alphaQuality: 95, effort: 4 }).toBuffer();
  if (set === 'glossy') return lossy;
  const lossless = await sharp(png).webp({ lossless: true, effort: 3 }).toBuffer();
  return lossless.length < lossy.length ? lossless : lossy;
}

mkdirSync(folder, { recursive: true });
const list = [];
for (const [set, name] of Object.entries(SETS)) {
  const icons = require(`@iconify-json/${name}/icons.json`);
  const ids = new Set(Object.keys(icons.icons));
  const before = list.length;
  for (const id of [...ids].sort()) {
    if (isDropped(id, ids, set) || !CATEGORIES.has(category[id]) || UNDRAWABLE.has(`${set}/${id}`)) continue;
    const icon = icons.icons[id];
    const box = [icon.left ?? 0, icon.top ?? 0, icon.width ?? icons.width, icon.height ?? icons.height];
    const file = `${folder}/${set}__${id}.webp`;
    if (!existsSync(file)) {
      const svg =
        `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${SIZE}" ` +
        `height="${SIZE}" viewBox="${box.join(' ')}" color="#000">${icon.body}</svg>`;
      const png = new Resvg(svg, { fitTo: { mode: 'width', value: SIZE } }).render().asPng();
      writeFileSync(file, await encode(png, set));
    }
    list.push({ set, id, cat: category[id] });
  }
  console.log(`${set}: ${list.length - before} pieces`);
}
writeFileSync(`${folder}/list.json`, JSON.stringify(list));
