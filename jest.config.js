/** @type {import('jest').Config} */
export default {
  roots: ['<rootDir>/apps', '<rootDir>/packages', '<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  testEnvironment: '<rootDir>/test/support/native-realm-environment.cjs',
  transform: {
    '^.+\\.[jt]s$': ['@swc/jest', { jsc: { target: 'es2024', parser: { syntax: 'typescript' } } }],
  },
  // Golden tensors and a real engine process share two cores; more workers only make each slower.
  maxWorkers: 2,
  testTimeout: 60_000,
};
