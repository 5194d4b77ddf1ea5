import { LORA_NAME } from '../contracts/lora.ts';

/** A LoRA as requests name it: `ink` is the latest version, `ink@3` that one. */
export interface LoraRef {
  name: string;
  version: number | null;
}

/** null for a text that names no LoRA. */
export function parseLoraRef(text: string): LoraRef | null {
  const match = /^([^@]+)(?:@([1-9]\d{0,8}))?$/.exec(text);
  if (!match || !LORA_NAME.test(match[1]!)) return null;
  return { name: match[1]!, version: match[2] === undefined ? null : Number(match[2]) };
}

/** `ink@3`. */
export const formatPin = (name: string, version: number): string => `${name}@${version}`;

/** Prefix of all objects of a tenant's LoRAs. */
export const lorasPrefix = (tenant: string): string => `tenants/${tenant}/loras/`;

/** Prefix of all objects of one LoRA. */
export const loraPrefix = (tenant: string, name: string): string => `${lorasPrefix(tenant)}${name}/`;

/** The object with a version's weights. */
export const fileKey = (tenant: string, name: string, version: number): string =>
  `${loraPrefix(tenant, name)}${version}/lora.safetensors`;

/** The object that makes a version exist. */
export const versionKey = (tenant: string, name: string, version: number): string =>
  `${loraPrefix(tenant, name)}${version}/version.json`;

export const settingsKey = (tenant: string, name: string): string => `${loraPrefix(tenant, name)}lora.json`;

/** Left by a delete: versions up to its number are gone, whatever objects remain, and no number comes twice. */
export const tombstoneKey = (tenant: string, name: string): string =>
  `${loraPrefix(tenant, name)}tombstone.json`;
