import type { EngineProcess, EngineTrainRequest, TrainEvent, TrainResult } from '@atelier/flux';

/** What the trainer needs of an engine process; {@link EngineProcess} is the real one. */
export type Engine = Pick<EngineProcess, 'pid' | 'train' | 'kill' | 'exited'>;

export type { EngineTrainRequest, TrainEvent, TrainResult };
