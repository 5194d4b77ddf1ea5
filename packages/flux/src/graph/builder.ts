import { dirname, basename } from 'node:path';
import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import {
  AttributeProto_AttributeType,
  type AttributeProtoSchema,
  ModelProtoSchema,
  type NodeProtoSchema,
  TensorProto_DataLocation,
  TensorProto_DataType,
  type TensorProtoSchema,
  type ValueInfoProtoSchema,
} from './proto/onnx_pb.js';

/** Element types that graphs of this engine use, by the names of onnxruntime where it has one. */
export const ELEMENT_TYPES = Object.freeze({
  float32: TensorProto_DataType.FLOAT,
  float16: TensorProto_DataType.FLOAT16,
  bfloat16: TensorProto_DataType.BFLOAT16,
  float8e4m3fn: TensorProto_DataType.FLOAT8E4M3FN,
  int64: TensorProto_DataType.INT64,
  int32: TensorProto_DataType.INT32,
  uint8: TensorProto_DataType.UINT8,
});
export type ElementType = keyof typeof ELEMENT_TYPES;

/** A size, or the name of one that is known only when the graph runs. */
export type Dim = number | string;

/** An edge of the graph: the result of a node, an input or an initializer. */
export interface Value {
  readonly name: string;
  readonly type: ElementType;
  readonly shape: readonly Dim[];
}

/** Bytes of an initializer that stay where they are: a range of a file. */
export interface ExternalData {
  file: string;
  offset: number;
  byteLength: number;
}

/** A serialized graph. Its external initializers are files directly inside `folder` (null when it has none). */
export interface GraphModel {
  readonly bytes: Uint8Array;
  readonly folder: string | null;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  /** Names of the external initializers: the weights that the graph uses. */
  readonly externals: ReadonlySet<string>;
}

export type Attribute = number | string | readonly number[] | { readonly float: number };

/** Opset 21 is the newest whose CUDA kernels in ONNX Runtime 1.30 are registered for all operators used here. */
const OPSET = 21n;
const MICROSOFT = 'com.microsoft';
const IR_VERSION = 10n;

/** A node as it was added, for whoever derives further nodes from a graph. */
export interface NodeRecord {
  readonly opType: string;
  readonly inputs: readonly (Value | null)[];
  readonly outputs: readonly Value[];
  readonly attributes: Readonly<Record<string, Attribute>>;
}

type NodeInit = MessageInitShape<typeof NodeProtoSchema>;
type TensorInit = MessageInitShape<typeof TensorProtoSchema>;

/**
 * Builds one ONNX graph node by node. Values carry their element type and shape, so that an operator helper can
 * check its operands when the graph is written instead of when a session is created.
 */
export class GraphBuilder {
  readonly name: string;
  readonly #nodes: NodeInit[] = [];
  /** Nodes that compute from initializers alone, and the names of all that does not change between runs. */
  readonly #weightNodes: NodeInit[] = [];
  readonly #static = new Set<string>();
  readonly #records: NodeRecord[] = [];
  readonly #initializers: TensorInit[] = [];
  readonly #constants = new Map<string, Value>();
  readonly #externals = new Map<string, Value>();
  readonly #inputs: Value[] = [];
  readonly #outputs: Value[] = [];
  #folder: string | null = null;
  #counter = 0;

  constructor(name: string) {
    this.name = name;
  }

  input(name: string, type: ElementType, shape: readonly Dim[]): Value {
    const value = { name, type, shape };
    this.#inputs.push(value);
    return value;
  }

  /** Publishes `value` under `name`. */
  output(name: string, value: Value): void {
    this.#nodes.push({ opType: 'Identity', name: `out/${name}`, input: [value.name], output: [name] });
    this.#outputs.push({ ...value, name });
  }

