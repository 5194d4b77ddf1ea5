import { randomInt } from 'node:crypto';
import type { Catalog } from './catalog.ts';
import type { GenerationInput, GenerationRequest, PinnedStyle } from './contracts/generation.ts';
import { LIMITS } from './contracts/generation.ts';
import { AtelierError } from './errors.ts';

/**
 * What a worker will execute: the model's defaults for absent fields, and a concrete seed (0 to 2^32 - 1 for -1, the
 * range that other tools accept). The init image must be in the object store already: `imageKey` is its place; the
 * styles must have been pinned: `styles` has one for each of the request's.
 * @throws AtelierError `unknown_model`, or `validation_failed` for what no worker could do
 */
export function resolveInput(
  request: GenerationRequest,
  catalog: Catalog,
  options: { imageKey?: string; styles?: readonly PinnedStyle[] } = {},
): GenerationInput {
  const model = request.model === undefined ? catalog.default : catalog.get(request.model);
  const seed = request.seed === -1 ? randomInt(2 ** 32) : request.seed;
  const highest = LIMITS.seed.max - (request.count - 1);
  if (seed > highest) refuse('seed', `must be at most ${highest} when count is ${request.count}`);
  if (request.image && options.imageKey === undefined)
    throw new AtelierError('internal_error', 'The init image was not stored before the input was resolved');
  const { styles = [] } = options;
  if (request.styles.length !== styles.length)
    throw new AtelierError('internal_error', 'The styles were not pinned before the input was resolved');
  return {
    prompt: request.prompt,
    model: model.name,
    styles: [...styles],
    width: request.width ?? model.defaults.width,
    height: request.height ?? model.defaults.height,
    steps: request.steps ?? model.defaults.steps,
    guidance: request.guidance ?? model.defaults.guidance,
    seed,
    count: request.count,
    format: request.format,
    priority: request.priority,
    ...(request.image ? { image: { key: options.imageKey!, strength: request.image.strength } } : {}),
  };
}

function refuse(field: string, message: string): never {
  throw new AtelierError('validation_failed', `${field} ${message}`, { errors: [{ field, message }] });
}
