import { Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_URL } from './client.ts';
import { printError } from './output.ts';
import { parseStyle, type StyleArgument } from './style.ts';

const program = new Command('atelier')
  .description('A self-hosted FLUX.1 studio: start it, send it prompts, look at its jobs.')
  // "loras" has options of its own besides those of its commands.
  .enablePositionalOptions()
  .showHelpAfterError('(--help shows what is possible)')
  .addHelpText(
    'after',
    `
Examples:
  atelier up                                   start API, worker and trainer on ${DEFAULT_URL}
  atelier generate "a red apple" --seed 7      make a picture there and save it here
  atelier generate "a rocket" --local          make it in this process, without a studio
  atelier generate "a fox" --style ink:0.8     with a style of "atelier loras"
  atelier train ./pictures --name ink          train a style, then use it with --style ink
  atelier jobs                                 the latest generations and trainings
  atelier demo                                 what the bundled model can draw, and learn

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
  .option('--style <name:weight>', 'a LoRA, with --local a file; can be repeated', styles)
  .option('--local', 'run the engine in this process instead of asking a studio')
  .addOption(url())
  .addOption(json())
  .action(async (prompt: string, options) =>
    (await import('./commands/generate.ts')).generate(prompt, options),
  );

program
  .command('demo')
  .description('make a contact sheet, then train a style and show it; starts a studio when none runs')
  .option('--out <file>', 'where to save the contact sheet', '.atelier/contact-sheet.png')
  .option(
    '--style-out <file>',
    'where to save the pictures without and with the style',
    '.atelier/style-sheet.png',
  )
  .option('--lora-out <file>', 'where to save the style', '.atelier/ink-wash.safetensors')
  .option('--skip-training', 'make the contact sheet alone')
  .option('--model <name>', 'one of "atelier models"')
  .option('--steps <n>', 'denoising steps', number)
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/demo.ts')).demo(options));

const loras = program
  .command('loras')
  .description('list the LoRAs of the studio; import, show, export and remove them')
  .option('--tag <tag>', 'only those with this tag')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/loras.ts')).listLoras(options));

loras
  .command('import')
  .description('import a .safetensors file of any form as the next version of a LoRA')
  .argument('<file>', 'the file')
  .option('--name <name>', 'name of the LoRA (default: that of the file)')
  .option('--model <name>', 'the model that it must fit (default: the default model)')
  .option('--description <text>', 'what it does')
  .option('--weight <x>', 'weight of a style that is asked for without one', number)
  .option('--trigger <words>', 'words that bring it out in a prompt; can be repeated', list)
  .option('--tag <tag>', 'a tag; can be repeated', list)
  .addOption(url())
  .addOption(json())
  .action(async (file: string, options) => (await import('./commands/loras.ts')).importLora(file, options));

loras
  .command('show')
  .description('show one LoRA')
  .argument('<name>', 'its name')
  .addOption(url())
  .addOption(json())
  .action(async (name: string, options) => (await import('./commands/loras.ts')).showLora(name, options));

loras
  .command('export')
  .description('save the file of a LoRA')
  .argument('<name>', 'its name, or name@version')
  .addOption(
    new Option('--format <form>', 'as imported, or written for PEFT and diffusers, or kohya and ComfyUI')
      .choices(['original', 'peft', 'kohya'])
      .default('original'),
  )
  .option('--out <file>', 'where to save it')
  .addOption(url())
  .addOption(json())
  .action(async (name: string, options) => (await import('./commands/loras.ts')).exportLora(name, options));

loras
  .command('remove')
  .description('delete a LoRA with all its versions')
  .argument('<name>', 'its name')
  .addOption(url())
  .addOption(json())
  .action(async (name: string, options) => (await import('./commands/loras.ts')).removeLora(name, options));

const datasets = program
  .command('datasets')
  .description('pictures and prompts to train on: list, upload and remove them');

datasets
  .command('list', { isDefault: true })
  .description('list the datasets of the studio')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/datasets.ts')).listDatasets(options));

datasets
  .command('upload')
  .description('upload a folder with images/NNN.png and prompts/NNN.txt, or a zip archive of one')
  .argument('<path>', 'the folder or archive')
  .option('--name <name>', 'name of the dataset (default: that of the folder)')
  .addOption(url())
  .addOption(json())
  .action(async (path: string, options) =>
    (await import('./commands/datasets.ts')).uploadDataset(path, options),
  );

datasets
  .command('remove')
  .description('delete a dataset with all its files')
  .argument('<id>', 'its id')
  .addOption(url())
  .addOption(json())
  .action(async (id: string, options) => (await import('./commands/datasets.ts')).removeDataset(id, options));

program
  .command('train')
  .description('train a LoRA on a folder with images/ and prompts/, a zip archive of one, or a dataset')
  .argument('<dataset>', 'the folder or archive, or the id of a dataset of the studio')
  .requiredOption('--name <name>', 'LoRA that the result becomes a version of')
  .option('--model <name>', 'one of "atelier models"')
  .option('--lora-rank <n>', 'rank of the LoRA (default: 4)', number)
  .option('--lora-alpha <x>', 'its strength: the change is scaled by alpha / rank (default: 8)', number)
  .addOption(
    new Option('--targets <which>', 'layers to train (default: attention)').choices(['attention', 'all']),
  )
  .option('--learning-rate <x>', 'default: 1e-4', number)
  .addOption(
    new Option('--lr-schedule <shape>', 'default: constant').choices(['constant', 'cosine', 'linear']),
  )
  .option('--lr-warmup-steps <n>', 'default: 0', number)
  .option('--batch-size <n>', 'pictures in a batch (default: 4)', number)
  .option('--gradient-accumulation-steps <n>', 'batches in a step (default: 4)', number)
  .option('--max-epochs <n>', 'how often each picture is seen (default: 100)', number)
  .option('--save-every-n-epochs <n>', 'epochs between two versions (default: 10)', number)
  .option('--resolution <px>', "default: the model's own, at most 768", number)
  .addOption(
    new Option('--timestep-sampling <how>', 'default: shift').choices(['shift', 'sigmoid', 'uniform']),
  )
  .option('--caption-dropout <x>', 'share of pictures trained without their prompt (default: 0)', number)
  .option(
    '--min-snr-gamma <x>',
    'weigh noise levels as Min-SNR does; 5 is usual (default: all alike)',
    number,
  )
  .option('--trigger-word <words>', 'put in front of prompts that lack it')
  .option('--validation-every <k>', 'hold every k-th picture back to measure the loss on', number)
  .option('--sample-prompt <text>', 'draw this before training and at each version; can be repeated', list)
  .option('--samples-dir <folder>', 'where samples are saved (default: .atelier/samples/<id>)')
  .option('--seed <n>', 'default: 42', number)
  .option('--skip-bad', 'train on what is good instead of refusing a dataset with a problem')
  .addOption(new Option('--priority <which>', 'default: normal').choices(['low', 'normal', 'high']))
  .option('--metadata <key=value>', 'a note in the job; can be repeated', pairs)
  .addOption(url())
  .addOption(json())
  .action(async (dataset: string, options) => (await import('./commands/train.ts')).train(dataset, options));

program
  .command('jobs')
  .description('list the latest generations and trainings, or show one')
  .argument('[id]', 'a job id')
  .addOption(new Option('--kind <kind>', 'only jobs of this kind').choices(['generation', 'training']))
  .addOption(
    new Option('--status <status>', 'only jobs in this status').choices([
      'queued',
      'running',
      'succeeded',
      'failed',
      'canceled',
    ]),
  )
  .option('--limit <n>', 'at most this many (default: 20)', number)
  .option('--follow', 'show the job until it ends; Ctrl-C leaves it alone')
  .option('--samples-dir <folder>', 'where samples of a followed training are saved')
  .addOption(url())
  .addOption(json())
  .action(async (id: string | undefined, options) => (await import('./commands/jobs.ts')).jobs(id, options));

program
  .command('cancel')
  .description('stop a generation or a training; a training keeps the versions it has made')
  .argument('<id>', 'a job id')
  .addOption(url())
  .addOption(json())
  .action(async (id: string, options) => (await import('./commands/jobs.ts')).cancel(id, options));

const keys = program
  .command('keys')
  .description('API keys: make, list and revoke them; needs a key with the scope admin once there are any');

keys
  .command('list', { isDefault: true })
  .description('list the keys, revoked ones too')
  .option('--tenant <name>', 'only those of this tenant')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/keys.ts')).listKeys(options));

keys
  .command('create')
  .description('make a key and print it, this once')
  .requiredOption('--name <name>', 'what it is for')
  .option('--tenant <name>', 'whose objects it sees (default: default)')
  .option(
    '--scope <scope>',
    'read, generate, train, loras:write, datasets:write or admin; can be repeated (default: read, generate)',
    list,
  )
  .option('--expires <time>', 'from when on it is refused, such as 2027-01-31T00:00:00Z (default: never)')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/keys.ts')).createKey(options));

keys
  .command('revoke')
  .description('revoke a key for good')
  .argument('<id>', 'its id')
  .addOption(url())
  .addOption(json())
  .action(async (id: string, options) => (await import('./commands/keys.ts')).revokeKey(id, options));

program
  .command('models')
  .description('list the models of the studio')
  .addOption(url())
  .addOption(json())
  .action(async (options) => (await import('./commands/models.ts')).models(options));

function styles(text: string, before: readonly StyleArgument[] = []): StyleArgument[] {
  const style = parseStyle(text);
  if (!style) throw new InvalidArgumentError('A name is needed, or name:weight such as ink-wash:0.8.');
  return [...before, style];
}

function list(text: string, before: readonly string[] = []): string[] {
  return [...before, text];
}

function pairs(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf('=');
  if (at < 1) throw new InvalidArgumentError('key=value is needed.');
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

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
