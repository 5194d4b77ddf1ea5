import type { TransformerSpec } from '../checkpoint/spec.ts';
import { loraTarget } from '../lora/target.ts';

/** Which linear modules a training changes: the attention projections of all blocks, or their MLPs as well. */
export type TrainingTargets = 'attention' | 'all';

const ATTENTION = /\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)$/;
const MLP = /\.(ff|ff_context)\.net\.(0\.proj|2)$|^single_.*\.(proj_mlp|proj_out)$/;

export interface TargetModule {
  /** Canonical path. */
  module: string;
  inFeatures: number;
  outFeatures: number;
}

/** The modules of a training in the order of the model. */
export function targetModules(
  spec: Parameters<typeof loraTarget>[0] & { transformer: TransformerSpec },
  targets: TrainingTargets,
): TargetModule[] {
  return [...loraTarget(spec).transformer]
    .filter(([module]) => ATTENTION.test(module) || (targets === 'all' && MLP.test(module)))
    .map(([module, [outFeatures, inFeatures]]) => ({ module, inFeatures, outFeatures }));
}
