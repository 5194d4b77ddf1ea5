/** The sizes of an AutoencoderKL. */
export interface VaeSpec {
  /** Channels of each resolution level, highest resolution first. */
  readonly blockOutChannels: readonly number[];
  /** Residual blocks of a level of the encoder; a level of the decoder has one more. */
  readonly layersPerBlock: number;
  readonly latentChannels: number;
  readonly inChannels: number;
  readonly outChannels: number;
  readonly normGroups: number;
  /** model latent = (vae latent - shiftFactor) * scalingFactor */
  readonly scalingFactor: number;
  readonly shiftFactor: number;
  /** Pixels per latent along one side: 2 ** (levels - 1). */
  readonly scaleFactor: number;
  /** Whether encoder and decoder attend in their middle. */
  readonly midAttention: boolean;
  /** Whether a 1 x 1 convolution follows the encoder, and whether one precedes the decoder. FLUX has neither. */
  readonly hasQuantConv: boolean;
  readonly hasPostQuantConv: boolean;
}
