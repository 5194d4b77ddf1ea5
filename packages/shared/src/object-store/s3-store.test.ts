import { type TestS3, canServeS3, startTestS3 } from '../../../../test/support/s3.ts';
import { describeObjectStore } from './conformance.ts';
import { S3Store } from './s3-store.ts';

const available = canServeS3();
if (!available) {
  const how = 'no versitygw on the PATH, and no Go toolchain to build it with';
  // A suite that CI skips would be taken for one that passes.
  if (process.env['CI']) throw new Error(`The S3 store cannot be tested: ${how}`);
  console.warn(`The S3 store is NOT tested: ${how}`);
}

(available ? describe : describe.skip)('against a real server', () => {
  let server: TestS3;
  beforeAll(async () => {
    server = await startTestS3();
  }, 300_000);
  afterAll(() => server.stop());

  const create = async () => {
    const store = new S3Store({
      bucket: await server.bucket(),
      region: 'us-east-1',
      endpoint: server.endpoint,
      forcePathStyle: true,
      credentials: server.credentials,
    });
    return { store, dispose: () => store.close() };
  };
  describeObjectStore('S3Store', create);

  test('says store_unavailable for a bucket that is not there and a server that does not answer', async () => {
    const options = { region: 'us-east-1', forcePathStyle: true, credentials: server.credentials };
    const absent = new S3Store({ ...options, bucket: 'absent', endpoint: server.endpoint });
    await expect(absent.ping()).rejects.toMatchObject({ code: 'store_unavailable' });
    const nobody = new S3Store({ ...options, bucket: 'any', endpoint: 'http://127.0.0.1:1' });
    await expect(nobody.ping()).rejects.toMatchObject({ code: 'store_unavailable' });
    await expect(nobody.get('a')).rejects.toMatchObject({ code: 'store_unavailable' });
    await Promise.all([absent.close(), nobody.close()]);
  });
});
