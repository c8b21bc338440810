/**
 * tests/bench/start.ts: from the start of the process to "listening on", beside the shortest script that listens.
 *
 * `deno run -A tests/bench/start.ts [--rounds=N]`
 */
import { type Options, parseOptions } from "./options.ts";
import { Server } from "./server.ts";
import { atMost, median, pairedRatio, type Section, skipList, table, targetTable } from "./table.ts";
import { add, BASE, onDeno, OURS, run, type Variant } from "./variants.ts";

const SHORTEST = "five lines of Deno.listen";
/** A program that needs no more of us can leave the rest where it is. */
const TWO_MODULES = "yieldloop, loop.ts and net.ts alone";
/** What of it is loading: the shortest, which has our modules loaded as well and uses none. */
const IMPORTED = "five lines, mod.ts imported";
/** The floor: all that Deno reads is one file with no comments, no types and nothing unused. */
const BUNDLE = "yieldloop, bundled and minified";
/** What a start may cost, of the shortest. */
const LIMIT = 1.15;
/** Each start is short, so there are many in a round. */
const STARTS_PER_ROUND = 5;
/** How long the first start may run on, in milliseconds: Deno keeps what it has compiled a moment after it was. */
const FILL_CACHES = 500;

/** Milliseconds from the start of the process to the line that says it listens; it is ended `after` some more. */
async function measure(variant: Variant, after = 0): Promise<number> {
  const began = performance.now();
  const server = await Server.start(variant);
  const took = performance.now() - began;
  if (after > 0) await new Promise((resolve) => setTimeout(resolve, after));
  await server.stop();
  return took;
}

async function bundle(scratch: string): Promise<string[]> {
  const [deno, , , script] = onDeno(OURS, "yieldloop.ts").command;
  const file = `${scratch}/bundle.js`;
  await run(deno, ["bundle", "--quiet", "--minify", "-o", file, script]);
  return [deno, "run", "--allow-net", file];
}

/** Measures starting. */
export async function benchStart(options: Options): Promise<Section> {
  const scratch = await Deno.makeTempDir();
  try {
    const skipped: string[] = [];
    const variants = [
      onDeno(OURS, "yieldloop.ts"),
      onDeno(TWO_MODULES, "yieldloop_listen.ts"),
      onDeno(IMPORTED, "imported_listen.ts"),
      onDeno(BASE, "deno_async.ts"),
      onDeno(SHORTEST, "deno_listen.ts"),
    ];
    await add(variants, skipped, BUNDLE, () => bundle(scratch));
    for (const variant of variants) await measure(variant, FILL_CACHES);
    const times = new Map<string, number[]>(variants.map(({ name }) => [name, []]));
    for (let i = 0; i < options.rounds * STARTS_PER_ROUND; i++) {
      const order = i % 2 === 0 ? variants : variants.toReversed();
      for (const variant of order) times.get(variant.name)!.push(await measure(variant));
    }
    const ratio = (name: string) => pairedRatio(times.get(name)!, times.get(SHORTEST)!);
    const rows = variants.map(({ name }) => [name, median(times.get(name)!), ratio(name)]);
    return {
      title: "Start",
      body: [
        `From the start of the process to its "listening on"; ${times.get(OURS)!.length} starts each.`,
        table(["program", "ms", "ratio"], rows),
        ...skipList(skipped),
      ],
      targets: [
        { ...atMost("start to listening", LIMIT, ratio(OURS)), floor: times.has(BUNDLE) ? ratio(BUNDLE) : undefined },
        atMost("start to listening, loop.ts and net.ts alone", LIMIT, ratio(TWO_MODULES)),
      ],
    };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}

if (import.meta.main) {
  const { body, targets } = await benchStart(parseOptions(Deno.args));
  console.log(`\n${body.join("\n\n")}\n\n${targetTable(targets)}`);
}
