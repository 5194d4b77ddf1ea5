/**
 * Min-SNR weight of the velocity's squared error at a noise level (Hang et al. 2023, "Efficient Diffusion Training via
 * Min-SNR Weighting Strategy"): the error of the picture counts min(SNR, γ) times. On the flow's straight path
 * SNR = ((1 - σ) / σ)², and the picture is x₀ = x_σ - σ v, so its squared error is σ² times the velocity's. Together
 * σ² min(SNR, γ) = min((1 - σ)², γ σ²): 0 where nothing can be learnt, largest at σ = 1 / (1 + √γ).
 *
 * For variance-preserving v-prediction the same derivation gives the known min(SNR, γ) / (SNR + 1); its denominator
 * belongs to that path, on which σ² = 1 / (SNR + 1).
 */
export function minSnrWeight(sigma: number, gamma: number): number {
  return Math.min((1 - sigma) ** 2, gamma * sigma ** 2);
}
