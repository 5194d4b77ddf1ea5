import {
  DeliveryList,
  DeliveryView,
  GenerationJob,
  JOB_KINDS,
  type JobKind,
  TrainingJob,
  WEBHOOK_EVENTS,
  WebhookSecret,
  deliveryId,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import { finishedExample, trainingExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';

const tags = ['webhooks'];

const jobs = {
  generation: {
    ...finishedExample,
    webhook: { url: 'https://example.com/hooks/atelier', events: ['succeeded'] },
  },
  training: trainingExample,
} as const;

const deliveryOf = (kind: JobKind): DeliveryView => ({
  id: deliveryId({ id: jobs[kind].id, event: 'succeeded' }),
  type: `${kind}.succeeded`,
  url: 'https://example.com/hooks/atelier',
  status: 'pending',
  created_at: '2026-11-24T10:00:03.000Z',
  next_attempt_at: '2026-11-24T10:00:08.400Z',
  attempts: [
    {
      started_at: '2026-11-24T10:00:03.010Z',
      status: 503,
      duration_ms: 84,
      error: 'found 503; allowed is 2xx',
    },
  ],
});

function deliveryPaths(kind: JobKind): ZodOpenApiPathsObject {
  const id = z.string().meta({ description: 'Id of the job', example: jobs[kind].id });
  const example = deliveryOf(kind);
  const name = kind === 'generation' ? 'Generation' : 'Training';
  return {
    [`/v1/${kind}s/{id}/deliveries`]: {
      get: {
        tags,
        operationId: `list${name}Deliveries`,
        summary: `What was sent to the webhook of a ${kind}`,
        description: 'Deliveries and their attempts are kept for 30 days after the last of them.',
        requestParams: { path: z.object({ id }) },
        responses: {
          200: {
            description: 'One for each event that happened and was asked for',
            headers: z.object(commonHeaders),
            content: { 'application/json': { schema: DeliveryList, example: { data: [example] } } },
          },
          ...problems('unauthorized', 'not_found', 'queue_unavailable'),
        },
      },
    },
    [`/v1/${kind}s/{id}/deliveries/{delivery}/redeliver`]: {
      post: {
        tags,
        operationId: `redeliver${name}`,
        summary: 'Send a delivery once more',
        description:
          'At once, whatever came of it, with the same id and body; if that fails, it is tried again as at first.',
        requestParams: {
          path: z.object({
            id,
            delivery: z.string().meta({ description: 'Id of the delivery', example: example.id }),
          }),
        },
        responses: {
          202: {
            description: 'It is due',
            headers: z.object(commonHeaders),
            content: { 'application/json': { schema: DeliveryView, example } },
          },
          ...problems('unauthorized', 'not_found', 'queue_unavailable'),
        },
      },
    },
  };
}

export const webhookPaths: ZodOpenApiPathsObject = {
  ...Object.assign({}, ...JOB_KINDS.map(deliveryPaths)),
  '/v1/webhooks/secret': {
    get: {
      tags,
      operationId: 'getWebhookSecret',
      summary: 'The key of the signatures of webhooks',
      responses: {
        200: {
          description: 'The same for all webhooks of the tenant',
          headers: z.object(commonHeaders),
          content: { 'application/json': { schema: WebhookSecret } },
        },
        ...problems('unauthorized', 'queue_unavailable'),
      },
    },
  },
};

const eventTypes = (kind: JobKind) => z.enum(WEBHOOK_EVENTS.map((event) => `${kind}.${event}` as const));
const timestamp = z.iso.datetime().meta({ description: 'When it happened' });
const payloads = {
  generation: z
    .strictObject({ type: eventTypes('generation'), timestamp, data: GenerationJob })
    .meta({ id: 'GenerationWebhook' }),
  training: z
    .strictObject({ type: eventTypes('training'), timestamp, data: TrainingJob })
    .meta({ id: 'TrainingWebhook' }),
};

/** The `webhooks` of the document: what receivers are sent. */
export const webhookRequests: ZodOpenApiPathsObject = Object.fromEntries(
  JOB_KINDS.map((kind) => [
    kind,
    {
      post: {
        tags,
        operationId: `${kind}Webhook`,
        summary: `Something became of a ${kind}`,
        description:
          'Sent at least once for each event, in no promised order; signed as Standard Webhooks has it. Answer 2xx ' +
          'within 10 seconds; 410 ends the delivery, anything else is tried again for hours. Redirects are not followed.',
        requestParams: {
          header: z.object({
            'webhook-id': z
              .string()
              .meta({ description: 'The same in every attempt: drop what you have seen' }),
            'webhook-timestamp': z.string().meta({ description: 'Of the attempt, in Unix seconds' }),
            'webhook-signature': z
              .string()
              .meta({ example: 'v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=' }),
          }),
        },
        requestBody: { required: true, content: { 'application/json': { schema: payloads[kind] } } },
        responses: { 204: { description: 'Received' } },
      },
    },
  ]),
);
