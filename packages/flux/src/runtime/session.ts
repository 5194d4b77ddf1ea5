import { InferenceSession, Tensor } from 'onnxruntime-node';
import type { GraphModel } from '../graph/builder.ts';
import { FluxError } from '../errors.ts';

export type Feed = { data: Float32Array | BigInt64Array; dims: readonly number[] };

export interface SessionOptions {
  /** Threads of one operator; ONNX Runtime's own choice (physical cores) when absent. */
  threads?: number;
  /**
   * ONNX Runtime's graph optimiser. 'disabled' for graphs that already are in fused operators; 'all' lets it choose
   * blocked layouts for convolutions.
   */
  optimization?: 'disabled' | 'basic' | 'all';
}

/** A graph ready to run on the CPU provider. `run` blocks the thread: nothing that renews a lock may share it. */
export class GraphSession {
  readonly #session: InferenceSession;
  readonly #name: string;

  private constructor(session: InferenceSession, name: string) {
    this.#session = session;
    this.#name = name;
  }

  static async create(name: string, graph: GraphModel, options: SessionOptions = {}): Promise<GraphSession> {
    try {
      const session = await InferenceSession.create(graph.bytes, {
        executionProviders: ['cpu'],
        graphOptimizationLevel: options.optimization ?? 'disabled',
        ...(options.threads ? { intraOpNumThreads: options.threads } : {}),
        extra: graph.folder
          ? { session: { model_external_initializers_file_folder_path: graph.folder } }
          : {},
      });
      return new GraphSession(session, name);
    } catch (cause) {
      throw new FluxError('engine_failed', `the ${name} graph was refused: ${String(cause)}`, { cause });
    }
  }

  /** Runs the graph; `fetches` are the names of the results wanted, all float32. */
  async run<Name extends string>(
    feeds: Record<string, Feed>,
    fetches: readonly Name[],
  ): Promise<Record<Name, { data: Float32Array; dims: readonly number[] }>> {
    const tensors = Object.fromEntries(
      Object.entries(feeds).map(([name, { data, dims }]) => [
        name,
        data instanceof Float32Array ? new Tensor('float32', data, dims) : new Tensor('int64', data, dims),
      ]),
    );
    try {
      const results = await this.#session.run(tensors, [...fetches]);
      return Object.fromEntries(
        fetches.map((name) => [
          name,
          { data: results[name]!.data as Float32Array, dims: results[name]!.dims },
        ]),
      ) as Record<Name, { data: Float32Array; dims: readonly number[] }>;
    } catch (cause) {
      const code = /alloc|out of memory/i.test(String(cause)) ? 'out_of_memory' : 'engine_failed';
      throw new FluxError(code, `the ${this.#name} graph failed: ${String(cause)}`, { cause });
    }
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}
