import type { OpenedModel, OpenedPart } from '../checkpoint/model-files.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { FluxError } from '../errors.ts';
import { CHUNK } from '../graph/streamed-weights.ts';
import { isConditionerModule } from '../transformer/conditioner.ts';
import type { TransformerPlan } from '../transformer/transformer.ts';
import type { Tiling } from '../vae/tiling.ts';

/** Where a part of a model is while jobs run. */
export interface ResidencyRow {
  part: string;
  where: 'device' | 'streamed to the device' | 'for each picture' | 'host';
  /** Of its weights. */
  weightBytes: number;
  /** What it takes of the device's memory, between its runs and during them. */
  heldBytes: number;
  peakBytes: number;
}

export interface ResidencyPlan {
  transformer: TransformerPlan;
  t5: 'resident' | 'streamed';
  autoencoder: { transient: boolean; tiling: Tiling };
  rows: readonly ResidencyRow[];
  /** Where room is scarce: what steps may take, and what is kept from them for what is opened for a moment. */
  scarce: { stepBytes: number; reserveBytes: number } | null;
  /** What the plan needs and what there is. */
  neededBytes: number;
  freeBytes: number;
}

/** The largest picture that every plan has room for. */
const PIXELS = 1024 * 1024;

/**
 * Sides of the autoencoder's tiles in latents, where it cannot have a whole picture at once: those that cut a picture of
 * 128 latents into 16, 9 or 4 tiles with little overlap.
 */
const TILES = [34, 44, 65];

const MIB = 2 ** 20;
/** Reserves are multiples of this; see Reserve. */
const RESERVE_STEP = 256 * MIB;
/** Of the driver, cuBLAS and cuDNN; measured on an H100 with CUDA 13. */
export const CONTEXT_BYTES = 600 * MIB;
/** LoRAs of rank 16 on every linear of FLUX.1 are 131 MB in fp16; this is three. */
const LORA_BYTES = 400 * MIB;

/**
 * Decides, from the shapes of a checkpoint and the free memory of a device, what is resident there. The token path
 * comes first: it runs in every step. Then what runs once per job, in the order of what streaming it costs. On a
 * device without room for the token path its blocks are streamed in every step.
 * @throws FluxError device_too_small when not even that fits
 */
export function planResidency(model: OpenedModel, tokenPathBytes: number, freeBytes: number): ResidencyPlan {
  const sizes = {
    'token path': tokenPathBytes,
    conditioner: partBytes(model.transformer, isConditionerName),
    T5: partBytes(model.t5),
    CLIP: partBytes(model.clip),
    autoencoder: partBytes(model.vae) * (4 / widestBytes(model.vae)),
  };
  const { spec } = model.transformer;
  const work = tokenPathWork(spec, PIXELS, model.vae.spec.scaleFactor);
  const budget = freeBytes - CONTEXT_BYTES;

  const rows: ResidencyRow[] = [];
  let held = 0;
  const place = (
    part: keyof typeof sizes,
    where: ResidencyRow['where'],
    heldBytes: number,
    peakBytes: number,
  ): void => {
    rows.push({ part, where, weightBytes: sizes[part], heldBytes, peakBytes });
    held += heldBytes;
  };

  const whole = Math.sqrt(PIXELS) / model.vae.spec.scaleFactor;
  const decoding = (side: number): number =>
    side < whole ? tiledWork(model, side) : sizes.autoencoder + wholeWork(model, side);
  const [smallest] = TILES as [number];
  // What an arena takes without rounding it up to the next power of two.
  const stepBytes = 2 ** Math.round(Math.log2(work + LORA_BYTES));
  const inMemory = sizes['token path'] + stepBytes;
  const resident = inMemory + decoding(smallest) <= budget;
  if (resident) place('token path', 'device', inMemory, 0);
  else
    place('token path', 'streamed to the device', 0, streamedBlock(spec, PIXELS, model.vae.spec.scaleFactor));

  const side = [...TILES, whole].findLast((tile) => held + decoding(tile) <= budget) ?? smallest;
  // Opened for each picture as long as room is scarce.
  const transient = side < whole;
  if (transient) place('autoencoder', 'for each picture', 0, decoding(side));
  else place('autoencoder', 'device', sizes.autoencoder, wholeWork(model, side));

  const peaks = (): number => Math.max(...rows.map(({ peakBytes }) => peakBytes));
  const fits = (bytes: number): boolean => resident && held + bytes + peaks() <= budget;
  // Streaming T5 costs about a second per prompt, the conditioner half a second per job.
  const t5 = fits(sizes.T5 * 1.1) ? 'resident' : 'streamed';
  if (t5 === 'resident') place('T5', 'device', sizes.T5 * 1.1, 0);
  else place('T5', 'streamed to the device', 0, (sizes.T5 / model.t5.spec.layers) * 1.3);
  const conditioner = fits(sizes.conditioner * 1.1) ? 'resident' : 'streamed';
  if (conditioner === 'resident') place('conditioner', 'device', sizes.conditioner * 1.1, 0);
  else place('conditioner', 'streamed to the device', 0, streamedEmbedder(spec));
  place('CLIP', 'host', 0, 0);

  const neededBytes = CONTEXT_BYTES + held + peaks();
  if (neededBytes > freeBytes)
    throw new FluxError(
      'device_too_small',
      `the device has ${gib(freeBytes)} GiB of free memory; this model needs ${gib(neededBytes)} GiB even with its ` +
        'blocks streamed',
      { details: { freeBytes, neededBytes } },
    );
  return {
    transformer: { conditioner, tokenPath: resident ? 'device' : 'streamed', compute: 'float16' },
    t5,
    autoencoder: {
      transient,
      tiling: { above: transient ? smallest : side, tile: side },
    },
    rows,
    scarce:
      resident && transient
        ? { stepBytes, reserveBytes: Math.floor((0.6 * (budget - held)) / RESERVE_STEP) * RESERVE_STEP }
        : null,
    neededBytes,
    freeBytes,
  };
}

