/**
 * tests/bench/options.ts: what all benchmarks take on the command line.
 */

/** How a benchmark is to be run. */
export interface Options {
  /** Few variants, few messages: to look at while developing. */
  quick: boolean;
  /** How often each figure is measured; the median counts. */
  rounds: number;
  /** Only what has this in its name. */
  only: string;
}

/** Reads `--quick`, `--rounds=N` and `--only=TEXT`. */
export function parseOptions(args: readonly string[]): Options {
  const options = { quick: false, rounds: 5, only: "" };
  for (const arg of args) {
    const [name, value] = arg.split(/=(.*)/s);
    if (name === "--quick") options.quick = true;
    else if (name === "--rounds" && Number(value) >= 1) options.rounds = Number(value);
    else if (name === "--only" && value) options.only = value;
    else {
      console.error(`Unknown option ${arg}; known are --quick, --rounds=N and --only=TEXT`);
      Deno.exit(2);
    }
  }
  return options;
}
