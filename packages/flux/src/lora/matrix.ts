/** A matrix, row-major. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly data: Float32Array;
}

export function identity(size: number): Matrix {
  const data = new Float32Array(size * size);
  for (let i = 0; i < size; i++) data[i * size + i] = 1;
  return { rows: size, columns: size, data };
}

/** a · b, summed in fp64. */
export function multiply(a: Matrix, b: Matrix): Matrix {
  const data = new Float32Array(a.rows * b.columns);
  const sums = new Float64Array(b.columns);
  for (let row = 0; row < a.rows; row++) {
    sums.fill(0);
    for (let k = 0; k < a.columns; k++) {
      const factor = a.data[row * a.columns + k]!;
      if (factor === 0) continue;
      for (let column = 0; column < b.columns; column++)
        sums[column]! += factor * b.data[k * b.columns + column]!;
    }
    data.set(sums, row * b.columns);
  }
  return { rows: a.rows, columns: b.columns, data };
}

/** a ⊗ b: every element of a times b, [a.rows · b.rows, a.columns · b.columns]. */
export function kronecker(a: Matrix, b: Matrix): Matrix {
  const columns = a.columns * b.columns;
  const data = new Float32Array(a.rows * b.rows * columns);
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < a.columns; j++) {
      const factor = a.data[i * a.columns + j]!;
      if (factor === 0) continue;
      for (let k = 0; k < b.rows; k++) {
        const to = (i * b.rows + k) * columns + j * b.columns;
        const from = k * b.columns;
        for (let l = 0; l < b.columns; l++) data[to + l] = factor * b.data[from + l]!;
      }
    }
  }
  return { rows: a.rows * b.rows, columns, data };
}

/** Whether no element is NaN or infinite: those less themselves are NaN. One sum is faster than a test each. */
export function isAllFinite(data: Float32Array): boolean {
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += data[i]! - data[i]!;
  return sum === 0;
}

export function isZero(data: Float32Array): boolean {
  for (let i = 0; i < data.length; i++) if (data[i] !== 0) return false;
  return true;
}

export function scaleInPlace(data: Float32Array, factor: number): void {
  if (factor !== 1) for (let i = 0; i < data.length; i++) data[i] = data[i]! * factor;
}
