import type { EngineProcess, TrainEvent, TrainRequest, TrainResult } from '@atelier/flux';

/** What the trainer needs of an engine process; {@link EngineProcess} is the real one. */
export type Engine = Pick<EngineProcess, 'pid' | 'train' | 'kill' | 'exited'>;

export type { TrainEvent, TrainRequest, TrainResult };
