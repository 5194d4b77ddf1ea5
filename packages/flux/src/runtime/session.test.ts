import { GraphBuilder } from '../graph/builder.ts';
import { mul } from '../graph/ops.ts';
import { GraphSession } from './session.ts';

test('halves go in and come out as a Float16Array, none of them as well', async () => {
  const g = new GraphBuilder('square');
  const x = g.input('x', 'float16', ['N']);
  g.output('y', mul(g, x, x));
  const session = await GraphSession.create('square', g.build());
  const square = async (...values: number[]): Promise<Float16Array> => {
    const feeds = { x: { data: Float16Array.of(...values), dims: [values.length] } };
    return (await session.run<'y', Float16Array>(feeds, ['y'])).y.data;
  };
  expect(await square(1.5, -3, 2 ** -12, 65504)).toEqual(Float16Array.of(2.25, 9, 2 ** -24, Infinity));
  expect(await square()).toEqual(new Float16Array(0));
  await session.release();
});
