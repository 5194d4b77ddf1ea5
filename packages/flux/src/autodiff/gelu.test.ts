import { GraphBuilder } from '../graph/builder.ts';
import { geluTanh } from '../graph/ops.ts';
import { GraphSession } from '../runtime/session.ts';
import { backward } from './backward.ts';

const C = Math.sqrt(2 / Math.PI);

/** By the chain rule in float64. */
function derivative(x: number): number {
  const t = Math.tanh(C * (x + 0.044715 * x ** 3));
  return (1 + t) / 2 + (x / 2) * (1 - t * t) * C * (1 + 3 * 0.044715 * x * x);
}

test('the derivative of GELU is right to the precision of fp16 for every finite half', async () => {
  const g = new GraphBuilder('gelu');
  const x = g.input('x', 'float16', ['N']);
  const one = g.op('Cast', [g.input('seed', 'float32', ['N'])], x, { to: 10 });
  const [gradient] = backward(g, new Map([[geluTanh(g, x), one]]), [x]);
  g.output('gradient', g.op('Cast', [gradient!], { type: 'float32', shape: ['N'] }, { to: 1 }));
  const session = await GraphSession.create('gelu', g.build());

  const bits = Uint16Array.from({ length: 65_536 }, (_, i) => i);
  const halves = new Float16Array(bits.buffer).filter((value) => Number.isFinite(value));
  const feeds = {
    x: { data: halves, dims: [halves.length] },
    seed: { data: new Float32Array(halves.length).fill(1), dims: [halves.length] },
  };
  const { gradient: found } = await session.run(feeds, ['gradient']);
  let worst = 0;
  halves.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(found.data[i]! - derivative(Math.max(-20, Math.min(20, value)))));
  });
  // Half of the distance of two halves about 1 is 0.0005, of two neighbours of the table 0.0002.
  expect(worst).toBeLessThan(0.0007);
  await session.release();
});
