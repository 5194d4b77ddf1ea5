import { once } from 'node:events';
import { type IncomingMessage, type ServerResponse, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Received {
  path: string;
  headers: Record<string, string>;
  body: string;
  /** The body as an object. */
  event: { type: string; timestamp: string; data: Record<string, unknown> };
  at: number;
}

export interface WebhookReceiver {
  /** Without a slash at the end. */
  readonly url: string;
  readonly received: Received[];
  /** Answers each request after it was noted; 204 unless it does. */
  answer: (req: Received, res: ServerResponse) => unknown;
  /** Resolves when `count` requests have come. */
  until(count: number, ms?: number): Promise<Received[]>;
  close(): Promise<void>;
}

/** A real HTTP server that takes webhooks. */
export async function startWebhookReceiver(): Promise<WebhookReceiver> {
  const receiver: WebhookReceiver = {
    url: '',
    received: [],
    answer: (_req, res) => void res.writeHead(204).end(),
    until: async (count, ms = 10_000) => {
      const deadline = Date.now() + ms;
      while (receiver.received.length < count) {
        if (Date.now() > deadline)
          throw new Error(`${receiver.received.length} of ${count} webhooks came within ${ms} ms`);
        await sleep(10);
      }
      return receiver.received;
    },
    close: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
  const server = createServer((req, res) => void take(receiver, req, res));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return Object.assign(receiver, { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
}

async function take(receiver: WebhookReceiver, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const body = (await buffer(req)).toString();
  const headers = req.headers as Record<string, string>;
  const event = JSON.parse(body) as Received['event'];
  const received = { path: req.url ?? '', headers, body, event, at: Date.now() };
  receiver.received.push(received);
  await receiver.answer(received, res);
}
