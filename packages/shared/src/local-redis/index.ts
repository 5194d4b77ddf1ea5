export { type FindOptions, type RedisServerBinary, defaultCacheDir, findRedisServer } from './find.ts';
export { type ResolveOptions, type ResolvedRedis, resolveRedis } from './resolve.ts';
export { type LocalRedis, type RedisLog, type StartOptions, startLocalRedis } from './server.ts';
