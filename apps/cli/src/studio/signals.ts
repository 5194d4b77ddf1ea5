/**
 * Resolves at the first signal that asks this process to end; each further one calls `onImpatient`.
 * A terminal that is closed (SIGHUP, or a broken stdout) asks for the same.
 */
export function interruption(onImpatient: () => void): Promise<'interrupted'> {
  return new Promise((resolve) => {
    let asked = false;
    const ask = () => {
      if (asked) onImpatient();
      asked = true;
      resolve('interrupted');
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, ask);
    process.stdout.on('error', () => resolve('interrupted'));
  });
}
