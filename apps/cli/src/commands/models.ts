import { StudioClient } from '../client.ts';
import { printJson, table } from '../output.ts';

interface Model {
  name: string;
  title?: string;
  license?: string;
  defaults?: { width?: number; height?: number; steps?: number };
}

/** The models that the studio can load. */
export async function models(options: { url: string; json?: boolean }): Promise<void> {
  const page = await new StudioClient(options.url).get<{ data: Model[] }>('/v1/models');
  if (options.json) return printJson(page);
  const rows = page.data.map(({ name, title, license, defaults }) => [
    name,
    defaults?.width && defaults.height ? `${defaults.width} x ${defaults.height}` : '',
    defaults?.steps === undefined ? '' : String(defaults.steps),
    license ?? '',
    title ?? '',
  ]);
  process.stdout.write(`${table(['name', 'size', 'steps', 'licence', 'title'], rows)}\n`);
}
