import { FluxError } from '../../errors.ts';

/** @throws FluxError `canceled` */
export function throwIfCanceled(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new FluxError('canceled', 'The training was canceled');
}
