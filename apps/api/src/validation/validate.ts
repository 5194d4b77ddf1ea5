import { AtelierError, type FieldError } from '@atelier/shared';
import { z } from 'zod';
import { type SchemaNode, describeAllowed, describeFound, nearestMultiples } from './describe.ts';
import { suggest } from './suggest.ts';

/** More than a person reads; a body of a million unknown fields must not become an answer of the same size. */
const MAX_ERRORS = 20;

/**
 * Parses what a client sent.
 *
 * @param name what the value is called in the message when the value itself is wrong: `body`, `query`.
 * @throws AtelierError validation_failed with one entry per wrong field; its message repeats them as one line.
 */
export function validate<T extends z.ZodType>(schema: T, value: unknown, name = 'body'): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw invalid(fieldErrors(schema, value, result.error.issues), name);
}

/** The error of a request whose fields break rules, as a zod failure or a later check (catalog, image) found them. */
export function invalid(errors: readonly FieldError[], name = 'body'): AtelierError {
  const detail = errors.map(({ field, message }) => `${field || name}: ${message}`).join('; ');
  return new AtelierError('validation_failed', detail, { errors });
}

/**
 * Zod issues as messages that a person can act on: what was found, what is allowed. The bounds come from the JSON
 * schema of the field, because an issue carries only the one bound that it broke.
 *
 * @param value what was parsed; an issue's own input may already be coerced.
 */
export function fieldErrors(
  schema: z.ZodType,
  value: unknown,
  issues: readonly z.core.$ZodIssue[],
): FieldError[] {
  const root = jsonSchema(schema);
  const errors = new Map<string, FieldError>();
  for (const issue of issues) {
    for (const error of describeIssue(root, value, issue)) {
      if (errors.size === MAX_ERRORS) return [...errors.values()];
      // A value that breaks two rules of one field (too large, and not a multiple) is described by its first.
      if (!errors.has(error.field)) errors.set(error.field, error);
    }
  }
  return [...errors.values()];
}

const jsonSchemas = new WeakMap<z.ZodType, SchemaNode>();

function jsonSchema(schema: z.ZodType): SchemaNode {
  let root = jsonSchemas.get(schema);
  if (!root) {
    root = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as SchemaNode;
    jsonSchemas.set(schema, root);
  }
  return root;
}

function describeIssue(root: SchemaNode, value: unknown, issue: z.core.$ZodIssue): FieldError[] {
  const field = fieldName(issue.path);
  const node = nodeAt(root, issue.path);
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => unknownField(issue.path, key, node));
  if (issue.code === 'custom') return [{ field, message: issue.message }];
  if (issue.code === 'invalid_key') {
    const names = nodeAt(root, issue.path.slice(0, -1)).propertyNames ?? {};
    return [{ field, message: `found a name of ${size(issue.path.at(-1))}, ${describeAllowed(names)}` }];
  }
  const input = valueAt(value, issue.path);
  // A pattern is no help to a person: schemas with one say in words what it allows.
  if (issue.code === 'invalid_format' && issue.message.startsWith('allowed '))
    return [{ field, message: `found ${describeFound(input)}, ${issue.message}` }];
  const bySize = node.type === 'string' && (issue.code === 'too_big' || issue.code === 'too_small');
  const found = bySize ? size(input) : describeFound(input);
  const nearest = typeof input === 'number' ? nearestMultiples(input, node) : [];
  const hint = nearest.length > 0 ? `; nearest: ${nearest.join(' and ')}` : '';
  return [{ field, message: `found ${found}, ${describeAllowed(node)}${hint}` }];
}

/** Text that is too long or too short is described by its length, which is what is wrong with it. */
function size(value: unknown): string {
  return typeof value === 'string' ? `${value.length} characters` : describeFound(value);
}

function unknownField(path: readonly PropertyKey[], key: string, node: SchemaNode): FieldError {
  const allowed = Object.keys(node.properties ?? {});
  const meant = suggest(key, allowed);
  const hint = meant ? `did you mean ${meant}? ` : '';
  return {
    field: fieldName([...path, key]),
    message: `unknown field; ${hint}allowed are ${allowed.join(', ')}`,
  };
}

/** A JSON path, `styles[0].weight`; names that are not plain words are quoted and cut to a readable length. */
function fieldName(path: readonly PropertyKey[]): string {
  return path
    .map((part, index) => {
      if (typeof part === 'number') return `[${part}]`;
      const name = String(part);
      if (!/^\w{1,64}$/.test(name)) return `[${JSON.stringify(name.slice(0, 64))}]`;
      return index === 0 ? name : `.${name}`;
    })
    .join('');
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (inner, part) => (inner as Record<PropertyKey, unknown> | undefined)?.[part],
    value,
  );
}

function nodeAt(root: SchemaNode, path: readonly PropertyKey[]): SchemaNode {
  let node = resolve(root, root);
  for (const part of path) {
    const child =
      typeof part === 'number'
        ? node.items
        : (ownProperty(node.properties, String(part)) ??
          (typeof node.additionalProperties === 'object' ? node.additionalProperties : undefined));
    if (!child) return node;
    node = resolve(child, root);
  }
  return node;
}

function ownProperty(
  properties: Record<string, SchemaNode> | undefined,
  name: string,
): SchemaNode | undefined {
  return properties && Object.hasOwn(properties, name) ? properties[name] : undefined;
}

function resolve(node: SchemaNode, root: SchemaNode): SchemaNode {
  const name = node.$ref?.replace('#/$defs/', '');
  return (name === undefined ? undefined : ownProperty(root.$defs, name)) ?? node;
}
