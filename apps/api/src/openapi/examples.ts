import type { GenerationJob, GenerationRequest } from '@atelier/shared';

const id = 'gen_0199b1a6c1d27a6e8f0b8d8a3f6f0c11';

export const requestExample: Partial<GenerationRequest> = {
  prompt: 'a red apple on a blue background',
  steps: 20,
  seed: 7,
};

export const acceptedExample: GenerationJob = {
  id,
  kind: 'generation',
  status: 'queued',
  progress: { step: 0, steps: 20, fraction: 0, eta_s: null },
  queue: { position: 0, eta_s: null },
  input: {
    prompt: 'a red apple on a blue background',
    model: 'mini',
    styles: [],
    width: 128,
    height: 128,
    steps: 20,
    guidance: 3.5,
    seed: 7,
    count: 1,
    format: 'png',
    priority: 'normal',
  },
  output: null,
  error: null,
  timings: null,
  attempts: 0,
  metadata: {},
  created_at: '2026-11-24T10:00:00.000Z',
  started_at: null,
  finished_at: null,
};

export const finishedExample: GenerationJob = {
  ...acceptedExample,
  status: 'succeeded',
  progress: { step: 20, steps: 20, fraction: 1, eta_s: 0 },
  queue: { position: null, eta_s: null },
  output: {
    images: [
      {
        url: `http://localhost:6006/v1/generations/${id}/images/0`,
        width: 128,
        height: 128,
        seed: 7,
        sha256: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
        content_type: 'image/png',
      },
    ],
  },
  timings: {
    queue_ms: 3,
    load_ms: 0,
    text_ms: 11,
    denoise_ms: 700,
    decode_ms: 40,
    encode_ms: 4,
    upload_ms: 2,
  },
  attempts: 1,
  started_at: '2026-11-24T10:00:00.003Z',
  finished_at: '2026-11-24T10:00:00.770Z',
};
