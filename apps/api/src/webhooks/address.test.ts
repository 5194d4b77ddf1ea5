import { createServer } from 'node:http';
import type { AddressInfo, LookupFunction } from 'node:net';
import { AddressRefused, type Resolve, guardedLookup, isAllowed, isPublicAddress } from './address.ts';
import { checkWebhookUrl } from './request.ts';
import { send } from './send.ts';

const NOTHING = { names: [], networks: [] };

test.each([
  '1.1.1.1',
  '203.0.112.1',
  '172.15.255.255',
  '172.32.0.0',
  '100.63.255.255',
  '100.128.0.0',
  '2606:4700:4700::1111',
  '::ffff:8.8.8.8',
])('%s is public', (address) => {
  expect(isPublicAddress(address)).toBe(true);
});

test.each([
  ['loopback', '127.0.0.1'],
  ['loopback', '127.255.255.254'],
  ['loopback', '::1'],
  ['unspecified', '0.0.0.0'],
  ['this network', '0.1.2.3'],
  ['unspecified', '::'],
  ['private', '10.0.0.1'],
  ['private', '172.16.0.1'],
  ['private', '172.31.255.255'],
  ['private', '192.168.1.1'],
  ['unique local', 'fd00:ec2::254'],
  ['link-local, metadata', '169.254.169.254'],
  ['link-local', 'fe80::1'],
  ['link-local with a zone', 'fe80::1%eth0'],
  ['site-local', 'fec0::1'],
  ['shared', '100.64.0.1'],
  ['shared, metadata', '100.100.100.200'],
  ['metadata', '168.63.129.16'],
  ['protocol assignments, metadata', '192.0.0.192'],
  ['benchmarks', '198.18.0.1'],
  ['documentation', '192.0.2.1'],
  ['documentation', '2001:db8::1'],
  ['multicast', '224.0.0.1'],
  ['multicast', 'ff02::1'],
  ['reserved', '240.0.0.1'],
  ['broadcast', '255.255.255.255'],
  ['mapped loopback', '::ffff:127.0.0.1'],
  ['mapped loopback in hexadecimal', '::ffff:7f00:1'],
  ['mapped metadata', '::ffff:a9fe:a9fe'],
  ['mapped shared', '::ffff:100.64.0.1'],
  ['compatible loopback', '::127.0.0.1'],
  ['translated loopback', '::ffff:0:127.0.0.1'],
  ['NAT64 loopback', '64:ff9b::7f00:1'],
  ['local NAT64', '64:ff9b:1::7f00:1'],
  ['6to4 loopback', '2002:7f00:1::'],
  ['Teredo', '2001::1'],
  ['discard', '100::1'],
  ['no address', 'localhost'],
  ['no address', ''],
])('%s is not public: %s', (_what, address) => {
  expect(isPublicAddress(address)).toBe(false);
});

test('an installation names hosts and networks that may be private', () => {
  const allowance = { names: ['hooks.internal'], networks: ['10.1.0.0/16', 'fd00::/8'] };
  expect(isAllowed(allowance, 'Hooks.Internal')).toBe(true);
  expect(isAllowed(allowance, 'evil.hooks.internal')).toBe(false);
  expect(isAllowed(allowance, 'x', '10.1.2.3')).toBe(true);
  expect(isAllowed(allowance, 'x', '::ffff:10.1.2.3')).toBe(true);
  expect(isAllowed(allowance, 'x', '10.2.0.1')).toBe(false);
  expect(isAllowed(allowance, 'x', 'fd12::1')).toBe(true);
  expect(isAllowed(allowance, '10.1.2.3')).toBe(false);
});

