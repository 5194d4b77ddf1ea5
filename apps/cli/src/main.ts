import { Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_URL } from './client.ts';
import { printError } from './output.ts';

const program = new Command('atelier')
  .description('A self-hosted FLUX.1 studio: start it, send it prompts, look at its jobs.')
  .showHelpAfterError('(--help shows what is possible)')
  .addHelpText(
    'after',
    `
Examples:
  atelier up                                   start API, worker and trainer on ${DEFAULT_URL}
  atelier generate "a red apple" --seed 7      make a picture there and save it here
  atelier generate "a rocket" --local          make it in this process, without a studio
  atelier demo                                 a contact sheet of what the bundled model can do

In a checkout, "npm run atelier --" stands for "atelier".`,
  );

const json = () => new Option('--json', 'print JSON for programs');
const url = () => new Option('--url <url>', 'where the studio runs').default(DEFAULT_URL).env('ATELIER_URL');

program
  .command('up')
  .description('start the whole studio in this terminal; Ctrl-C stops it')
  .option('--verbose', 'show every log line of every service')
  .addOption(json())
  .action(async (options) => (await import('./commands/up.ts')).up(options));

program
  .command('generate')
  .description('make one picture and save it')
  .argument('<prompt>', 'what to paint')
  .option('--out <file>', 'where to save it (default: named after prompt and seed)')
  .option('--model <name>', 'one of "atelier models"')
  .option('--seed <n>', 'the same seed gives the same picture; -1 is random', number)
  .option('--steps <n>', 'denoising steps', number)
  .option('--guidance <x>', 'how closely the prompt is followed', number)
  .option('--width <px>', 'width in pixels', number)
  .option('--height <px>', 'height in pixels', number)
  .option('--local', 'run the engine in this process instead of asking a studio')
  .addOption(url())
  .addOption(json())
  .action(async (prompt: string, options) =>
    (await import('./commands/generate.ts')).generate(prompt, options),
  );

program
  .command('demo')
  .description('make a contact sheet of pictures; starts a studio when none runs')
  .option('--out <file>', 'where to save the sheet', 'contact-sheet.png')
  .option('--model <name>', 'one of "atelier models"')
  .option('--steps <n>', 'denoising steps', number)
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/demo.ts')).demo(options));

program
  .command('jobs')
  .description('list the latest jobs, or show one')
  .argument('[id]', 'a job id')
  .addOption(url())
  .addOption(json())
  .action(async (id: string | undefined, options) => (await import('./commands/jobs.ts')).jobs(id, options));

program
  .command('models')
  .description('list the models of the studio')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/models.ts')).models(options));

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('A number is needed.');
  return value;
}

try {
  await program.parseAsync();
} catch (error) {
  printError(error, process.argv.includes('--json'));
  process.exitCode = 1;
}
