/** The ways in which files write the change of a weight as a product of small matrices. */
export type AlgorithmName = 'lora' | 'loha' | 'lokr';

/** What a tensor is to the module that its key names. */
export type Leaf =
  /** A matrix of the change. */
  | { readonly kind: 'factor'; readonly algorithm: AlgorithmName; readonly role: string }
  /** Divided by the rank it is the strength of the change. */
  | { readonly kind: 'alpha' }
  /** A change of something that is not the weight of a linear module: nothing when it is zero. */
  | { readonly kind: 'addend'; readonly what: string }
  /** Part of something that cannot be written as W + up · down. */
  | { readonly kind: 'refused'; readonly why: string };

const factor = (algorithm: AlgorithmName, role: string): Leaf => ({ kind: 'factor', algorithm, role });
const addend = (what: string): Leaf => ({ kind: 'addend', what });
const refused = (why: string): Leaf => ({ kind: 'refused', why });

const DORA = refused(
  'DoRA rescales whole weights, which is not an addition to them; save the style as a plain LoRA',
);
const TUCKER = refused('this is a form for convolutions, of which FLUX has none');
const GLORA = refused('GLoRA changes weights depending on their values; supported are LoRA, LoHa and LoKr');
const OFT = refused(
  'OFT rotates weights, which is not an addition to them; supported are LoRA, LoHa and LoKr',
);
const CONTROL = refused('control LoRAs replace norms and widen img_in; they are not styles');

/** Ends of keys. */
const LEAVES: Readonly<Record<string, Leaf>> = {
  '.lora_A.weight': factor('lora', 'down'),
  '.lora_B.weight': factor('lora', 'up'),
  '.lora_A.default.weight': factor('lora', 'down'),
  '.lora_B.default.weight': factor('lora', 'up'),
  '.lora_A': factor('lora', 'down'),
  '.lora_B': factor('lora', 'up'),
  '.lora_down.weight': factor('lora', 'down'),
  '.lora_up.weight': factor('lora', 'up'),
  '.lora.down.weight': factor('lora', 'down'),
  '.lora.up.weight': factor('lora', 'up'),
  '.lora_linear_layer.down.weight': factor('lora', 'down'),
  '.lora_linear_layer.up.weight': factor('lora', 'up'),
  '.down.weight': factor('lora', 'down'),
  '.up.weight': factor('lora', 'up'),
  '.alpha': { kind: 'alpha' },

  ...Object.fromEntries(
    ['w1_a', 'w1_b', 'w2_a', 'w2_b'].map((role) => [`.hada_${role}`, factor('loha', role)]),
  ),
  ...Object.fromEntries(
    ['w1', 'w1_a', 'w1_b', 'w2', 'w2_a', 'w2_b'].map((role) => [`.lokr_${role}`, factor('lokr', role)]),
  ),

  '.lora_A.bias': addend('a bias'),
  '.lora_B.bias': addend('a bias'),
  '.lora_B.default.bias': addend('a bias'),
  '.lora_up.bias': addend('a bias'),
  '.diff_b': addend('a bias'),
  '.b_norm': addend('a bias'),
  '.w_norm': addend('a norm'),
  '.diff': addend('a whole weight'),

  '.dora_scale': DORA,
  '.magnitude_vector': DORA,
  '.lora_magnitude_vector': DORA,
  '.lora_magnitude_vector.weight': DORA,
  '.lora_magnitude_vector.default.weight': DORA,
  '.lora_mid.weight': TUCKER,
  '.hada_t1': TUCKER,
  '.hada_t2': TUCKER,
  '.lokr_t1': TUCKER,
  '.lokr_t2': TUCKER,
  '.a1.weight': GLORA,
  '.a2.weight': GLORA,
  '.b1.weight': GLORA,
  '.b2.weight': GLORA,
  '.oft_blocks': OFT,
  '.oft_diag': OFT,
  '.oft_R.weight': OFT,
  '.oft_R.default.weight': OFT,
  '.query_norm.scale': CONTROL,
  '.key_norm.scale': CONTROL,
  '.norm_q.weight': CONTROL,
  '.norm_k.weight': CONTROL,
  '.norm_added_q.weight': CONTROL,
  '.norm_added_k.weight': CONTROL,
  '.set_weight': CONTROL,
  '.reshape_weight': CONTROL,
};

/** Longest first: `.lora.down.weight` also ends in `.down.weight`. */
const ENDS = Object.entries(LEAVES).sort(([a], [b]) => b.length - a.length);

/** Takes the end off a key that says what the tensor is; undefined for an end that no LoRA has. */
export function splitKey(key: string): { stem: string; leaf: Leaf } | undefined {
  const found = ENDS.find(([end]) => key.endsWith(end));
  return found && { stem: key.slice(0, -found[0].length), leaf: found[1] };
}
