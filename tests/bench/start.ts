/**
 * tests/bench/start.ts: from the start of the process to "listening on", beside the shortest script that listens.
 *
 * `deno run -A tests/bench/start.ts [--quick] [--rounds=N]`
 */
import { type Options, parseOptions } from "./options.ts";
import { Server } from "./server.ts";
import { atMost, median, pairedRatio, type Section, table, targetTable } from "./table.ts";
import { BASE, OURS, pair, type Variant } from "./variants.ts";

const SHORTEST = "five lines of Deno.listen";
/** Each start is short, so there are many in a round. */
const STARTS_PER_ROUND = 5;

/** Milliseconds from the start of the process to the line that says it listens. */
async function measure(variant: Variant): Promise<number> {
  const began = performance.now();
  const server = await Server.start(variant);
  const took = performance.now() - began;
  await server.stop();
  return took;
}

/** Measures starting. */
export async function benchStart(options: Options): Promise<Section> {
  const script = new URL("servers/deno_listen.ts", import.meta.url).pathname;
  const shortest = { name: SHORTEST, command: [Deno.execPath(), "run", "--allow-net", script] };
  const variants = [...pair(), shortest];
  for (const variant of variants) await measure(variant); // The first start compiles, and fills the caches.
  const times = new Map<string, number[]>(variants.map(({ name }) => [name, []]));
  for (let i = 0; i < options.rounds * STARTS_PER_ROUND; i++) {
    const order = i % 2 === 0 ? variants : variants.toReversed();
    for (const variant of order) times.get(variant.name)!.push(await measure(variant));
  }
  const ratio = (name: string) => pairedRatio(times.get(name)!, times.get(SHORTEST)!);
  const rows = [OURS, BASE, SHORTEST].map((name) => [name, median(times.get(name)!), ratio(name)]);
  return {
    title: "Start",
    body: [
      `From the start of the process to its "listening on"; ${times.get(OURS)!.length} starts each.`,
      table(["program", "ms", "ratio"], rows),
    ],
    targets: [atMost("start to listening", 1.15, ratio(OURS))],
  };
}

if (import.meta.main) {
  const { body, targets } = await benchStart(parseOptions(Deno.args));
  console.log(`\n${body.join("\n\n")}\n\n${targetTable(targets)}`);
}
