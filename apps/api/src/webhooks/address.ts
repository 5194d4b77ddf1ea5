import { lookup as dnsLookup } from 'node:dns';
import { isIP, type LookupFunction } from 'node:net';
import ipaddr from 'ipaddr.js';

/** What an installation lets webhooks reach beyond the public internet, over http too. */
export interface WebhookAllowance {
  /** Names in lower case, as they are in a URL. */
  readonly names: readonly string[];
  readonly networks: readonly string[];
}

/**
 * An address that is not to be connected to; another try by itself changes nothing. The message is for whoever gave
 * the URL, so it does not say what a name means in the network of this installation; `address` is for the log.
 */
export class AddressRefused extends Error {
  override readonly name = 'AddressRefused';
  readonly address: string;

  constructor(host: string, address: string) {
    super(`${host} ${host === address ? 'is' : 'leads to'} an address that is not public`);
    this.address = address;
  }
}

/** Everything else that is global has another first block. */
const GLOBAL_IPV6 = ipaddr.parseCIDR('2000::/3');
/** Public by its number, and yet the metadata service of the machine: Azure's. */
const METADATA = new Set(['168.63.129.16']);

/**
 * Whether webhooks may connect to an address: only what is unicast on the public internet. Private, loopback,
 * link-local, shared (RFC 6598), multicast, reserved and unspecified addresses are not, nor IPv6 addresses that carry
 * an IPv4 address to a translator (6to4, Teredo, NAT64); an IPv4-mapped one is judged as the IPv4 address.
 */
export function isPublicAddress(address: string): boolean {
  if (!ipaddr.isValid(address)) return false;
  const parsed = ipaddr.process(address);
  if (parsed.range() !== 'unicast' || METADATA.has(parsed.toString())) return false;
  return parsed.kind() === 'ipv4' || parsed.match(GLOBAL_IPV6);
}

/** Whether the installation names the host or the address as one that may be private. */
export function isAllowed(allowance: WebhookAllowance, host: string, address?: string): boolean {
  if (allowance.names.includes(host.toLowerCase())) return true;
  if (address === undefined || !ipaddr.isValid(address)) return false;
  const parsed = ipaddr.process(address);
  return allowance.networks.some((network) => {
    const [base, bits] = ipaddr.parseCIDR(network);
    return parsed.kind() === base.kind() && parsed.match(base, bits);
  });
}

/** Name or address in a URL, without the brackets of IPv6. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '');
}

/** @throws AddressRefused unless the address is public or the installation allows it */
export function requireAddress(allowance: WebhookAllowance, host: string, address: string): void {
  if (isPublicAddress(address) || isAllowed(allowance, host, address)) return;
  throw new AddressRefused(host, address);
}

/** The signature of dns.lookup that sockets use. */
export type Resolve = (
  hostname: string,
  options: { all: true; family?: number | string },
  callback: (error: NodeJS.ErrnoException | null, addresses: { address: string; family: number }[]) => void,
) => void;

/**
 * A `lookup` for a socket that gives it public addresses only. The check belongs here: a name that is looked up
 * first and connected to later can mean another address the second time (DNS rebinding). One private address among
 * several refuses all of them.
 *
 * Sockets do not look up addresses; check those with {@link requireAddress}.
 */
export function guardedLookup(
  allowance: WebhookAllowance,
  resolve: Resolve = dnsLookup as Resolve,
): LookupFunction {
  return (hostname, options, callback) => {
    const { family } = options;
    resolve(hostname, { all: true, ...(family === undefined ? {} : { family }) }, (error, addresses) => {
      try {
        if (error) throw error;
        for (const { address } of addresses) requireAddress(allowance, hostname, address);
        if (addresses.length === 0) throw new Error(`${hostname} has no address`);
      } catch (refused) {
        callback(refused as NodeJS.ErrnoException, '', 0);
        return;
      }
      if (options.all) callback(null, addresses);
      else callback(null, addresses[0]!.address, addresses[0]!.family);
    });
  };
}

/** Whether the host of a URL is an address, in whichever notation: the URL parser has normalised it. */
export const isLiteral = (host: string): boolean => isIP(host) !== 0;
