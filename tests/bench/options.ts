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
  const options = { quick: false, rounds: 0, only: "" };
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
  options.rounds ||= options.quick ? 2 : 5;
  return options;
}

/** Those of `all` that `only` asks for: the one with that very name, else those that have it in theirs. Ends if none has. */
export function pick<T>(all: readonly T[], only: string, nameOf: (one: T) => string): T[] {
  const named = all.filter((one) => nameOf(one) === only);
  const picked = named.length > 0 ? named : all.filter((one) => nameOf(one).includes(only));
  if (picked.length > 0) return picked;
  console.error(`Nothing has "${only}" in its name; there are ${all.map(nameOf).join("; ")}`);
  Deno.exit(2);
}
