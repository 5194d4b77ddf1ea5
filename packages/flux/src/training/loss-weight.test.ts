import { minSnrWeight } from './loss-weight.ts';

test.each([
  // SNR 9, 1 and 1/9; by hand σ² min(SNR, 5).
  [0.25, 0.3125],
  [0.5, 0.25],
  [0.75, 0.0625],
  [0, 0],
  [1, 0],
])('the weight at noise level %d is %d', (sigma, weight) => {
  expect(minSnrWeight(sigma, 5)).toBeCloseTo(weight, 12);
});

test('it is what min(SNR, γ) / (SNR + 1) makes of the velocity of the variance-preserving path', () => {
  for (const sigma of [0.01, 0.2, 1 / (1 + Math.sqrt(5)), 0.6, 0.97]) {
    const snr = ((1 - sigma) / sigma) ** 2;
    // Dividing the flow's x by √((1 - σ)² + σ²) gives that path, and multiplies the error of its velocity by the same.
    const length = (1 - sigma) ** 2 + sigma ** 2;
    expect(minSnrWeight(sigma, 5)).toBeCloseTo((length * Math.min(snr, 5)) / (snr + 1), 12);
  }
});
