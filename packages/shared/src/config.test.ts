import { loadConfig } from './config.ts';

test('an empty environment is a laptop: loopback, a folder, one Redis on this machine', () => {
  const config = loadConfig({}, '/srv/atelier');
  expect(config).toMatchObject({
    REDIS_URL: 'redis://127.0.0.1:6379',
    ATELIER_HOST: '127.0.0.1',
    ATELIER_PORT: 6006,
    ATELIER_STORE: 'folder',
    ATELIER_DATA_DIR: '/srv/atelier/.atelier',
    ATELIER_CACHE_DIR: '/srv/atelier/.atelier/cache',
    ATELIER_CATALOG: '/srv/atelier/models/catalog.json',
    ATELIER_MODELS_DIR: '/srv/atelier/models',
  });
  expect(config.ATELIER_ENGINE_THREADS).toBeUndefined();
  expect(Object.isFrozen(config)).toBe(true);
});

test('text becomes numbers and switches, an empty variable counts as absent', () => {
  const config = loadConfig({
    ATELIER_PORT: '8080',
    ATELIER_ENGINE_THREADS: '4',
    ATELIER_ENGINE_PRELOAD: '0',
    S3_FORCE_PATH_STYLE: 'true',
    S3_ENDPOINT: '',
  });
  expect(config).toMatchObject({
    ATELIER_PORT: 8080,
    ATELIER_ENGINE_THREADS: 4,
    ATELIER_ENGINE_PRELOAD: false,
    S3_FORCE_PATH_STYLE: true,
  });
  expect(config.S3_ENDPOINT).toBeUndefined();
});

test('one error names every variable that is wrong, with what was found, and shows no secret', () => {
  const load = () =>
    loadConfig({
      ATELIER_PORT: '70000',
      ATELIER_LOCK_MS: 'soon',
      LOG_LEVEL: 'loud',
      REDIS_URL: 'http://user:hunter2@redis',
      ATELIER_STORE: 's3',
      S3_ACCESS_KEY_ID: 'hunter2',
    });
  expect(load).toThrow(/Invalid environment:/);
  expect(load).toThrow(/ATELIER_PORT \("70000"\): .*65535/);
  expect(load).toThrow(/ATELIER_LOCK_MS \("soon"\)/);
  expect(load).toThrow(/LOG_LEVEL \("loud"\): .*"info"/);
  expect(load).toThrow(/REDIS_URL \(value not shown\)/);
  expect(load).not.toThrow(/hunter2/);
});

test('S3 needs a bucket, and both halves of a key', () => {
  expect(() => loadConfig({ ATELIER_STORE: 's3' })).toThrow(/S3_BUCKET \(not set\): is needed/);
  expect(() => loadConfig({ S3_ACCESS_KEY_ID: 'a' })).toThrow(/S3_SECRET_ACCESS_KEY \(not set\): is needed/);
  expect(loadConfig({ ATELIER_STORE: 's3', S3_BUCKET: 'atelier' }).S3_BUCKET).toBe('atelier');
});
