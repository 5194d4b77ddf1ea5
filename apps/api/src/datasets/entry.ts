/** One file of an upload, from an archive or a form. Nothing about it is checked yet. */
export interface UploadedEntry {
  /** As the client wrote it; `images/` or `prompts/` and the file name for a part of a form. */
  readonly name: string;
  /** What kind of entry it is when that alone is a reason to refuse it. */
  readonly refusal: string | null;
  /**
   * Its bytes; can be called again.
   * @throws EntryError when there are more than `maxBytes`, or they are not what the archive says
   */
  read(maxBytes: number): Promise<Buffer>;
}

/** What is wrong with the bytes of one entry. */
export class EntryError extends Error {
  override readonly name = 'EntryError';
  /** Bytes that were read until it showed. */
  readonly bytesRead: number;

  constructor(message: string, bytesRead: number, options?: { cause: unknown }) {
    super(message, options);
    this.bytesRead = bytesRead;
  }
}

/** There are more bytes than the caller allowed. */
export class EntryTooLargeError extends EntryError {}
