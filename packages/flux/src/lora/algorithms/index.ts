import type { AlgorithmName } from '../leaves.ts';
import type { Algorithm } from './algorithm.ts';
import { loha } from './loha.ts';
import { lokr } from './lokr.ts';
import { lora } from './lora.ts';

export type { Pair, PlannedPair } from './algorithm.ts';

export const ALGORITHMS: Readonly<Record<AlgorithmName, Algorithm>> = Object.freeze({ lora, loha, lokr });
