/** The part of a JSON schema that the messages read. */
export interface SchemaNode {
  $ref?: string;
  $defs?: Record<string, SchemaNode>;
  type?: string;
  enum?: readonly unknown[];
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
  items?: SchemaNode;
  properties?: Record<string, SchemaNode>;
  propertyNames?: SchemaNode;
  additionalProperties?: SchemaNode | boolean;
}

const SHOWN_CHARACTERS = 40;

/** A value as an error message shows it: short, never the whole of what a client sent. */
export function describeFound(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return `a list of length ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  if (typeof value !== 'string' || value.length <= SHOWN_CHARACTERS) return JSON.stringify(value);
  return `${JSON.stringify(value.slice(0, SHOWN_CHARACTERS))}... (${value.length} characters)`;
}

/** What a schema allows, in words: `allowed are whole numbers from 1 to 50`, `allowed is text of 1 to 9 characters`. */
export function describeAllowed(node: SchemaNode): string {
  if (node.enum) return `allowed are ${node.enum.join(', ')}`;
  switch (node.type) {
    case 'integer':
      return node.multipleOf && node.multipleOf > 1
        ? `allowed are multiples of ${node.multipleOf}${numberRange(node)}`
        : `allowed are whole numbers${numberRange(node)}`;
    case 'number':
      return `allowed are numbers${numberRange(node)}`;
    case 'string':
      return `allowed is text${sizeRange(node.minLength, node.maxLength, 'characters')}`;
    case 'array':
      return `allowed is a list${sizeRange(node.minItems, node.maxItems, 'items')}`;
    case 'boolean':
      return 'allowed are true and false';
    case 'object':
      return node.properties
        ? `allowed is an object with the fields ${Object.keys(node.properties).join(', ')}`
        : 'allowed is an object of names and values';
    case undefined:
    default:
      return 'allowed is another kind of value';
  }
}

/** The two multiples around a number that the range allows; fewer at its ends. */
export function nearestMultiples(value: number, node: SchemaNode): number[] {
  const step = node.multipleOf;
  if (!step || !Number.isFinite(value)) return [];
  const below = Math.floor(value / step) * step;
  const { minimum = -Infinity, maximum = Infinity } = node;
  return [below, below + step].filter((candidate) => candidate >= minimum && candidate <= maximum);
}

function numberRange(node: SchemaNode): string {
  const low = node.minimum ?? node.exclusiveMinimum;
  const high = node.maximum ?? node.exclusiveMaximum;
  if (low === undefined && high === undefined) return '';
  if (high === undefined) return node.minimum === undefined ? ` above ${low}` : ` from ${low}`;
  const upper = node.maximum === undefined ? `below ${high}` : `up to ${high}`;
  if (low === undefined) return ` ${upper}`;
  if (node.minimum === undefined) return ` above ${low}, ${upper}`;
  return node.maximum === undefined ? ` from ${low}, ${upper}` : ` from ${low} to ${high}`;
}

function sizeRange(min: number | undefined, max: number | undefined, unit: string): string {
  if (max === undefined) return min ? ` of at least ${min} ${min === 1 ? unit.slice(0, -1) : unit}` : '';
  return min ? ` of ${min} to ${max} ${unit}` : ` of at most ${max} ${unit}`;
}
