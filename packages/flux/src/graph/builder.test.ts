import { fromBinary } from '@bufbuild/protobuf';
import { GraphBuilder } from './builder.ts';
import { linear } from './ops.ts';
import { ModelProtoSchema } from './proto/onnx_pb.js';
import { GraphWeights } from './weights.ts';

test('weights are widened by nodes in front of all others, so that each is widened just before its use', () => {
  const g = new GraphBuilder('chain');
  const shape = [8, 8];
  const weights = new GraphWeights(g, {
    has: () => true,
    locate: (name) => ({
      file: `/weights/${name}`,
      offset: 0,
      byteLength: 64,
      dtype: 'F8_E4M3',
      shape,
    }),
  });
  let x = g.input('x', 'float32', ['T', 8]);
  for (const name of ['a', 'b']) x = linear(g, x, weights.get(name), null);
  g.output('y', x);
  const { graph } = fromBinary(ModelProtoSchema, g.build().bytes);
  expect(graph!.node.map(({ opType }) => opType)).toEqual([
    'DequantizeLinear',
    'DequantizeLinear',
    'Gemm',
    'Gemm',
    'Identity',
  ]);
});
