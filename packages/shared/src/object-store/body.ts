import { Readable } from 'node:stream';

/** Runs a put. An error of the body is the caller's, not the store's: it is thrown as it is. */
export async function withBodyErrors<T>(body: Uint8Array | Readable, put: () => Promise<T>): Promise<T> {
  if (!(body instanceof Readable)) return put();
  let bodyError: Error | null = null;
  const remember = (error: Error): void => void (bodyError = error);
  body.on('error', remember);
  try {
    return await put();
  } catch (error) {
    throw bodyError ?? error;
  } finally {
    body.off('error', remember);
  }
}
