import { setImmediate as nextTurn } from 'node:timers/promises';
import { FluxError } from '../errors.ts';
import { FluxModel } from '../model.ts';
import { generate, type EngineImage } from '../pipeline.ts';
import { train, type TrainEvent, type TrainResult } from '../training/train.ts';
import { chooseDevice, type Device } from './provider.ts';
import { formatPlan } from './residency.ts';
import type { EngineStats, FromEngine, LoadResult, ToEngine } from './protocol.ts';

/*
 * The engine process: holds one model and makes one picture at a time. A run of a graph blocks this thread, so
 * messages are read between steps; whoever needs it to stop sooner kills the process.
 */

let model: FluxModel | null = null;
let loaded: { name: string; loadMs: number } | null = null;
let generated = 0;
/** Chosen at the first load: a process holds on to the device that it has opened. */
let device: Device | null = null;
const canceled = new Set<number>();
let training: AbortController | null = null;
let last: Promise<unknown> = Promise.resolve();

process.on('message', (message: ToEngine) => {
  switch (message.type) {
    case 'cancel':
      canceled.add(message.id);
      training?.abort();
      return;
    case 'close':
      process.disconnect();
      return;
    case 'stats':
      send({ type: 'result', id: message.id, value: stats() });
      return;
    case 'load':
      enqueue(message.id, () => load(message));
      return;
    case 'generate':
      enqueue(message.id, () => run(message));
      return;
    case 'train':
      enqueue(message.id, () => runTraining(message));
      return;
    default: {
      const never: never = message;
      throw new Error(`unknown message ${JSON.stringify(never)}`);
    }
  }
});
// The parent is gone or has closed the channel; nobody would read the result.
process.on('disconnect', () => process.exit(0));
// Ctrl-C reaches the whole process group; the parent decides when the engine ends.
process.on('SIGINT', () => {});

function enqueue(id: number, task: () => Promise<LoadResult | EngineImage | TrainResult>): void {
  last = last.then(task).then(
    (value) => send({ type: 'result', id, value }),
    (error: unknown) => {
      const known = error instanceof FluxError ? error : new FluxError('engine_failed', String(error));
      send({
        type: 'error',
        id,
        error: { code: known.code, message: known.message, details: { ...known.details } },
      });
    },
  );
}

async function load({ id, options }: ToEngine & { type: 'load' }): Promise<LoadResult> {
  await model?.release();
  model = null;
  loaded = null;
  const started = performance.now();
  device ??= await chooseDevice(options.provider ?? 'auto');
  model = await FluxModel.load({ ...options, device }, (progress) =>
    send({ type: 'load-progress', id, ...progress }),
  );
  const loadMs = performance.now() - started;
  loaded = { name: options.name, loadMs };
  if (model.residency) process.stdout.write(`${formatPlan(model.residency)}\n`);
  return { loadMs, device, residency: model.residency };
}

async function run({ id, request }: ToEngine & { type: 'generate' }): Promise<EngineImage> {
  if (!model) throw new FluxError('request_invalid', 'no model is loaded: send load first');
  try {
    const pipeline = generate(model, request);
    let step = 0;
    for (;;) {
      const next = await pipeline.next();
      if (next.done) {
        generated++;
        return next.value;
      }
      const event = next.value;
      if (event.phase === 'denoise') step = event.step;
      const steps = event.phase === 'denoise' ? event.steps : request.steps;
      send({ type: 'progress', id, progress: { phase: event.phase, step, steps } });
      await nextTurn();
      if (canceled.has(id)) throw new FluxError('canceled', `canceled after ${step} of ${steps} steps`);
    }
  } finally {
    canceled.delete(id);
  }
}

async function runTraining({ id, request }: ToEngine & { type: 'train' }): Promise<TrainResult> {
  // The model for pictures and the one in training would need the memory of both.
  await model?.release();
  model = null;
  loaded = null;
  training = new AbortController();
  if (canceled.has(id)) training.abort();
  try {
    device ??= await chooseDevice(request.model.provider ?? 'auto');
    const onEvent = (event: TrainEvent): void => {
      if (event.type === 'placed') process.stdout.write(`${event.plan}\n`);
      send({ type: 'train-event', id, event });
    };
    return await train({ ...request, model: { ...request.model, device } }, onEvent, training.signal);
  } finally {
    training = null;
    canceled.delete(id);
  }
}

function stats(): EngineStats {
  return {
    pid: process.pid,
    provider: device?.provider ?? null,
    model: loaded?.name ?? null,
    rssBytes: process.memoryUsage.rss(),
    loadMs: loaded?.loadMs ?? null,
    generated,
  };
}

function send(message: FromEngine): void {
  if (process.connected) process.send!(message);
}
