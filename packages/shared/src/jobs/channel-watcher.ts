import type { Redis } from 'ioredis';
import { createSubscriber } from '../redis.ts';

type Listener = (message: string) => void;

/**
 * Listeners on Redis channels over one connection, made at the first use. Pub/sub forgets what it could not
 * deliver, so `onReconnect` tells the listener that messages may be missing.
 */
export class ChannelWatcher {
  readonly #redis: Redis;
  readonly #listeners = new Map<string, Set<{ onMessage: Listener; onReconnect: () => void }>>();
  #subscriber: Redis | null = null;

  constructor(redis: Redis) {
    this.#redis = redis;
  }

  /** Resolves once the subscription is in force, to a function that ends it. */
  async watch(
    channel: string,
    onMessage: Listener,
    onReconnect: () => void = () => {},
  ): Promise<() => Promise<void>> {
    const listener = { onMessage, onReconnect };
    const existing = this.#listeners.get(channel);
    const listeners = existing ?? new Set();
    this.#listeners.set(channel, listeners.add(listener));
    // Redis treats a second SUBSCRIBE as done; awaiting it waits for the first one, sent on the same connection.
    await this.#connection().subscribe(channel);
    return async () => {
      listeners.delete(listener);
      if (listeners.size > 0 || this.#listeners.get(channel) !== listeners) return;
      this.#listeners.delete(channel);
      if (this.#subscriber?.status === 'ready') await this.#subscriber.unsubscribe(channel).catch(() => {});
    };
  }

  close(): void {
    this.#listeners.clear();
    this.#subscriber?.disconnect();
    this.#subscriber = null;
  }

  #connection(): Redis {
    if (this.#subscriber) return this.#subscriber;
    const subscriber = createSubscriber(this.#redis);
    subscriber.on('message', (channel, message) => {
      for (const { onMessage } of this.#listeners.get(channel) ?? []) onMessage(message);
    });
    subscriber.on('ready', () => {
      for (const listeners of this.#listeners.values())
        for (const { onReconnect } of listeners) onReconnect();
    });
    this.#subscriber = subscriber;
    return subscriber;
  }
}
