import { TrainingInput } from '@atelier/shared';
import type {
  Dataset,
  DatasetSummary,
  DatasetUpload,
  DatasetUploadRequest,
  GenerationJob,
  GenerationRequest,
  LoraVersionView,
  LoraView,
  TrainingJob,
  TrainingRequest,
} from '@atelier/shared';

const id = 'gen_0199b1a6c1d27a6e8f0b8d8a3f6f0c11';

export const requestExample: Partial<GenerationRequest> = {
  prompt: 'a red apple on a blue background',
  styles: [{ lora: 'ink-wash', weight: 0.8 }],
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
    styles: [{ lora: 'ink-wash@3', weight: 0.8 }],
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
  webhook: null,
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
    style_ms: 0,
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

export const loraVersionExample: LoraVersionView = {
  name: 'ink-wash',
  version: 3,
  size: 4_812_304,
  sha256: '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae',
  dialects: ['kohya'],
  rank: { min: 16, max: 16 },
  modules: { transformer: 504, text_encoder: 72 },
  base_model: 'mini',
  warnings: [],
  provenance: {
    source: 'import',
    filename: 'ink_wash_v3.safetensors',
    training_job: null,
    imported_at: '2026-11-24T10:00:00.000Z',
  },
};

export const loraExample: LoraView = {
  name: 'ink-wash',
  description: 'Black ink on wet paper',
  default_weight: 0.8,
  trigger_words: ['ink wash'],
  tags: ['ink'],
  latest: loraVersionExample,
  versions: [3, 2, 1],
  created_at: '2026-11-20T10:00:00.000Z',
  updated_at: '2026-11-24T10:00:00.000Z',
};

export const datasetSummaryExample: DatasetSummary = {
  id: 'dst_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  name: 'ink-wash',
  items: 1,
  bytes: 22_390,
  created_at: '2026-11-24T10:00:00.000Z',
};

export const datasetExample: Dataset = {
  ...datasetSummaryExample,
  warnings: ['left out: .DS_Store'],
  files: [
    {
      path: 'images/001.png',
      size: 22_356,
      sha256: '6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b',
      width: 256,
      height: 256,
    },
    {
      path: 'prompts/001.txt',
      size: 34,
      sha256: 'd4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35',
    },
  ],
};

export const datasetUploadRequestExample: DatasetUploadRequest = {
  filename: 'Ink Wash.zip',
  size: 734_003_200,
  sha256: 'ef2d127de37b942baad06145e54b0c619a1f22327b2ebbcfbec78f5564afe39d',
};

export const datasetUploadExample: DatasetUpload = {
  id: 'upl_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  url: 'https://atelier.s3.eu-central-1.amazonaws.com/tenants/default/uploads/upl_0199…/archive.zip?X-Amz-Algorithm=…',
  method: 'PUT',
  headers: { 'Content-Type': 'application/zip' },
  expires_at: '2026-11-24T10:15:00.000Z',
  max_bytes: 2_147_483_648,
};

export const trainingRequestExample: Partial<TrainingRequest> = {
  name: 'ink-wash',
  dataset: 'dst_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  max_epochs: 100,
  trigger_word: 'ink wash painting',
};

export const trainingExample: TrainingJob = {
  id: 'trn_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  kind: 'training',
  status: 'queued',
  progress: { step: 0, steps: 0, fraction: 0, eta_s: null },
  queue: { position: 0, eta_s: null },
  input: TrainingInput.parse({ ...trainingRequestExample, model: 'mini', resolution: 128 }),
  output: null,
  error: null,
  attempts: 0,
  webhook: null,
  metadata: {},
  created_at: '2026-11-24T10:00:00.000Z',
  started_at: null,
  finished_at: null,
};
