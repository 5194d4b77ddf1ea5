/** The part of cli-progress (which brings no types) that progress.ts uses. */
declare module 'cli-progress' {
  export interface Preset {
    barCompleteChar: string;
    barIncompleteChar: string;
  }
  export interface Options {
    format: string;
    hideCursor: boolean;
    clearOnComplete: boolean;
    stopOnComplete: boolean;
    linewrap: boolean;
    barsize: number;
  }
  export class SingleBar {
    constructor(options: Options, preset: Preset);
    start(total: number, startValue: number, payload: Record<string, string>): void;
    update(value: number, payload: Record<string, string>): void;
    render(): void;
    stop(): void;
  }
  export const Presets: { shades_classic: Preset };
}
