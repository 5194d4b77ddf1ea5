import { firstFew, unsupported } from '../problems.ts';
import type { StoredTensors } from '../stored-tensors.ts';
import type { Layout } from './layout.ts';

/** What files of whole CLIP models hold besides the text encoder, and buffers that old versions saved. */
const CLIP_UNUSED =
  /^(vision_model\.|visual_projection\.|text_projection(\.weight)?$|logit_scale$|(text_model\.)?embeddings\.position_ids$)/;
const CLIP_PREFIX = 'text_model.';

/** The Hugging Face layout of CLIP text encoders. Canonical names begin with `text_model.`. */
export function clipLayout(tensors: StoredTensors): Layout {
  const names = [...tensors.entries.keys()];
  const prefixed = names.some((name) => name.startsWith(CLIP_PREFIX));
  if (!names.some((name) => name.endsWith('embeddings.token_embedding.weight'))) {
    throw notA(tensors, 'CLIP text encoder', 'text_model.embeddings.token_embedding.weight', names);
  }
  return {
    name: 'Hugging Face',
    parts: (stored) => {
      if (CLIP_UNUSED.test(stored)) return [];
      return [{ name: prefixed ? stored : `${CLIP_PREFIX}${stored}` }];
    },
    storedName: (canonical) => (prefixed ? canonical : canonical.replace(CLIP_PREFIX, '')),
  };
}

/** What files of whole T5 models hold besides the encoder, and the tokenizer that ComfyUI packs in. */
const T5_UNUSED = /^(decoder\.|lm_head\.|spiece_model$)/;
const T5_EMBEDDING = 'shared.weight';
const T5_TIED_EMBEDDING = 'encoder.embed_tokens.weight';

/** The Hugging Face layout of T5 encoders. The embedding is canonically `shared.weight`. */
export function t5Layout(tensors: StoredTensors): Layout {
  const { entries } = tensors;
  const embedding = [T5_EMBEDDING, T5_TIED_EMBEDDING].find((name) => entries.has(name));
  if (!embedding) throw notA(tensors, 'T5 encoder', T5_EMBEDDING, [...entries.keys()]);
  return {
    name: 'Hugging Face',
    parts: (stored) => {
      if (stored === embedding) return [{ name: T5_EMBEDDING }];
      // A file with both holds the same tensor twice.
      if (stored === T5_TIED_EMBEDDING || T5_UNUSED.test(stored)) return [];
      return [{ name: stored }];
    },
    storedName: (canonical) => (canonical === T5_EMBEDDING ? embedding : canonical),
  };
}

function notA(tensors: StoredTensors, what: string, expected: string, names: readonly string[]) {
  return unsupported(
    tensors.location,
    `is not a ${what}: it has no ${expected}; found ${firstFew(names) || 'no tensor'}`,
    { found: names.slice(0, 5) },
  );
}
