import { type Matrix, multiply } from './matrix.ts';

/** LoRA files and what they change, worked out without the code under test. */

/** One F32 tensor of a file under mutation. */
export interface Tensor {
  shape: number[];
  data: Float32Array;
}

/** `config` is its lora_adapter_metadata. */
export interface File {
  tensors: Map<string, Tensor>;
  config?: Record<string, unknown>;
}

/** The bytes of a safetensors file. */
export function encode({ tensors, config }: File): Buffer {
  let offset = 0;
  const header: Record<string, unknown> = {};
  if (config) header['__metadata__'] = { lora_adapter_metadata: JSON.stringify(config) };
  for (const [name, { shape, data }] of tensors) {
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, (offset += data.byteLength)] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.byteLength));
  const parts = [...tensors.values()].map(({ data }) =>
    Buffer.from(data.buffer, data.byteOffset, data.byteLength),
  );
  return Buffer.concat([length, json, ...parts]);
}

/** The file that accepted bytes are, by their own header. */
export function decode(bytes: Buffer): File {
  const begin = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, begin).toString()) as Record<
    string,
    { shape: number[]; data_offsets: [number, number]; lora_adapter_metadata?: string }
  >;
  const config = header['__metadata__']?.lora_adapter_metadata;
  const tensors = Object.entries(header).filter(([name]) => name !== '__metadata__');
  return {
    tensors: new Map(
      tensors.map(
        ([
          name,
          {
            shape,
            data_offsets: [from, to],
          },
        ]) => {
          const data = new Float32Array(Uint8Array.from(bytes.subarray(begin + from, begin + to)).buffer);
          return [name, { shape, data }];
        },
      ),
    ),
    ...(config !== undefined && { config: JSON.parse(config) as Record<string, unknown> }),
  };
}

const END =
  /^(.*?)\.(lora_A\.weight|lora_down\.weight|down\.weight|lora_B\.weight|lora_up\.weight|up\.weight|alpha|(?:hada|lokr)_w\w+)$/;

/**
 * Sum of the squares of all elements of all changes in a file, by the definitions of the formats. Splitting rows,
 * renaming and factoring keep it; leaving out, doubling or scaling something wrongly does not.
 */
export function energyOf({ tensors, config }: File): number {
  const stems = new Map<string, Map<string, Tensor>>();
  for (const [name, tensor] of tensors) {
    const [, stem = name, end = ''] = END.exec(name) ?? [];
    const role = end
      .replace(/^(lora_A|lora_down|down)\.weight$/, 'A')
      .replace(/^(lora_B|lora_up|up)\.weight$/, 'B');
    stems.set(stem, (stems.get(stem) ?? new Map<string, Tensor>()).set(role, tensor));
  }
  let energy = 0;
  for (const [stem, roles] of stems) energy += squares(changeBy(stem, roles, config));
  return energy;
}

function changeBy(stem: string, roles: ReadonlyMap<string, Tensor>, config: File['config']): number[] {
  const get = (role: string): Matrix => {
    const { shape, data } = roles.get(role)!;
    return { rows: shape[0]!, columns: shape[1]!, data };
  };
  const whole = (role: string): Matrix =>
    roles.has(role) ? get(role) : multiply(get(`${role}_a`), get(`${role}_b`));
  const alpha = roles.get('alpha')?.data[0] || undefined;
  if (roles.has('A')) {
    const rank = get('A').rows;
    const described =
      stem.startsWith('transformer.') && config ? (config['transformer.lora_alpha'] as number) : rank;
    const root =
      config?.['transformer.use_rslora'] === true && stem.startsWith('transformer.') ? Math.sqrt(rank) : rank;
    const scale = alpha === undefined ? described / root : alpha / rank;
    return Array.from(multiply(get('B'), get('A')).data, (value) => value * scale);
  }
  if (roles.has('hada_w1_a')) {
    const [first, second] = [whole('hada_w1'), whole('hada_w2')];
    const scale = alpha === undefined ? 1 : alpha / get('hada_w1_b').rows;
    return Array.from(first.data, (value, i) => value * second.data[i]! * scale);
  }
  if (roles.has('lokr_w1') || roles.has('lokr_w1_a')) {
    const rank = (roles.get('lokr_w2_b') ?? roles.get('lokr_w1_b'))?.shape[0];
    const scale = alpha === undefined || rank === undefined ? 1 : alpha / rank;
    const second = whole('lokr_w2').data;
    return Array.from(whole('lokr_w1').data).flatMap((a) => Array.from(second, (b) => a * b * scale));
  }
  return [];
}

export function squares(list: Iterable<number>): number {
  let sum = 0;
  for (const value of list) sum += value ** 2;
  return sum;
}
