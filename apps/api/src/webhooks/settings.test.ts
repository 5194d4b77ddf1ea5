import { loadSettings } from '../settings.ts';

const webhooks = (env: Record<string, string>, host = '127.0.0.1') => loadSettings(host, env).webhooks;
const KEYS = { ATELIER_API_KEYS: 'a-key-of-sixteen-characters' };

test('the defaults', () => {
  expect(webhooks(KEYS)).toEqual({
    deliver: true,
    secret: null,
    allow: { names: [], networks: [] },
    retryS: [5, 30, 120, 600, 3600, 10_800, 28_800],
  });
});

test('loopback is allowed where only programs of this machine submit jobs', () => {
  const local = { names: ['localhost'], networks: ['127.0.0.0/8', '::1/128'] };
  expect(webhooks({}).allow).toEqual(local);
  expect(webhooks({ ATELIER_PUBLIC_URL: 'https://atelier.test' }).allow.networks).toEqual([]);
  expect(webhooks(KEYS, '0.0.0.0').allow.networks).toEqual([]);
});

test('names, addresses and networks may be allowed', () => {
  const allow = 'Hooks.Internal, 10.1.0.0/16,192.168.1.9 , fd00::/8,::1';
  expect(webhooks({ ...KEYS, ATELIER_WEBHOOK_ALLOW: allow }).allow).toEqual({
    names: ['hooks.internal'],
    networks: ['10.1.0.0/16', '192.168.1.9/32', 'fd00::/8', '::1/128'],
  });
});

test.each([
  [{ ATELIER_WEBHOOK_ALLOW: '10.1.0.0/99' }, /ATELIER_WEBHOOK_ALLOW: allowed are host names/],
  [{ ATELIER_WEBHOOK_ALLOW: 'http://x' }, /ATELIER_WEBHOOK_ALLOW/],
  [{ ATELIER_WEBHOOK_SECRET: 'short' }, /ATELIER_WEBHOOK_SECRET: allowed is whsec_/],
  [{ ATELIER_WEBHOOK_RETRY_S: '5,soon' }, /ATELIER_WEBHOOK_RETRY_S/],
  [{ ATELIER_WEBHOOK_RETRY_S: '0' }, /ATELIER_WEBHOOK_RETRY_S/],
])('%j is refused', (env, message) => {
  expect(() => webhooks({ ...KEYS, ...env })).toThrow(message);
});

test('a secret that is refused is not shown', () => {
  const secret = 'whsec_not base64 at all';
  let message = '';
  try {
    webhooks({ ...KEYS, ATELIER_WEBHOOK_SECRET: secret });
  } catch (error) {
    message = String(error);
  }
  expect(message).toContain('ATELIER_WEBHOOK_SECRET');
  expect(message).not.toContain(secret);
});
