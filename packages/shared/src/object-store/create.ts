import { join } from 'node:path';
import type { Config } from '../config.ts';
import { FolderStore } from './folder-store.ts';
import { S3Store } from './s3-store.ts';
import type { ObjectStore } from './types.ts';

/** The store that the configuration names; connects when it is first used. */
export function createObjectStore(config: Config): ObjectStore {
  switch (config.ATELIER_STORE) {
    case 'folder':
      return new FolderStore(join(config.ATELIER_DATA_DIR, 'store'));
    case 's3':
      return new S3Store({
        bucket: config.S3_BUCKET!,
        region: config.S3_REGION,
        endpoint: config.S3_ENDPOINT,
        forcePathStyle: config.S3_FORCE_PATH_STYLE,
        credentials:
          config.S3_ACCESS_KEY_ID && config.S3_SECRET_ACCESS_KEY
            ? { accessKeyId: config.S3_ACCESS_KEY_ID, secretAccessKey: config.S3_SECRET_ACCESS_KEY }
            : undefined,
      });
    default: {
      const never: never = config.ATELIER_STORE;
      throw new Error(`unknown store ${String(never)}`);
    }
  }
}
