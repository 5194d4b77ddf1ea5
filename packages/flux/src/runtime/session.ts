import { InferenceSession, Tensor } from 'onnxruntime-node';
import type { GraphModel } from '../graph/builder.ts';
import { FluxError } from '../errors.ts';

/** Where graphs run. */
export type Provider = 'cpu' | 'cuda' | 'webgpu';

/** The element type is that of the array (a Float16Array is float16), or bool. */
export interface Feed {
  data: Float32Array | Float16Array | BigInt64Array | Int32Array | Uint16Array | Uint8Array;
  dims: readonly number[];
  type?: 'bool';
}

/** A bool [] of a graph. */
export function flag(value: boolean): Feed {
  return { type: 'bool', data: Uint8Array.of(Number(value)), dims: [] };
}

export interface SessionOptions {
  /** 'cpu' when absent. */
  provider?: Provider;
  /** Threads of one operator; ONNX Runtime's own choice (physical cores) when absent. */
  threads?: number;
  /**
   * ONNX Runtime's graph optimiser. 'disabled' for graphs that already are in fused operators; 'all' lets it choose
   * blocked layouts for convolutions.
   */
  optimization?: 'disabled' | 'basic' | 'all';
  /**
   * Whether threads without work spin instead of sleeping; true when absent. They spin on after a run too, so where
   * many sessions run one after another the threads of all of them take the cores from the one that works.
   */
  spinning?: boolean;
  /** Memory that is kept from others, and is freed for a session when it is made. */
  reserve?: { free: () => Promise<void> };
}

/** A float32 or float16 result of a graph. */
export interface Result<Values extends Float32Array | Float16Array = Float32Array> {
  data: Values;
  dims: readonly number[];
}

/** A graph ready to run. `run` blocks the thread: nothing that renews a lock may share it. */
export class GraphSession {
  readonly #session: InferenceSession;
  readonly #name: string;

  private constructor(session: InferenceSession, name: string) {
    this.#session = session;
    this.#name = name;
  }

  static async create(name: string, graph: GraphModel, options: SessionOptions = {}): Promise<GraphSession> {
    const { provider = 'cpu', threads, optimization = 'disabled', spinning = true } = options;
    await options.reserve?.free();
    try {
      const session = await InferenceSession.create(graph.bytes, {
        executionProviders: [provider],
        graphOptimizationLevel: optimization,
        ...(threads ? { intraOpNumThreads: threads } : {}),
        // A pattern is recorded for one set of sizes, and keeps its block of memory for good.
        ...(provider === 'cpu' ? {} : { enableMemPattern: false }),
        extra: {
          session: {
            // Weights outside of the arena: it grows in steps of up to 1 GiB, of which they would leave a part unused.
            use_device_allocator_for_initializers: '1',
            ...(spinning ? {} : { intra_op: { allow_spinning: '0' } }),
            ...(graph.folder ? { model_external_initializers_file_folder_path: graph.folder } : {}),
          },
        },
      });
      return new GraphSession(session, name);
    } catch (cause) {
      throw new FluxError(errorCode(cause), `the ${name} graph was refused: ${String(cause)}`, { cause });
    }
  }

  /** Runs the graph; `fetches` are the names of the results wanted: float32, or float16 where `Values` says so. */
  async run<Name extends string, Values extends Float32Array | Float16Array = Float32Array>(
    feeds: Record<string, Feed>,
    fetches: readonly Name[],
  ): Promise<Record<Name, Result<Values>>> {
    const tensors = Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, tensor(feed)]));
    try {
      const results = await this.#session.run(tensors, [...fetches]);
      return Object.fromEntries(
        fetches.map((name) => [name, { data: results[name]!.data, dims: results[name]!.dims }]),
      ) as unknown as Record<Name, Result<Values>>;
    } catch (cause) {
      throw new FluxError(errorCode(cause), `the ${this.#name} graph failed: ${String(cause)}`, { cause });
    }
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}

function errorCode(cause: unknown): 'out_of_memory' | 'engine_failed' {
  return /alloc|out of memory/i.test(String(cause)) ? 'out_of_memory' : 'engine_failed';
}

function tensor({ data, dims, type }: Feed): Tensor {
  if (type) return new Tensor(type, data as Uint8Array, dims);
  if (!(data instanceof Float16Array)) return new Tensor(data as Float32Array, dims);
  // The binding of 1.30 takes the bits of halves; of a Float16Array, which V8 has since, it reads no bytes at all.
  const bits = new Uint16Array(data.buffer, data.byteOffset, data.length);
  return { type: 'float16', data: bits, dims, location: 'cpu' } as unknown as Tensor;
}
