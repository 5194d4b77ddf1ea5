// A dispatcher of webhooks as a process of its own, so that a test can kill or freeze it. Its environment is the API's;
// LEASE_MS shortens the time after which what it held is due again.
import { once } from 'node:events';
import { createLogger, createRedis, loadConfig } from '@atelier/shared';
import { loadSettings } from '../../apps/api/src/settings.ts';
import { WebhookDispatcher } from '../../apps/api/src/webhooks/dispatcher.ts';

const config = loadConfig();
const redis = createRedis(config, 'api');
await once(redis, 'ready');
const settings = loadSettings(config.ATELIER_HOST);
const leaseMs = Number(process.env['LEASE_MS']);
void new WebhookDispatcher({ config, redis, settings, log: createLogger(config, 'webhooks') }, { leaseMs });
