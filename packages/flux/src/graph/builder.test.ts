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

test('nodes, weights and constants that no result needs are not written; those that only a body needs are', () => {
  const g = new GraphBuilder('pruned');
  const x = g.input('x', 'float32', [2]);
  const data = { file: '/weights/all', offset: 0, byteLength: 8 };
  const [kept, unused] = ['kept', 'unused'].map((name) => g.external(name, 'float32', [2], data));
  const doubled = g.op('Add', [x, x], x);
  g.op('Mul', [doubled, unused!], x);
  const body = g.body('body');
  body.op('Neg', [unused!], x);
  body.output('inner', body.op('Mul', [doubled, kept!], x));
  const condition = g.input('condition', 'bool', []);
  g.output('y', g.op('If', [condition], x, { then_branch: { graph: body }, else_branch: { graph: body } }));
  const model = g.build();
  const { graph } = fromBinary(ModelProtoSchema, model.bytes);
  expect(graph!.node.map(({ opType }) => opType)).toEqual(['Add', 'If', 'Identity']);
  expect(graph!.node[1]!.attribute[0]!.g!.node.map(({ opType }) => opType)).toEqual(['Mul', 'Identity']);
  expect(graph!.initializer.map(({ name }) => name)).toEqual(['kept']);
  expect([...model.externals]).toEqual(['kept']);
  expect(g.plan.map(({ opType }) => opType)).toEqual(['Add', 'If', 'Identity']);
});
