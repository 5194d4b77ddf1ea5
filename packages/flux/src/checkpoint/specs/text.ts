import type { Config, ConfigKind } from '../config.ts';
import type { MappedWeights } from '../layouts/layout.ts';
import { invalid } from '../problems.ts';
import { anchorShape, checkTensors, countBlocks, ShapeTable, type ExpectedShapes } from './check.ts';

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
  /** The token that fills a text up to its length; T5 attends to it. */
  readonly padTokenId: number;
}

export const CLIP_CONFIG: ConfigKind = Object.freeze({
  name: 'text_encoder_config.json',
  describes: ['clip_text_model', 'CLIPTextModel'],
});
export const T5_CONFIG: ConfigKind = Object.freeze({
  name: 'text_encoder_2_config.json',
  describes: ['t5', 'T5EncoderModel'],
});

/** The value of eos_token_id by which HF recognises configs written before the field meant anything. */
const LEGACY_EOS_TOKEN_ID = 2;

/** Derives the sizes of a CLIP text encoder from its tensors and its config, and holds each against the other. */
export function clipSpec(weights: MappedWeights, config: Config): ClipSpec {
  const embeddings = 'text_model.embeddings';
  const [vocabSize = 0, hiddenSize = 0] = anchorShape(weights, `${embeddings}.token_embedding.weight`, 2);
  const [maxPositions = 0] = anchorShape(weights, `${embeddings}.position_embedding.weight`, 2);
  const [mlpSize = 0] = anchorShape(weights, 'text_model.encoder.layers.0.mlp.fc1.weight', 2);
  const numHeads = config.integer('num_attention_heads', undefined, 1);
  if (hiddenSize % numHeads !== 0) {
    throw invalid(config.file, `num_attention_heads is ${numHeads}; it must divide the width ${hiddenSize}`, {
      key: 'num_attention_heads',
      found: numHeads,
    });
  }
  const eosTokenId = config.integer('eos_token_id');
  const spec: ClipSpec = Object.freeze({
    vocabSize,
    hiddenSize,
    numHeads,
    headDim: hiddenSize / numHeads,
    layers: countBlocks(weights, 'text_model.encoder.layers.'),
    mlpSize,
    maxPositions,
    activation: config.choice('hidden_act', ['quick_gelu', 'gelu']),
    layerNormEps: config.number('layer_norm_eps'),
    eosTokenId,
    pooling: eosTokenId === LEGACY_EOS_TOKEN_ID ? 'highest_id' : 'first_eos',
  });
  checkTensors(weights, clipShapes(spec));
  config.checkAgainst({
    vocab_size: vocabSize,
    hidden_size: hiddenSize,
    intermediate_size: mlpSize,
    num_hidden_layers: spec.layers,
    max_position_embeddings: maxPositions,
  });
  return spec;
}

/** Every tensor of a CLIP text encoder of these sizes, by canonical name. */
export function clipShapes(spec: ClipSpec): ExpectedShapes {
  const { hiddenSize: d } = spec;
  const table = new ShapeTable();
  table.module('text_model.embeddings.token_embedding', [spec.vocabSize, d], false);
  table.module('text_model.embeddings.position_embedding', [spec.maxPositions, d], false);
  for (let i = 0; i < spec.layers; i++) {
    const layer = `text_model.encoder.layers.${i}`;
    for (const name of ['q_proj', 'k_proj', 'v_proj', 'out_proj'])
      table.module(`${layer}.self_attn.${name}`, [d, d]);
    for (const name of ['layer_norm1', 'layer_norm2']) table.module(`${layer}.${name}`, [d]);
    table.module(`${layer}.mlp.fc1`, [spec.mlpSize, d]);
    table.module(`${layer}.mlp.fc2`, [d, spec.mlpSize]);
  }
  table.module('text_model.final_layer_norm', [d]);
  return table.shapes;
}

/** Derives the sizes of a T5 v1.1 encoder from its tensors and its config, and holds each against the other. */
export function t5Spec(weights: MappedWeights, config: Config): T5Spec {
  // Without this T5 v1.0, whose MLP is a plain ReLU one, would only be a file that lacks tensors.
  config.choice('feed_forward_proj', ['gated-gelu']);
  config.choice('dense_act_fn', ['gelu_new'], 'gelu_new');
  const attention = 'encoder.block.0.layer.0.SelfAttention';
  const [vocabSize = 0, modelDim = 0] = anchorShape(weights, 'shared.weight', 2);
  const [relativeBuckets = 0, numHeads = 0] = anchorShape(
    weights,
    `${attention}.relative_attention_bias.weight`,
    2,
  );
  const [innerDim = 0] = anchorShape(weights, `${attention}.q.weight`, 2);
  const [mlpSize = 0] = anchorShape(weights, 'encoder.block.0.layer.1.DenseReluDense.wi_0.weight', 2);
  if (innerDim % numHeads !== 0) {
    throw invalid(
      weights.location,
      `has attention of width ${innerDim}, which ${numHeads} heads cannot share`,
      {
        found: innerDim,
        numHeads,
      },
    );
  }
  const spec: T5Spec = Object.freeze({
    vocabSize,
    modelDim,
    numHeads,
    headDim: innerDim / numHeads,
    layers: countBlocks(weights, 'encoder.block.'),
    mlpSize,
    relativeBuckets,
    relativeMaxDistance: config.integer('relative_attention_max_distance', 128, 1),
    layerNormEps: config.number('layer_norm_epsilon'),
    padTokenId: config.integer('pad_token_id', 0),
  });
  checkTensors(weights, t5Shapes(spec));
  config.checkAgainst({
    vocab_size: vocabSize,
    d_model: modelDim,
    d_kv: spec.headDim,
    d_ff: mlpSize,
    num_heads: numHeads,
    num_layers: spec.layers,
    relative_attention_num_buckets: relativeBuckets,
  });
  return spec;
}

/** Every tensor of a T5 v1.1 encoder of these sizes, by canonical name. */
export function t5Shapes(spec: T5Spec): ExpectedShapes {
  const { modelDim: d, mlpSize } = spec;
  const inner = spec.numHeads * spec.headDim;
  const table = new ShapeTable();
  table.module('shared', [spec.vocabSize, d], false);
  for (let i = 0; i < spec.layers; i++) {
    const attention = `encoder.block.${i}.layer.0`;
    for (const name of ['q', 'k', 'v']) table.module(`${attention}.SelfAttention.${name}`, [inner, d], false);
    table.module(`${attention}.SelfAttention.o`, [d, inner], false);
    table.module(`${attention}.layer_norm`, [d], false);
    const mlp = `encoder.block.${i}.layer.1`;
    for (const name of ['wi_0', 'wi_1']) table.module(`${mlp}.DenseReluDense.${name}`, [mlpSize, d], false);
    table.module(`${mlp}.DenseReluDense.wo`, [d, mlpSize], false);
    table.module(`${mlp}.layer_norm`, [d], false);
  }
  // Only the first layer has one; the others use its result.
  table.module(
    'encoder.block.0.layer.0.SelfAttention.relative_attention_bias',
    [spec.relativeBuckets, spec.numHeads],
    false,
  );
  table.module('encoder.final_layer_norm', [d], false);
  return table.shapes;
}