describe('a URL is refused when the job is submitted', () => {
  test.each([
    ['http://example.com/x', /allowed is https/],
    ['ftp://example.com/x', /allowed is https/],
    ['nonsense', /found no URL/],
    ['https://user:password@example.com/', /name or password/],
    ['https://127.0.0.1/', /127\.0\.0\.1 is an address that is not public/],
    ['https://[::1]/', /::1 is an address that is not public/],
    // Notations that inet_aton knows, and what URLs make of letters that look like digits.
    ['https://2130706433/', /127\.0\.0\.1/],
    ['https://0x7f.1/', /127\.0\.0\.1/],
    ['https://0177.0.0.01/', /127\.0\.0\.1/],
    ['https://127.1/', /127\.0\.0\.1/],
    ['https://①②⑦.0.0.1/', /127\.0\.0\.1/],
    ['https://0/', /0\.0\.0\.0/],
    ['https://[::ffff:169.254.169.254]/', /a9fe/],
    ['https://169.254.169.254/latest/meta-data', /169\.254\.169\.254/],
  ])('%s', (url, message) => {
    expect(() => checkWebhookUrl(url, NOTHING)).toThrow(message);
  });

  test('names are not looked up then, and what is allowed may use http', () => {
    checkWebhookUrl('https://localhost/x', NOTHING);
    checkWebhookUrl('http://hooks.internal:8080/x', { names: ['hooks.internal'], networks: [] });
    checkWebhookUrl('http://127.0.0.1:9/x', { names: [], networks: ['127.0.0.0/8'] });
    expect(() => checkWebhookUrl('http://10.0.0.1/', { names: [], networks: ['127.0.0.0/8'] })).toThrow(
      /allowed is https/,
    );
  });
});

describe('the lookup of a socket', () => {
  /** A resolver that gives each list of addresses in turn, and the last one for ever. */
  const answers = (...lists: string[][]): Resolve => {
    let call = 0;
    return (_name, _options, callback) => {
      const list = lists[Math.min(call++, lists.length - 1)]!;
      callback(
        null,
        list.map((address) => ({ address, family: address.includes(':') ? 6 : 4 })),
      );
    };
  };
  const ask = (lookup: LookupFunction, options = {}) =>
    new Promise((resolve, reject) => {
      lookup('name.test', options, (error, address) => (error ? reject(error) : resolve(address)));
    });

  test('gives public addresses, one or all', async () => {
    const lookup = guardedLookup(NOTHING, answers(['1.1.1.1', '2606:4700::1']));
    expect(await ask(lookup)).toBe('1.1.1.1');
    expect(await ask(lookup, { all: true })).toHaveLength(2);
  });

  test('refuses all when one is private, and a name without any', async () => {
    await expect(ask(guardedLookup(NOTHING, answers(['1.1.1.1', '10.0.0.1'])))).rejects.toThrow(
      'name.test leads to an address that is not public',
    );
    await expect(ask(guardedLookup(NOTHING, answers([])))).rejects.toThrow('has no address');
  });

  test('decides about the connection itself: a name that is bound anew reaches nothing', async () => {
    let reached = 0;
    const server = createServer((_req, res) => {
      reached++;
      res.end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const url = `http://rebound.test:${port}/`;
    try {
      // Whatever the name was before: the address that the socket would connect to is the one that is judged.
      const rebound = answers(['127.0.0.1']);
      await expect(send(url, '{}', {}, { allowance: NOTHING, resolve: rebound })).rejects.toThrow(
        AddressRefused,
      );
      const mapped = answers(['::ffff:127.0.0.1']);
      await expect(send(url, '{}', {}, { allowance: NOTHING, resolve: mapped })).rejects.toThrow(
        AddressRefused,
      );
      for (const literal of ['127.0.0.1', '[::ffff:127.0.0.1]', '0x7f000001', '2130706433'])
        await expect(send(`http://${literal}:${port}/`, '{}', {}, { allowance: NOTHING })).rejects.toThrow(
          AddressRefused,
        );
      await expect(send(`http://localhost:${port}/`, '{}', {}, { allowance: NOTHING })).rejects.toThrow(
        AddressRefused,
      );
      expect(reached).toBe(0);
      // The same server is reached where the installation says so: what refused it was the rule.
      const allowance = { names: ['rebound.test'], networks: [] };
      expect(await send(url, '{}', {}, { allowance, resolve: rebound })).toMatchObject({ status: 200 });
      expect(reached).toBe(1);
    } finally {
      server.close();
      server.closeAllConnections();
    }
  });
});
