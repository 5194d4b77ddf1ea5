import { z } from 'zod';

/** What a key may do, from the least to the most. `admin` contains the others. */
export const SCOPES = ['read', 'generate', 'train', 'loras:write', 'datasets:write', 'admin'] as const;
export const Scope = z.enum(SCOPES).meta({
  id: 'Scope',
  description:
    '`read`: look at everything of the tenant; `generate` and `train`: submit and cancel jobs of the kind; ' +
    '`loras:write` and `datasets:write`: change these; `admin`: all of it, and the keys of every tenant',
});
export type Scope = z.infer<typeof Scope>;

export const TENANT_NAME = /^[a-z0-9][a-z0-9-]{0,62}$/;
export const TenantName = z
  .string()
  .regex(TENANT_NAME, { error: 'allowed are a to z, 0 to 9 and -, at most 63, the first no -' })
  .meta({ id: 'TenantName', example: 'acme' });

const name = z
  .string()
  .trim()
  .min(1)
  .max(100)
  // Lists of keys are shown in terminals.
  .refine((text) => !/\p{Cc}/u.test(text), { error: 'allowed are no control characters' })
  .meta({ description: 'For people', example: 'ci' });
const scopes = z.array(Scope).min(1).max(SCOPES.length);

/** Body of POST /v1/keys. */
export const ApiKeyRequest = z
  .strictObject({
    name,
    tenant: TenantName.default('default').meta({ description: 'Whose objects the key sees' }),
    scopes: scopes.meta({ example: ['read', 'generate'] }),
    expires_at: z.iso
      .datetime({ error: 'allowed is a time in UTC such as 2027-01-31T00:00:00Z' })
      .refine((text) => Date.parse(text) > Date.now(), { error: 'allowed is a time to come' })
      .optional()
      .meta({ description: 'From when on the key is refused; never when absent' }),
  })
  .meta({ id: 'ApiKeyRequest' });
export type ApiKeyRequest = z.infer<typeof ApiKeyRequest>;

const view = {
  id: z.string().meta({ example: 'key_0199b1a6c1d27a6e8f0b8d8a3f6f0c11' }),
  name: z.string(),
  tenant: z.string(),
  scopes,
  prefix: z.string().meta({ description: 'What the key starts with', example: 'atl_x7k2m9qa' }),
  last_four: z.string().meta({ description: 'What it ends with', example: 'Zr4T' }),
  created_at: z.iso.datetime(),
  last_used_at: z.iso.datetime().nullable().meta({ description: 'To the minute; null until it is used' }),
  expires_at: z.iso.datetime().nullable(),
  revoked_at: z.iso.datetime().nullable(),
};

/** A key without its secret, which nobody has but its holder. */
export const ApiKey = z.strictObject(view).meta({ id: 'ApiKey' });
export type ApiKey = z.infer<typeof ApiKey>;

export const NewApiKey = z
  .strictObject({
    ...view,
    key: z.string().meta({ description: 'What clients send as Authorization: Bearer …; shown this once' }),
  })
  .meta({ id: 'NewApiKey' });
export type NewApiKey = z.infer<typeof NewApiKey>;

/** Query of GET /v1/keys. */
export const ApiKeyListQuery = z.strictObject({
  tenant: TenantName.optional().meta({ description: 'Only keys of this tenant' }),
  limit: z.coerce.number().int().min(1).max(100).default(50),
  cursor: z
    .string()
    .regex(/^key_[0-9a-f]{32}$/, { error: 'allowed is `next_cursor` of the page before' })
    .optional()
    .meta({ description: '`next_cursor` of the page before' }),
});
export type ApiKeyListQuery = z.infer<typeof ApiKeyListQuery>;

export const ApiKeyList = z
  .strictObject({
    data: z.array(ApiKey).meta({ description: 'Oldest first, revoked ones too' }),
    next_cursor: z.string().nullable().meta({ description: 'null on the last page' }),
  })
  .meta({ id: 'ApiKeyList' });
export type ApiKeyList = z.infer<typeof ApiKeyList>;

export const TenantView = z
  .strictObject({
    name: z.string(),
    keys: z.int().meta({ description: 'That are neither revoked nor expired' }),
    generations: z.int().meta({ description: 'Of any status' }),
    trainings: z.int(),
  })
  .meta({ id: 'Tenant' });
export type TenantView = z.infer<typeof TenantView>;
export const TenantList = z
  .strictObject({
    data: z.array(TenantView).meta({ description: '`default` and every tenant that has had a key' }),
  })
  .meta({ id: 'TenantList' });
export type TenantList = z.infer<typeof TenantList>;
