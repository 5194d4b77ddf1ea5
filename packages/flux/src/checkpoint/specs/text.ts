/** The sizes of a CLIP text encoder. */
export interface ClipSpec {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly layers: number;
  readonly mlpSize: number;
  readonly maxPositions: number;
  readonly activation: 'quick_gelu' | 'gelu';
  readonly layerNormEps: number;
  readonly eosTokenId: number;
  /**
   * Where the pooled state is taken: at the first end token, or at the highest token id. The latter is what HF
   * does for configs that still carry the wrong eos_token_id 2 (FLUX.1's among them).
   */
  readonly pooling: 'first_eos' | 'highest_id';
}

/** The sizes of a T5 v1.1 encoder. */
export interface T5Spec {
  readonly vocabSize: number;
  readonly modelDim: number;
  readonly numHeads: number;
  /** Width of one head; numHeads * headDim need not be modelDim. */
  readonly headDim: number;
  readonly layers: number;
  /** Width of the gated MLP. */
  readonly mlpSize: number;
  readonly relativeBuckets: number;
  readonly relativeMaxDistance: number;
  readonly layerNormEps: number;
}
