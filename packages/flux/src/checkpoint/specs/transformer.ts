/** The sizes of a FLUX transformer, read off its tensors. */
export interface TransformerSpec {
  /** Width of the residual stream; numHeads * headDim. */
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly doubleBlocks: number;
  readonly singleBlocks: number;
  /** Width of the MLP of both kinds of block. */
  readonly mlpSize: number;
  /** Values of one packed latent token going in, and coming out. */
  readonly inChannels: number;
  readonly outChannels: number;
  /** Width of the T5 states. */
  readonly jointDim: number;
  /** Width of the pooled CLIP state. */
  readonly pooledDim: number;
  /** Whether guidance is embedded (dev) or not (schnell). */
  readonly guidanceEmbeds: boolean;
  /** Parts of headDim that rotate with (batch id, row, column); each is even and they sum to headDim. */
  readonly axesDims: readonly number[];
  /** Base of the rotary frequencies. */
  readonly theta: number;
  /** Width of the sinusoidal embedding of timestep and guidance. */
  readonly timestepDim: number;
  /** Whether the q, k, v projections of the double blocks have biases. */
  readonly hasQkvBias: boolean;
}
