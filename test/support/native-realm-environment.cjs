// onnxruntime-node checks `data instanceof Float32Array` against the constructors of the realm that loaded it,
// and jest runs tests in another realm. Sharing the outer constructors makes a tensor made in a test acceptable.
const { TestEnvironment } = require('jest-environment-node');

const SHARED = [
  'ArrayBuffer',
  'SharedArrayBuffer',
  'DataView',
  'Uint8Array',
  'Uint8ClampedArray',
  'Uint16Array',
  'Uint32Array',
  'Int8Array',
  'Int16Array',
  'Int32Array',
  'BigInt64Array',
  'BigUint64Array',
  'Float32Array',
  'Float64Array',
];

module.exports = class NativeRealmEnvironment extends TestEnvironment {
  async setup() {
    await super.setup();
    for (const name of SHARED) this.global[name] = globalThis[name];
    if (globalThis.Float16Array) this.global.Float16Array = globalThis.Float16Array;
  }
};