/** The plan as a table for people. */
export function formatPlan({ rows, neededBytes, freeBytes, autoencoder }: ResidencyPlan): string {
  const lines = [
    ['part', 'where', 'weights', 'held', 'while it runs'],
    ...rows.map(({ part, where, weightBytes, heldBytes, peakBytes }) => [
      part,
      where,
      ...[weightBytes, heldBytes, peakBytes].map((bytes) => `${gib(bytes)} GiB`),
    ]),
  ];
  const widths = lines[0]!.map((_, i) => Math.max(...lines.map((line) => line[i]!.length)));
  const table = lines.map((line) =>
    line
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  );
  const tiles = `pictures above ${autoencoder.tiling.above} latents a side are decoded in tiles`;
  return [...table, `needs ${gib(neededBytes)} of ${gib(freeBytes)} GiB free; ${tiles}`].join('\n');
}

/** For people; two digits. */
export function gib(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(2);
}

function isConditionerName(name: string): boolean {
  return isConditionerModule(name.replace(/\.(weight|bias)$/, ''));
}

/** Bytes of the weights of a part that `wanted` lets through, as they are stored. */
export function partBytes(part: OpenedPart<unknown>, wanted: (name: string) => boolean = () => true): number {
  return part.weights
    .names()
    .filter(wanted)
    .reduce((sum, name) => sum + part.weights.get(name).byteLength, 0);
}

function widestBytes({ weights }: OpenedPart<unknown>): number {
  return Math.max(
    ...weights.names().map((name) => {
      const { byteLength, shape } = weights.get(name);
      return byteLength / shape.reduce((product, size) => product * size, 1);
    }),
  );
}

/** Weights of the largest block in fp8, as they are fed. */
function blockBytes({ hiddenSize, mlpSize }: TransformerSpec): number {
  return 2 * (4 * hiddenSize ** 2 + 2 * hiddenSize * mlpSize);
}

/**
 * A double block as it is streamed: its weights, indices and values of the part that is widened, and the activations
 * beside which its MLP runs; `peakLiveBytes` finds 5 % less for FLUX.1. An arena grows by doubling, so as much again;
 * LoRAs are those of one block, of which there are dozens.
 */
function streamedBlock(spec: TransformerSpec, pixels: number, scaleFactor: number): number {
  const tokens = pixels / (2 * scaleFactor) ** 2 + 512;
  const activations = 2 * tokens * (spec.hiddenSize + 2 * spec.mlpSize);
  return 2 * (blockBytes(spec) + 7 * CHUNK + activations) + LORA_BYTES / 10;
}

/** The conditioner's largest unit in bf16, computed in fp32, and as much again for the arena. */
function streamedEmbedder({ hiddenSize, jointDim, pooledDim, timestepDim }: TransformerSpec): number {
  const weights = hiddenSize * (3 * hiddenSize + 2 * timestepDim + pooledDim + jointDim);
  const text = 4 * 512 * (jointDim + 2 * hiddenSize);
  return 2 * (2 * weights + 10 * CHUNK + text);
}

/** Values of a step in fp16 at the widest point of a block, 475 MiB at 1024 pixels with LoRAs, and what an arena cuts away. */
function tokenPathWork(
  { hiddenSize, mlpSize }: TransformerSpec,
  pixels: number,
  scaleFactor: number,
): number {
  const tokens = pixels / (2 * scaleFactor) ** 2 + 512;
  return 2 * tokens * (16 * hiddenSize + 4 * mlpSize);
}

/** Of the autoencoder on a square of `side` latents in one piece; 8.2 GiB were measured for 1024 pixels. */
function wholeWork({ vae }: OpenedModel, side: number): number {
  const { blockOutChannels, scaleFactor } = vae.spec;
  return 4 * 8 * blockOutChannels[1]! * (side * scaleFactor) ** 2;
}

/**
 * Of the autoencoder in tiles of `side` latents: the live values of its widest stage, or of the one with the attention,
 * and twice as much again for what an arena rounds up and cuDNN asks for.
 */
function tiledWork({ vae }: OpenedModel, side: number): number {
  const { blockOutChannels, scaleFactor } = vae.spec;
  const live = Math.max(2 * blockOutChannels[1]!, 3 * blockOutChannels[0]!) * (side * scaleFactor) ** 2;
  const attention = 14_336 * (PIXELS / scaleFactor ** 2);
  return 3 * Math.max(4 * live, attention) + 100 * MIB;
}
