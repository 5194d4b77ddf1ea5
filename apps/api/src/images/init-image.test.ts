import { AtelierError } from '@atelier/shared';
import { readImageHeader } from './header.ts';
import { MAX_IMAGE_BYTES, parseInitImage } from './init-image.ts';

/** 48 x 32 pixels, each written by libvips. */
const PICTURES = {
  png: 'iVBORw0KGgoAAAANSUhEUgAAADAAAAAgAQMAAABuGmlfAAAAA1BMVEXIHjzD6Ll6AAAACXBIWXMAAAPoAAAD6AG1e1JrAAAADElEQVQImWNgGN4AAADgAAECHtNHAAAAAElFTkSuQmCC',
  jpeg: '/9j/2wBDACgcHiMeGSgjISMtKygwPGRBPDc3PHtYXUlkkYCZlo+AjIqgtObDoKrarYqMyP/L2u71////m8H////6/+b9//j/2wBDASstLTw1PHZBQXb4pYyl+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj/wAARCAAgADADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAT/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFgEBAQEAAAAAAAAAAAAAAAAAAAIE/8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAwDAQACEQMRAD8AmAQ3gAAAAAAAAAP/2Q==',
  lossy: 'UklGRkAAAABXRUJQVlA4IDQAAAAwAwCdASowACAAP3G202G0ryqmJWgCkC4JZwDOOA8KmggAAP7eEaWD+KHmt7B1NmRNW1gA',
  lossless: 'UklGRh4AAABXRUJQVlA4TBEAAAAvL8AHAAdQjyKXp/+BiOh/AAA=',
  extended:
    'UklGRmQAAABXRUJQVlA4WAoAAAAQAAAALwAAHwAAQUxQSAoAAAABB9C/iAhERP8DVlA4IDQAAAAwAwCdASowACAAP3G202G0ryqmJWgCkC4JZwDOOA8KmggAAP7eEaWD+KHmt7B1NmRNW1gA',
};
const bytesOf = (name: keyof typeof PICTURES) => Buffer.from(PICTURES[name], 'base64');

test.each([
  ['png', 'image/png'],
  ['jpeg', 'image/jpeg'],
  ['lossy', 'image/webp'],
  ['lossless', 'image/webp'],
  ['extended', 'image/webp'],
] as const)('the header of a %s picture is read', (name, contentType) => {
  expect(readImageHeader(bytesOf(name))).toEqual({ contentType, width: 48, height: 32 });
});

test.each(Object.keys(PICTURES) as (keyof typeof PICTURES)[])('no cut of a %s picture is misread', (name) => {
  const bytes = bytesOf(name);
  for (let length = 0; length < bytes.length; length++) {
    const header = readImageHeader(bytes.subarray(0, length));
    expect(header === null || (header.width === 48 && header.height === 32)).toBe(true);
  }
});

test('a JPEG whose segments lead nowhere is not read', () => {
  expect(readImageHeader(Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))).toBeNull();
  expect(readImageHeader(Buffer.concat([Buffer.from([0xff, 0xd8]), Buffer.alloc(1_000, 0xff)]))).toBeNull();
});

function refusal(uri: string): AtelierError {
  try {
    parseInitImage(uri);
  } catch (error) {
    if (error instanceof AtelierError) return error;
    throw error;
  }
  throw new Error('the picture was accepted');
}

test('a data URI gives the bytes and what they are', () => {
  const image = parseInitImage(`data:image/png;base64,${PICTURES.png}`);
  expect(image).toMatchObject({ contentType: 'image/png', width: 48, height: 32 });
  expect(image.bytes.equals(bytesOf('png'))).toBe(true);
});

test('a picture that claims more pixels than allowed is refused by its header', () => {
  const bomb = bytesOf('png');
  bomb.writeUInt32BE(60_000, 16);
  bomb.writeUInt32BE(60_000, 20);
  const error = refusal(`data:image/png;base64,${bomb.toString('base64')}`);
  expect(error.code).toBe('image_invalid');
  expect(error.message).toBe('image.file: found 60000 x 60000 pixels, allowed are at most 50000000');
});

test.each([
  ['https://example.com/a.png', 'allowed is a data URI'],
  ['data:text/html;base64,AAAA', 'found "data:text/html;base64"'],
  ['data:image/png;base64,%%%%', 'not base64'],
  ['data:image/png;base64,', 'not base64'],
  ['data:image/png;base64,AAAAAAAAAAAAAAAA', 'not a PNG, JPEG or WebP'],
  [`data:image/jpeg;base64,${PICTURES.png}`, 'the URI says image/jpeg, the bytes are image/png'],
])('%s is refused', (uri, message) => {
  const error = refusal(uri);
  expect(error.code).toBe('image_invalid');
  expect(error.errors[0]?.field).toBe('image.file');
  expect(error.message).toContain(message);
});

test('a file above the limit is refused before it is decoded', () => {
  const error = refusal(`data:image/png;base64,${'A'.repeat((MAX_IMAGE_BYTES / 3) * 4 + 8)}`);
  expect(error.code).toBe('payload_too_large');
  expect(error.message).toContain(`at most ${MAX_IMAGE_BYTES}`);
});
