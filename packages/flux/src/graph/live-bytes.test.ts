import { GraphBuilder, type Value } from './builder.ts';
import { executionOrder, peakLiveBytes } from './live-bytes.ts';
import { add, mul, reshape } from './ops.ts';

/** x -> 2 x for two rows of four values each, of the type that the test counts in. */
function doubled(g: GraphBuilder, x: Value): Value {
  return add(g, x, x);
}

test('the operand that was added last is computed first, and the last result before all others', () => {
  const g = new GraphBuilder('order');
  const x = g.input('x', 'float32', ['T', 4]);
  const [a, b] = [doubled(g, x), mul(g, x, x)];
  const product = mul(g, a, b);
  g.output('first', product);
  g.output('last', doubled(g, b));
  expect(executionOrder(g).map(({ outputs }) => outputs[0]!.name)).toEqual([
    'Mul_1_0',
    'Add_3_0',
    'last',
    'Add_0_0',
    'Mul_2_0',
    'first',
  ]);
});

test('values count from their node to their last use, views not at all', () => {
  const g = new GraphBuilder('chain');
  let x = g.input('x', 'float16', ['T', 4]);
  for (let i = 0; i < 5; i++) x = reshape(g, doubled(g, x), [-1, 4], ['T', 4]);
  g.output('y', x);
  // Two of the chain at a time, 16 bytes each.
  expect(peakLiveBytes(g, { T: 2 })).toMatchObject({ bytes: 32, at: { opType: 'Add' }, position: 2 });
  expect(() => peakLiveBytes(g, {})).toThrow('no size is given for the dimension T');
});

test('a value that is needed again at the end counts until then', () => {
  const g = new GraphBuilder('skip');
  const x = g.input('x', 'float32', ['T', 4]);
  const first = doubled(g, x);
  let y = first;
  for (let i = 0; i < 5; i++) y = doubled(g, y);
  g.output('y', mul(g, y, first));
  expect(peakLiveBytes(g, { T: 1 }).bytes).toBe(3 * 16);
});

test('a branch counts on top of what lives around it, and what it takes from there until it has run', () => {
  const g = new GraphBuilder('branches');
  const condition = g.input('condition', 'bool', []);
  const x = g.input('x', 'float32', ['T', 4]);
  const outer = doubled(g, x);
  const wide = g.body('wide');
  wide.output('wide.y', mul(wide, mul(wide, doubled(wide, outer), outer), outer));
  const narrow = g.body('narrow');
  narrow.output('narrow.y', x);
  const branches = { then_branch: { graph: wide }, else_branch: { graph: narrow } };
  const y = g.op('If', [condition], x, branches);
  g.output('y', mul(g, y, doubled(g, x)));
  // What is multiplied with the branch's result, `outer`, and two values of the branch.
  expect(peakLiveBytes(g, { T: 1 })).toMatchObject({ bytes: 4 * 16, at: { opType: 'Mul' }, position: 2 });
  expect(executionOrder(g).map(({ outputs }) => outputs[0]!.name)).toEqual([
    'Add_5_0',
    'Add_0_0',
    'If_4_0',
    'Mul_6_0',
    'y',
  ]);
});
