import type { GraphBuilder, Value } from '../graph/builder.ts';
import { add, attention, gather, linear, reshape, rowCount, rows, silu, transpose } from '../graph/ops.ts';
import type { GraphWeights } from '../graph/weights.ts';
import type { GroupNorms } from './norms.ts';

/** Queries of the attention that are compared with all keys at once where memory is bounded. */
const QUERIES_AT_ONCE = 1024;

/** The layers of an AutoencoderKL on [1, channels, height, width] values, by the canonical paths of its modules. */
export class VaeLayers {
  readonly g: GraphBuilder;
  readonly weights: GraphWeights;
  /** Positions per latent along one side, of the values that come next. */
  perLatent: number;
  readonly #norms: GroupNorms;

  readonly #chunked: boolean;

  constructor(
    g: GraphBuilder,
    weights: GraphWeights,
    norms: GroupNorms,
    perLatent: number,
    options: { attention?: 'whole' | 'chunked' } = {},
  ) {
    this.g = g;
    this.weights = weights;
    this.#norms = norms;
    this.perLatent = perLatent;
    this.#chunked = options.attention === 'chunked';
  }

  /** Convolution with a square kernel; `pads` as ONNX orders them: top, left, bottom, right. */
  conv(x: Value, path: string, options: { stride?: number; pads?: readonly number[] } = {}): Value {
    const weight = this.weights.get(`${path}.weight`);
    const kernel = weight.shape[2] as number;
    const same = Math.floor(kernel / 2);
    const { stride = 1, pads = [same, same, same, same] } = options;
    this.perLatent /= stride;
    const shape = [1, weight.shape[0]!, scaled(x.shape[2]!, 1 / stride), scaled(x.shape[3]!, 1 / stride)];
    return this.g.op(
      'Conv',
      [x, weight, this.weights.get(`${path}.bias`)],
      { type: x.type, shape },
      { kernel_shape: [kernel, kernel], strides: [stride, stride], pads },
    );
  }

  /** Group norm by the weights at `path`. */
  groupNorm(x: Value, path: string): Value {
    const { perLatent, weights } = this;
    return this.#norms.normalize(x, weights.get(`${path}.weight`), weights.get(`${path}.bias`), perLatent);
  }

  /** ResnetBlock2D without time embedding. */
  resnet(x: Value, path: string): Value {
    const { g } = this;
    const first = this.conv(silu(g, this.groupNorm(x, `${path}.norm1`)), `${path}.conv1`);
    const second = this.conv(silu(g, this.groupNorm(first, `${path}.norm2`)), `${path}.conv2`);
    const changes = x.shape[1] !== second.shape[1];
    return add(g, changes ? this.conv(x, `${path}.conv_shortcut`) : x, second);
  }

  /** The single-head attention of the middle block, over all positions. */
  attention(x: Value, path: string): Value {
    const { g } = this;
    const channels = x.shape[1] as number;
    const shape = g.op('Shape', [x], { type: 'int64', shape: [4] });
    const flat = reshape(g, this.groupNorm(x, `${path}.group_norm`), [channels, -1], [channels, 'P']);
    const tokens = transpose(g, flat, [1, 0]);
    const module = (input: Value, name: string): Value =>
      linear(g, input, this.weights.get(`${path}.${name}.weight`), this.weights.get(`${path}.${name}.bias`));
    const [q, k, v] = ['to_q', 'to_k', 'to_v'].map((name) => module(tokens, name)) as [Value, Value, Value];
    const attend = this.#chunked ? attentionInChunks : attention;
    const attended = attend(g, q, k, v, { heads: 1 });
    const out = transpose(g, module(attended, 'to_out.0'), [1, 0]);
    return add(g, x, g.op('Reshape', [out, shape], x));
  }

  middle(x: Value, path: string, withAttention: boolean): Value {
    const first = this.resnet(x, `${path}.resnets.0`);
    const attended = withAttention ? this.attention(first, `${path}.attentions.0`) : first;
    return this.resnet(attended, `${path}.resnets.1`);
  }

  /** Nearest-neighbour upsampling by two. */
  upsample(x: Value): Value {
    this.perLatent *= 2;
    const scales = this.g.constant(new Float32Array([1, 1, 2, 2]), [4]);
    const shape = [1, x.shape[1]!, scaled(x.shape[2]!, 2), scaled(x.shape[3]!, 2)];
    return this.g.op(
      'Resize',
      [x, null, scales],
      { type: x.type, shape },
      { mode: 'nearest', coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' },
    );
  }
}

/**
 * Attention of as many queries at a time as make a bounded matrix of logits: a head of 512 channels has no fused
 * kernel, and a picture of 1024 x 1024 would need 1 GiB. q, k, v and the result are [T, channels].
 */
function attentionInChunks(g: GraphBuilder, q: Value, k: Value, v: Value, options: { heads: number }): Value {
  const width = q.shape[1] as number;
  const one = g.constant(BigInt64Array.of(1n), [1]);
  const size = { type: 'int64', shape: [1] } as const;
  const int = (opType: string, a: Value, b: Value): Value => g.op(opType, [a, b], size);
  const roundedUp = (a: Value, b: Value): Value => int('Div', int('Sub', int('Add', a, b), one), b);
  const tokens = rowCount(g, q);
  const count = roundedUp(tokens, g.ints(QUERIES_AT_ONCE));
  const chunk = roundedUp(tokens, count);
  const rest = int('Sub', int('Mul', chunk, count), tokens);
  const pads = g.op('Concat', [g.ints(0, 0), rest, g.ints(0)], { type: 'int64', shape: [4] }, { axis: 0 });
  const padded = g.op('Pad', [q, pads], { type: q.type, shape: ['padded', width] });
  const split = g.op('Concat', [count, chunk, g.ints(width)], { type: 'int64', shape: [3] }, { axis: 0 });
  const chunks = g.op('Reshape', [padded, split], { type: q.type, shape: ['chunks', 'chunk', width] });

  const body = g.body(`${g.name}.chunk`);
  const index = body.input('chunk.index', 'int64', []);
  const more = body.input('chunk.more', 'bool', []);
  body.output('chunk.go_on', more);
  body.output('chunk.attended', attention(body, gather(body, chunks, index), k, v, options));
  const trips = g.op('Squeeze', [count], { type: 'int64', shape: [] });
  const attended = g.op('Loop', [trips, null], chunks, { body: { graph: body } });
  const flat = reshape(g, attended, [-1, width], ['padded', width]);
  return rows(g, flat, g.ints(0), tokens, q.shape[0]!);
}

function scaled(dim: number | string, factor: number): number | string {
  if (factor === 1) return dim;
  return typeof dim === 'number' ? Math.floor(dim * factor) : `${dim}*${factor}`;
}
