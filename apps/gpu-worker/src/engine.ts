import type { EngineImage, EngineProcess, EngineRequest, LoadOptions } from '@atelier/flux';

/** What the worker needs of an engine process; {@link EngineProcess} is the real one. */
export type Engine = Pick<EngineProcess, 'pid' | 'load' | 'generate' | 'close' | 'kill' | 'exited'>;

export type { EngineImage, EngineRequest, LoadOptions };

export type EngineProgressListener = NonNullable<
  NonNullable<Parameters<EngineProcess['generate']>[1]>['onProgress']
>;
