import { dirname, basename } from 'node:path';
import { create, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import {
  AttributeProto_AttributeType,
  type AttributeProtoSchema,
  type GraphProtoSchema,
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
  uint16: TensorProto_DataType.UINT16,
  bool: TensorProto_DataType.BOOL,
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

export type Attribute =
  number | string | readonly number[] | { readonly float: number } | { readonly graph: GraphBuilder };

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

type AddInput = GraphBuilder['input'];

interface Node {
  readonly name: string;
  readonly domain: '' | typeof MICROSOFT;
  readonly record: NodeRecord;
}
type TensorInit = MessageInitShape<typeof TensorProtoSchema>;

/** What a graph and the graphs inside its nodes have in common. */
interface Shared {
  readonly initializers: TensorInit[];
  readonly constants: Map<string, Value>;
  readonly externals: Map<string, Value>;
  /** Names of all that does not change between runs. */
  readonly fixed: Set<string>;
  folder: string | null;
  counter: number;
}

/**
 * Builds one ONNX graph node by node. Values carry their element type and shape, so that an operator helper can
 * check its operands when the graph is written instead of when a session is created.
 */
export class GraphBuilder {
  readonly name: string;
  readonly #shared: Shared;
  readonly #nodes: Node[] = [];
  /** Nodes that compute from initializers alone. */
  readonly #weightNodes: Node[] = [];
  readonly #records: NodeRecord[] = [];
  readonly #inputs: Value[] = [];
  readonly #outputs: Value[] = [];
  readonly #outerInput: AddInput | null;

  /** @param shared of the graph around a body; see {@link body} */
  constructor(name: string, shared: Shared = newShared(), outerInput: AddInput | null = null) {
    this.name = name;
    this.#shared = shared;
    this.#outerInput = outerInput;
  }

  /**
   * A graph for an attribute of a node of this one, such as the body of a Loop. It may use all values that this one
   * has so far; weights and constants that it adds are this one's, in memory once however many bodies use them.
   * @param outerInput makes an input of this graph for each that is asked of the body: a branch of an If has none
   */
  body(name: string, outerInput: AddInput | null = null): GraphBuilder {
    return new GraphBuilder(name, this.#shared, outerInput);
  }

  input(name: string, type: ElementType, shape: readonly Dim[]): Value {
    if (this.#outerInput) return this.#outerInput(name, type, shape);
    const value = { name, type, shape };
    this.#inputs.push(value);
    return value;
  }

  /** Publishes `value` under `name`. */
  output(name: string, value: Value): void {
    const output = { ...value, name };
    const record = { opType: 'Identity', inputs: [value], outputs: [output], attributes: {} };
    this.#nodes.push({ name: `out/${name}`, domain: '', record });
    this.#outputs.push(output);
  }

  /** A small tensor stored in the graph itself; equal constants are stored once. */
  constant(data: Float32Array | Float16Array | BigInt64Array | Int32Array, shape: readonly number[]): Value {
    const { constants, fixed, initializers } = this.#shared;
    const type = elementType(data);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const key = `${type}:${shape.join('x')}:${Buffer.from(bytes).toString('base64')}`;
    const known = constants.get(key);
    if (known) return known;
    const value: Value = { name: `const_${constants.size}`, type, shape };
    constants.set(key, value);
    fixed.add(value.name);
    initializers.push({
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
    const shared = this.#shared;
    const known = shared.externals.get(name);
    if (known) return known;
    const folder = dirname(data.file);
    shared.folder ??= folder;
    if (shared.folder !== folder)
      throw new Error(`external data of ${this.name} lies in two folders: ${shared.folder} and ${folder}`);
    const value: Value = { name, type, shape };
    shared.externals.set(name, value);
    shared.fixed.add(name);
    shared.initializers.push({
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
    const { fixed } = this.#shared;
    const id = this.#shared.counter++;
    const outputs = results.map(({ type, shape }, i) => ({ name: `${opType}_${id}_${i}`, type, shape }));
    const record = { opType, inputs, outputs, attributes };
    this.#records.push(record);
    const isFixed = inputs.length > 0 && inputs.every((value) => value === null || fixed.has(value.name));
    if (isFixed) for (const { name } of outputs) fixed.add(name);
    (isFixed ? this.#weightNodes : this.#nodes).push({ name: `${opType}_${id}`, domain, record });
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

  /**
   * The nodes that the outputs need, in the order in which they are written: each behind those that it depends on.
   *
   * ONNX Runtime goes from the results backwards and, of a node's operands, first to the one whose node was added
   * last. A weight that is widened by a node behind its operand's would be widened before everything that the
   * operand needs: all weights of a model at once. In front, it is widened just before its use.
   */
  get plan(): readonly NodeRecord[] {
    return this.#live().nodes.map(({ record }) => record);
  }

  build(): GraphModel {
    const { externals, folder, initializers } = this.#shared;
    const { used } = this.#live();
    const model = create(ModelProtoSchema, {
      irVersion: IR_VERSION,
      producerName: 'atelier',
      opsetImport: [
        { domain: '', version: OPSET },
        { domain: MICROSOFT, version: 1n },
      ],
      graph: this.#graph(initializers.filter(({ name = '' }) => used.has(name))),
    });
    return {
      bytes: toBinary(ModelProtoSchema, model),
      folder,
      inputs: this.#inputs,
      outputs: this.#outputs,
      externals: new Set([...externals.keys()].filter((name) => used.has(name))),
    };
  }

  /** What the outputs need: the nodes, and the names of all values that these use. ONNX Runtime would run the others. */
  #live(): { nodes: Node[]; used: Set<string> } {
    const used = new Set(this.#outputs.map(({ name }) => name));
    const nodes = [...this.#weightNodes, ...this.#nodes].toReversed().filter(({ record }) => {
      if (!record.outputs.some(({ name }) => used.has(name))) return false;
      for (const input of record.inputs) if (input) used.add(input.name);
      for (const body of Object.values(record.attributes))
        if (typeof body === 'object' && 'graph' in body)
          for (const name of body.graph.#live().used) used.add(name);
      return true;
    });
    return { nodes: nodes.toReversed(), used };
  }

  #graph(initializer: TensorInit[] = []): MessageInitShape<typeof GraphProtoSchema> {
    return {
      name: this.name,
      node: this.#live().nodes.map(nodeProto),
      input: this.#inputs.map(valueInfo),
      output: this.#outputs.map(valueInfo),
      initializer,
    };
  }

  /** An attribute as it is written. */
  static attribute(name: string, value: Attribute): MessageInitShape<typeof AttributeProtoSchema> {
    if (typeof value === 'string')
      return { name, type: AttributeProto_AttributeType.STRING, s: new TextEncoder().encode(value) };
    if (typeof value === 'number') return { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) };
    if ('float' in value) return { name, type: AttributeProto_AttributeType.FLOAT, f: value.float };
    if ('graph' in value) return { name, type: AttributeProto_AttributeType.GRAPH, g: value.graph.#graph() };
    return { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) };
  }
}

function nodeProto({ name, domain, record }: Node): MessageInitShape<typeof NodeProtoSchema> {
  return {
    opType: record.opType,
    domain,
    name,
    input: record.inputs.map((value) => value?.name ?? ''),
    output: record.outputs.map((value) => value.name),
    attribute: Object.entries(record.attributes).map(([key, value]) => GraphBuilder.attribute(key, value)),
  };
}

function newShared(): Shared {
  return {
    initializers: [],
    constants: new Map(),
    externals: new Map(),
    fixed: new Set(),
    folder: null,
    counter: 0,
  };
}

function elementType(data: Float32Array | Float16Array | BigInt64Array | Int32Array): ElementType {
  if (data instanceof Float32Array) return 'float32';
  if (data instanceof Float16Array) return 'float16';
  return data instanceof Int32Array ? 'int32' : 'int64';
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
