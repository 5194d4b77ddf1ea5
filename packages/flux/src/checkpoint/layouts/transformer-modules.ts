/** Modules of a Black Forest Labs file and the canonical ones that each holds, row by row. */
export type ModuleTable = readonly (readonly [stored: string, ...canonical: string[]])[];

/** Outside the blocks. */
export const TOP_MODULES: ModuleTable = [
  ['img_in', 'x_embedder'],
  ['txt_in', 'context_embedder'],
  ['time_in.in_layer', 'time_text_embed.timestep_embedder.linear_1'],
  ['time_in.out_layer', 'time_text_embed.timestep_embedder.linear_2'],
  ['guidance_in.in_layer', 'time_text_embed.guidance_embedder.linear_1'],
  ['guidance_in.out_layer', 'time_text_embed.guidance_embedder.linear_2'],
  ['vector_in.in_layer', 'time_text_embed.text_embedder.linear_1'],
  ['vector_in.out_layer', 'time_text_embed.text_embedder.linear_2'],
  ['final_layer.adaLN_modulation.1', 'norm_out.linear_shift', 'norm_out.linear_scale'],
  ['final_layer.linear', 'proj_out'],
];

/** Inside `double_blocks.N.`, canonically `transformer_blocks.N.`. */
export const DOUBLE_MODULES: ModuleTable = [
  ['img_mod.lin', 'norm1.linear'],
  ['txt_mod.lin', 'norm1_context.linear'],
  ['img_attn.qkv', 'attn.to_q', 'attn.to_k', 'attn.to_v'],
  ['txt_attn.qkv', 'attn.add_q_proj', 'attn.add_k_proj', 'attn.add_v_proj'],
  ['img_attn.norm.query_norm', 'attn.norm_q'],
  ['img_attn.norm.key_norm', 'attn.norm_k'],
  ['txt_attn.norm.query_norm', 'attn.norm_added_q'],
  ['txt_attn.norm.key_norm', 'attn.norm_added_k'],
  ['img_attn.proj', 'attn.to_out.0'],
  ['txt_attn.proj', 'attn.to_add_out'],
  ['img_mlp.0', 'ff.net.0.proj'],
  ['img_mlp.2', 'ff.net.2'],
  ['txt_mlp.0', 'ff_context.net.0.proj'],
  ['txt_mlp.2', 'ff_context.net.2'],
];

/** Inside `single_blocks.N.`, canonically `single_transformer_blocks.N.`. */
export const SINGLE_MODULES: ModuleTable = [
  ['modulation.lin', 'norm.linear'],
  ['linear1', 'attn.to_q', 'attn.to_k', 'attn.to_v', 'proj_mlp'],
  ['linear2', 'proj_out'],
  ['norm.query_norm', 'attn.norm_q'],
  ['norm.key_norm', 'attn.norm_k'],
];

/** diffusers stores the final adaLN with its halves the other way round. */
export const DIFFUSERS_ADA_LN = 'norm_out.linear';
export const DIFFUSERS_HALVES = Object.freeze(['norm_out.linear_scale', 'norm_out.linear_shift']);

/** Per-head norms are `scale` in Black Forest Labs files and `weight` in canonical names. */
export function isHeadNorm(storedModule: string): boolean {
  return storedModule.endsWith('_norm');
}
