import { FluxError } from '../../errors.ts';

/** Why a file of a dataset cannot be trained on. */
export interface DatasetProblem {
  /** Relative to the dataset's folder, with forward slashes. */
  readonly file: string;
  /** What was found and what is allowed; continues a sentence that starts with the file's name. */
  readonly problem: string;
}

/** Problems that a message lists; the details have all. */
const LISTED = 50;

/** One error for all problems, a line each. */
export function datasetInvalid(problems: readonly DatasetProblem[]): FluxError {
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`;
  const lines = problems.slice(0, LISTED).map(({ file, problem }) => `${file} ${problem}`);
  if (problems.length > LISTED) lines.push(`and ${problems.length - LISTED} more`);
  return new FluxError('dataset_invalid', `The dataset has ${count}:\n${lines.join('\n')}`, {
    details: { problems },
  });
}
