import type { GenerationJob } from '@atelier/shared';
import type { StudioClient } from '../client.ts';
import { progressBar } from '../progress.ts';

/** The fields of a generation request that the demo uses. */
export interface PictureRequest {
  prompt: string;
  seed: number;
  model?: string | undefined;
  steps?: number | undefined;
  styles?: { lora: string; weight?: number }[];
}

export interface Picture {
  job: GenerationJob;
  /** The encoded file. */
  data: Uint8Array;
}

/** Submits all requests, then follows them together. @returns pictures in the order of the requests */
export async function paint(
  client: StudioClient,
  requests: readonly PictureRequest[],
  { quiet, signal }: { quiet: boolean; signal: AbortSignal },
): Promise<Picture[]> {
  const fractions = requests.map(() => 0);
  const bar = quiet ? null : progressBar('painting', requests.length);
  try {
    const submitted: GenerationJob[] = [];
    for (const request of requests) submitted.push(await client.submit({ ...request }));
    return await Promise.all(
      submitted.map(async (first, i) => {
        const onChange = ({ status, progress, input }: GenerationJob) => {
          fractions[i] = progress.fraction;
          const done = fractions.reduce((sum, fraction) => sum + fraction, 0);
          bar?.update(done, status === 'running' ? input.prompt : undefined);
        };
        const job = await client.follow(first, onChange, signal);
        return { job, data: await client.download(job.output!.images[0]!.url) };
      }),
    );
  } finally {
    bar?.stop();
  }
}

/** Side of a cell that shows pictures of `side` pixels enlarged by a whole factor, to about 256. */
export function cellOf(side: number): number {
  return side * Math.max(1, Math.round(256 / side));
}
