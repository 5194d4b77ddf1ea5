import type { Device, EngineImage, EngineProcess, EngineRequest } from '@atelier/flux';

/** What the worker needs of an engine process; {@link EngineProcess} is the real one. */
export type Engine = Pick<EngineProcess, 'pid' | 'load' | 'generate' | 'close' | 'kill' | 'exited'>;

export type { Device, EngineImage, EngineRequest };

export type LoadOptions = Parameters<EngineProcess['load']>[0];

export type EngineProgressListener = NonNullable<
  NonNullable<Parameters<EngineProcess['generate']>[1]>['onProgress']
>;