  /** A small tensor stored in the graph itself; equal constants are stored once. */
  constant(data: Float32Array | BigInt64Array | Int32Array, shape: readonly number[]): Value {
    const type = data instanceof Float32Array ? 'float32' : data instanceof Int32Array ? 'int32' : 'int64';
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const key = `${type}:${shape.join('x')}:${Buffer.from(bytes).toString('base64')}`;
    const known = this.#constants.get(key);
    if (known) return known;
    const value: Value = { name: `const_${this.#constants.size}`, type, shape };
    this.#constants.set(key, value);
    this.#static.add(value.name);
    this.#initializers.push({
      name: value.name,
      dataType: ELEMENT_TYPES[type],
      dims: shape.map(BigInt),
      rawData: bytes.slice(),
    });
    return value;
  }

  /** Shorthand for an int64 vector, the type of every shape and axis operand. */
  ints(...values: number[]): Value {
    return this.constant(BigInt64Array.from(values, BigInt), [values.length]);
  }

  /**
   * An initializer whose bytes ONNX Runtime reads from a file at session creation. The session gets one folder to
   * resolve names in, so all external initializers of a graph must lie in the same folder.
   */
  external(name: string, type: ElementType, shape: readonly number[], data: ExternalData): Value {
    const known = this.#externals.get(name);
    if (known) return known;
    const folder = dirname(data.file);
    this.#folder ??= folder;
    if (this.#folder !== folder)
      throw new Error(`external data of ${this.name} lies in two folders: ${this.#folder} and ${folder}`);
    const value: Value = { name, type, shape };
    this.#externals.set(name, value);
    this.#static.add(name);
    this.#initializers.push({
      name,
      dataType: ELEMENT_TYPES[type],
      dims: shape.map(BigInt),
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: [
        { key: 'location', value: basename(data.file) },
        { key: 'offset', value: String(data.offset) },
        { key: 'length', value: String(data.byteLength) },
      ],
    });
    return value;
  }

  /**
   * Adds a node with one result. `null` leaves an optional operand out. A `domain` of 'com.microsoft' selects ONNX
   * Runtime's fused operators.
   */
  op(
    opType: string,
    inputs: readonly (Value | null)[],
    result: { type: ElementType; shape: readonly Dim[] },
    attributes: Record<string, Attribute> = {},
    domain: '' | typeof MICROSOFT = '',
  ): Value {
    return this.ops(opType, inputs, [result], attributes, domain)[0]!;
  }

  /** Adds a node with several results. */
  ops(
    opType: string,
    inputs: readonly (Value | null)[],
    results: readonly { type: ElementType; shape: readonly Dim[] }[],
    attributes: Record<string, Attribute> = {},
    domain: '' | typeof MICROSOFT = '',
  ): Value[] {
    const id = this.#counter++;
    const outputs = results.map(({ type, shape }, i) => ({ name: `${opType}_${id}_${i}`, type, shape }));
    this.#records.push({ opType, inputs, outputs, attributes });
    const isStatic = inputs.every((value) => value === null || this.#static.has(value.name));
    if (isStatic) for (const { name } of outputs) this.#static.add(name);
    (isStatic ? this.#weightNodes : this.#nodes).push({
      opType,
      domain,
      name: `${opType}_${id}`,
      input: inputs.map((value) => value?.name ?? ''),
      output: outputs.map((value) => value.name),
      attribute: Object.entries(attributes).map(([name, value]) => attribute(name, value)),
    });
    return outputs;
  }

  /** The inputs so far. */
  get inputs(): readonly Value[] {
    return this.#inputs;
  }

  /** All nodes so far but outputs' own, in the order in which they were added. */
  get records(): readonly NodeRecord[] {
    return this.#records;
  }

  build(): GraphModel {
    const model = create(ModelProtoSchema, {
      irVersion: IR_VERSION,
      producerName: 'atelier',
      opsetImport: [
        { domain: '', version: OPSET },
        { domain: MICROSOFT, version: 1n },
      ],
      graph: {
        name: this.name,
        // ONNX Runtime goes from the results backwards and, of a node's operands, first to the one whose node was
        // added last. A weight that is widened by a node behind its operand's would be widened before everything that
        // the operand needs: all weights of a model at once. In front, it is widened just before its use.
        node: [...this.#weightNodes, ...this.#nodes],
        initializer: this.#initializers,
        input: this.#inputs.map(valueInfo),
        output: this.#outputs.map(valueInfo),
      },
    });
    return {
      bytes: toBinary(ModelProtoSchema, model),
      folder: this.#folder,
      inputs: this.#inputs,
      outputs: this.#outputs,
      externals: new Set(this.#externals.keys()),
    };
  }
}

function attribute(name: string, value: Attribute): MessageInitShape<typeof AttributeProtoSchema> {
  if (typeof value === 'string')
    return { name, type: AttributeProto_AttributeType.STRING, s: new TextEncoder().encode(value) };
  if (typeof value === 'number') return { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) };
  if ('float' in value) return { name, type: AttributeProto_AttributeType.FLOAT, f: value.float };
  return { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) };
}

function valueInfo(value: Value): MessageInitShape<typeof ValueInfoProtoSchema> {
  return {
    name: value.name,
    type: {
      value: {
        case: 'tensorType',
        value: {
          elemType: ELEMENT_TYPES[value.type],
          shape: {
            dim: value.shape.map((dim) => ({
              value:
                typeof dim === 'number'
                  ? { case: 'dimValue' as const, value: BigInt(dim) }
                  : { case: 'dimParam' as const, value: dim },
            })),
          },
        },
      },
    },
  };
}
