import { GenerationJob, ProgressEvent } from '@atelier/shared';
import { type TestApi, expectProblem, startTestApi, submit } from '../support/api.ts';
import { type InstantWorker, startInstantWorker } from '../support/instant-worker.ts';

let api: TestApi;
let worker: InstantWorker | null = null;
beforeEach(async () => {
  api = await startTestApi();
});
afterEach(async () => {
  await worker?.close();
  worker = null;
  await api.close();
});

interface ServerEvent {
  id: string;
  event: string;
  data: string;
}

async function submitted(): Promise<string> {
  const response = await submit(api, { prompt: 'a', steps: 4 });
  return GenerationJob.parse(await response.json()).id;
}

function open(id: string, lastEventId?: string, signal?: AbortSignal): Promise<Response> {
  const headers = lastEventId === undefined ? undefined : { 'Last-Event-ID': lastEventId };
  return fetch(`${api.url}/v1/generations/${id}/events`, {
    ...(headers && { headers }),
    ...(signal && { signal }),
  });
}

/** The events of a stream as they come; ends with it. */
async function* events(response: Response): AsyncGenerator<ServerEvent> {
  let text = '';
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const blocks = text.split('\n\n');
    text = blocks.pop()!;
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split('\n').map((line) => line.split(/: (.*)/s, 2)));
      if (fields['event']) yield fields as ServerEvent;
    }
  }
}

test('a stream tells the whole life of a job in order and ends with it', async () => {
  const id = await submitted();
  const response = await open(id);
  expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
  const seen: ServerEvent[] = [];
  const reading = (async () => {
    for await (const event of events(response)) {
      seen.push(event);
      // The job starts only when the first event is here, so none can be missed by being early.
      if (seen.length === 1)
        worker = startInstantWorker(api, () => new Promise((resolve) => setTimeout(resolve, 30)));
    }
  })();
  await reading;

  const statuses = seen
    .filter(({ event }) => event === 'status')
    .map(({ data }) => GenerationJob.parse(JSON.parse(data)));
  expect(statuses.map((job) => job.status)).toEqual(['queued', 'running', 'succeeded']);
  expect(statuses.at(-1)?.output?.images[0]?.url).toBe(`${api.url}/v1/generations/${id}/images/0`);
  const steps = seen
    .filter(({ event }) => event === 'progress')
    .map(({ data }) => ProgressEvent.parse(JSON.parse(data)).progress.step);
  expect(steps.length).toBeGreaterThanOrEqual(2);
  expect(steps).toEqual([...new Set(steps)].sort((a, b) => a - b));
  expect(new Set(seen.map((event) => event.id)).size).toBe(seen.length);
});

test('a client that comes back is told only what is new, and to stop when that is nothing', async () => {
  const gate = Promise.withResolvers<void>();
  worker = startInstantWorker(api, (_record, step) => (step === 3 ? gate.promise : undefined));
  const id = await submitted();
  const leave = new AbortController();
  let last = '';
  for await (const event of events(await open(id, undefined, leave.signal))) {
    last = event.id;
    if (last === '1-running-2') break;
  }
  leave.abort();
  gate.resolve();
  const rest: ServerEvent[] = [];
  for await (const event of events(await open(id, last))) rest.push(event);
  expect(rest.map((event) => event.id)).not.toContain(last);
  expect(rest.at(-1)?.id).toBe('1-succeeded-4');

  expect((await open(id, '1-succeeded-4')).status).toBe(204);
});

test('many streams of one job all end, and the one of another job is not disturbed', async () => {
  const ids = [await submitted(), await submitted()];
  const streams = await Promise.all([...Array.from({ length: 20 }, () => open(ids[0]!)), open(ids[1]!)]);
  worker = startInstantWorker(api);
  const lasts = await Promise.all(
    streams.map(async (stream) => {
      let last: ServerEvent | undefined;
      for await (const event of events(stream)) last = event;
      return GenerationJob.parse(JSON.parse(last!.data));
    }),
  );
  expect(lasts.map((job) => job.status)).toEqual(Array.from({ length: 21 }, () => 'succeeded'));
  expect(lasts.at(-1)?.id).toBe(ids[1]);
});

test('a stream lives through a Redis that restarts', async () => {
  const id = await submitted();
  const seen: string[] = [];
  for await (const event of events(await open(id))) {
    seen.push(event.id);
    if (seen.length === 1) {
      await api.redis.restart();
      worker = startInstantWorker(api);
    }
  }
  expect(seen.at(-1)).toBe('1-succeeded-4');
});

test('a shutdown ends open streams', async () => {
  const stream = await open(await submitted());
  const reading = (async () => {
    for await (const event of events(stream)) expect(event.event).toBe('status');
  })();
  const started = Date.now();
  await api.closeServer();
  await reading;
  expect(Date.now() - started).toBeLessThan(2_000);
});

test('an unknown job is a problem, not a stream', async () => {
  await expectProblem(await open('gen_00000000000000000000000000000000'), 404, 'not_found');
});
