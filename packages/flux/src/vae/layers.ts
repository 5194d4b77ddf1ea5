import type { GraphBuilder, Value } from '../graph/builder.ts';
import { add, attention, linear, mul, reshape, silu, transpose } from '../graph/ops.ts';
import type { GraphWeights } from '../graph/weights.ts';

/** Epsilon of every norm in diffusers' AutoencoderKL. */
const EPSILON = 1e-6;

/** The layers of an AutoencoderKL on [1, channels, height, width] values, by the canonical paths of its modules. */
export class VaeLayers {
  readonly g: GraphBuilder;
  readonly weights: GraphWeights;
  readonly #groups: number;

  constructor(g: GraphBuilder, weights: GraphWeights, groups: number) {
    this.g = g;
    this.weights = weights;
    this.#groups = groups;
  }

  /** Convolution with a square kernel; `pads` as ONNX orders them: top, left, bottom, right. */
  conv(x: Value, path: string, options: { stride?: number; pads?: readonly number[] } = {}): Value {
    const weight = this.weights.get(`${path}.weight`);
    const kernel = weight.shape[2] as number;
    const same = Math.floor(kernel / 2);
    const { stride = 1, pads = [same, same, same, same] } = options;
    const shape = [1, weight.shape[0]!, scaled(x.shape[2]!, 1 / stride), scaled(x.shape[3]!, 1 / stride)];
    return this.g.op(
      'Conv',
      [x, weight, this.weights.get(`${path}.bias`)],
      { type: x.type, shape },
      { kernel_shape: [kernel, kernel], strides: [stride, stride], pads },
    );
  }

  /**
   * Group norm. ONNX Runtime has no CPU kernel for it: the groups are normalised as instances, then every channel
   * gets its own scale and bias.
   */
  groupNorm(x: Value, path: string): Value {
    const { g } = this;
    const channels = x.shape[1] as number;
    const ones = g.constant(new Float32Array(this.#groups).fill(1), [this.#groups]);
    const zeros = g.constant(new Float32Array(this.#groups), [this.#groups]);
    const grouped = reshape(g, x, [0, this.#groups, -1], [1, this.#groups, 'group']);
    const normed = g.op('InstanceNormalization', [grouped, ones, zeros], grouped, {
      epsilon: { float: EPSILON },
    });
    const shape = g.op('Shape', [x], { type: 'int64', shape: [4] });
    const back = g.op('Reshape', [normed, shape], x);
    const perChannel = (name: string): Value =>
      reshape(g, this.weights.get(`${path}.${name}`), [channels, 1, 1], [channels, 1, 1]);
    return add(g, mul(g, back, perChannel('weight')), perChannel('bias'));
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
    const attended = attention(g, module(tokens, 'to_q'), module(tokens, 'to_k'), module(tokens, 'to_v'), {
      heads: 1,
    });
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

function scaled(dim: number | string, factor: number): number | string {
  if (factor === 1) return dim;
  return typeof dim === 'number' ? Math.floor(dim * factor) : `${dim}*${factor}`;
}
