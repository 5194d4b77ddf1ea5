import { createHash } from 'node:crypto';
import { Dataset, DatasetUpload, uploadKey } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem } from './api.ts';
import { PNG, pair, scratchFiles, storedKeys } from './datasets.ts';
import { zip } from './zip.ts';

const T = 'default';
const ARCHIVE = zip([...pair('001'), ...pair('002')]);
const SHA256 = createHash('sha256').update(ARCHIVE).digest('hex');

export const announce = (api: TestApi, body: object): Promise<Response> =>
  fetch(`${api.url}/v1/datasets/uploads`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
export const announced = async (api: TestApi, more: object = {}): Promise<DatasetUpload> =>
  expectJson(await announce(api, { name: 'ink', size: ARCHIVE.length, ...more }), 201, DatasetUpload);
/** Sends as a client does that knows nothing but the announcement. */
export const send = (
  { url, method, headers }: DatasetUpload,
  body: Uint8Array = ARCHIVE,
  more: Record<string, string> = {},
): Promise<Response> => fetch(url, { method, headers: { ...headers, ...more }, body: new Uint8Array(body) });
export const complete = (api: TestApi, id: string): Promise<Response> =>
  fetch(`${api.url}/v1/datasets/uploads/${id}/complete`, { method: 'POST' });

/** Makes the time to send the archive over. */
export async function expire(api: TestApi, id: string): Promise<void> {
  const object = await api.store.get(uploadKey(T, id));
  const upload = JSON.parse(Buffer.concat(await object!.body.toArray()).toString()) as object;
  const late = JSON.stringify({ ...upload, expires_at: '2026-01-01T00:00:00.000Z' });
  await api.store.put(uploadKey(T, id), Buffer.from(late), { contentType: 'application/json' });
}

/** What the API promises of announced uploads, whichever store it has; as jest tests. */
export function describeDatasetUploads(api: () => TestApi): void {
  const keys = async (part: string) => (await storedKeys(api())).filter((key) => key.includes(part));

  test('announced, sent, completed: the dataset is that of a direct upload, the archive is gone', async () => {
    const upload = await announced(api(), { name: undefined, filename: 'Ink Wash.zip', sha256: SHA256 });
    expect(Date.parse(upload.expires_at) - Date.now()).toBeLessThanOrEqual(900_000);
    expect((await send(upload)).status).toBe(200);
    const response = await complete(api(), upload.id);
    const dataset = await expectJson(response, 201, Dataset);
    expect(response.headers.get('location')).toBe(`/v1/datasets/${dataset.id}`);
    expect(dataset).toMatchObject({ name: 'ink-wash', items: 2, files: { length: 4 } });
    expect(dataset.files[0]).toMatchObject({ path: 'images/001.png', size: PNG.length, width: 24 });
    const got = await fetch(`${api().url}/v1/datasets/${dataset.id}`);
    expect(await expectJson(got, 200, Dataset)).toEqual(dataset);
    expect(await keys('archive.zip')).toEqual([]);
    expect(await scratchFiles(api())).toEqual([]);

    const again = await expectProblem(await complete(api(), upload.id), 409, 'conflict');
    expect(again.detail).toBe(`${upload.id} has become the dataset ${dataset.id}`);
    expect(await keys('dataset.json')).toHaveLength(1);
  });

  test('of completions at once one makes the dataset, the others name it', async () => {
    const upload = await announced(api());
    await send(upload);
    const answers = await Promise.all([1, 2, 3].map(() => complete(api(), upload.id)));
    const made = answers.find(({ status }) => status === 201)!;
    const { id } = await expectJson(made, 201, Dataset);
    for (const answer of answers.filter((other) => other !== made))
      expect((await expectProblem(answer, 409, 'conflict')).detail).toContain(id);
    expect(await keys('dataset.json')).toHaveLength(1);
  });

  test('sent twice before it is completed, the later one counts', async () => {
    const upload = await announced(api());
    await send(upload, Buffer.alloc(ARCHIVE.length));
    expect((await send(upload)).status).toBe(200);
    expect(await expectJson(await complete(api(), upload.id), 201, Dataset)).toMatchObject({ items: 2 });
  });

  test('bytes that are no dataset, or others than announced, are refused with their upload', async () => {
    const bad = zip([...pair('001'), { name: '../../etc/passwd', data: 'x' }]);
    const invalid = await announced(api(), { size: bad.length });
    await send(invalid, bad);
    const { errors } = await expectProblem(await complete(api(), invalid.id), 422, 'dataset_invalid');
    expect(errors).toMatchObject([{ field: '../../etc/passwd', message: /leads out/ }].map(fieldMatch));

    const other = await announced(api(), { sha256: '0'.repeat(64) });
    await send(other);
    const hash = await expectProblem(await complete(api(), other.id), 422, 'dataset_invalid');
    expect(hash.detail).toBe(`sha256: found ${SHA256}, announced was ${'0'.repeat(64)}`);
    expect(await storedKeys(api())).toEqual([]);
    expect(await scratchFiles(api())).toEqual([]);
    await expectProblem(await complete(api(), other.id), 404, 'not_found');
  });

  test('nothing sent is 409 while there is time, 410 afterwards; what was sent in time is completed later', async () => {
    const [none, sent] = [await announced(api()), await announced(api())];
    const early = await expectProblem(await complete(api(), none.id), 409, 'conflict');
    expect(early.detail).toBe(`Nothing has been sent to the URL of ${none.id} yet`);
    await send(sent);
    await expire(api(), none.id);
    await expire(api(), sent.id);
    await expectProblem(await complete(api(), none.id), 410, 'upload_expired');
    await expectJson(await complete(api(), sent.id), 201, Dataset);
    for (const id of ['upl_00000000000000000000000000000000', '..%2Fdatasets', 'dst_1'])
      await expectProblem(await complete(api(), id), 404, 'not_found');
  });

  test('another size or type than announced is not taken', async () => {
    const upload = await announced(api());
    const long = await send(upload, Buffer.concat([ARCHIVE, Buffer.from('x')]));
    const short = await send(upload, ARCHIVE.subarray(1));
    const type = await send(upload, ARCHIVE, { 'Content-Type': 'text/html' });
    for (const { status } of [long, short, type]) expect([400, 403, 413, 415]).toContain(status);
    expect(await keys('archive.zip')).toEqual([]);
  });
}

const fieldMatch = ({ field, message }: { field: string; message: RegExp }) => ({
  field,
  message: expect.stringMatching(message) as string,
});
