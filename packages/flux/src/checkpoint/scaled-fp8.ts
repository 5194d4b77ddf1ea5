import { decodeFloat32, isFloatDtype, type FloatDtype } from './dtypes.ts';
import { readInto, uninitialized, withFile } from './files.ts';
import { invalid, missing, shown, unsupported } from './problems.ts';
import type { TensorInfo } from './safetensors.ts';
import type { StoredTensor, StoredTensors } from './stored-tensors.ts';

/** Names under which ComfyUI, older and newer, stores the factor of `<module>.weight`. */
const SCALE_SUFFIXES = Object.freeze(['.scale_weight', '.weight_scale']);
/** Factors of activations for fp8 arithmetic, which this engine does not do, and descriptions of the format. */
const IGNORED = /(^|\.)(scale_input|input_scale|comfy_quant|scaled_fp8)$/;

type ScaleInfo = TensorInfo & { readonly dtype: FloatDtype };

/**
 * Takes the scale tensors of scaled fp8 out of a checkpoint and gives each weight its factor: the value of a weight
 * is its stored value times the scale. Files of any other kind pass unchanged.
 *
 * @throws FluxError `checkpoint_unsupported` for scales that are not one number per tensor
 */
export async function resolveScales(tensors: StoredTensors): Promise<StoredTensors> {
  const entries = new Map<string, StoredTensor>();
  const scales = new Map<string, ScaleInfo>();
  for (const [name, tensor] of tensors.entries) {
    const suffix = SCALE_SUFFIXES.find((candidate) => name.endsWith(candidate));
    if (suffix) addScale(scales, `${name.slice(0, -suffix.length)}.weight`, tensor.info);
    else if (!IGNORED.test(name)) entries.set(name, tensor);
  }
  const values = await readScalars([...scales.values()]);
  for (const [weight, scale] of scales) {
    const tensor = entries.get(weight);
    if (!tensor) throw missing(scale.file, `has the scale ${shown(scale.name)} but no ${shown(weight)}`);
    entries.set(weight, { info: tensor.info, scale: values.get(scale)! });
  }
  return { location: tensors.location, entries };
}

function addScale(scales: Map<string, ScaleInfo>, weight: string, info: TensorInfo): void {
  const { file, name, shape, dtype } = info;
  const isScalar = shape.length === 0 || (shape.length === 1 && shape[0] === 1);
  if (!isScalar || !isFloatDtype(dtype)) {
    throw unsupported(
      file,
      `scale ${shown(name)} is ${dtype} [${shape.join(', ')}]; one floating-point number per tensor was expected`,
      { tensor: name },
    );
  }
  const rival = scales.get(weight);
  if (rival) throw invalid(file, `both ${shown(rival.name)} and ${shown(name)} scale ${shown(weight)}`);
  scales.set(weight, { ...info, dtype });
}

/** The values of many one-element tensors; each file is opened once. */
async function readScalars(infos: readonly ScaleInfo[]): Promise<Map<ScaleInfo, number>> {
  const values = new Map<ScaleInfo, number>();
  for (const [file, scales] of Map.groupBy(infos, (info) => info.file)) {
    await withFile(file, async (handle) => {
      for (const info of scales) {
        const bytes = uninitialized(info.byteLength);
        await readInto(handle, file, bytes, info.offset);
        const [value = Number.NaN] = decodeFloat32(info.dtype, bytes);
        if (!(value > 0 && value < Infinity)) {
          throw invalid(file, `scale ${shown(info.name)} is ${value}; a positive number was expected`);
        }
        values.set(info, value);
      }
    });
  }
  return values;
}
