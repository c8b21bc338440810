/**
 * tests/bench/idle.ts: what a connection costs that has spoken once and is silent now.
 *
 * `deno run -A tests/bench/idle.ts [--quick] [--rounds=N] [--only=TEXT]`
 */
import { type Options, parseOptions } from "./options.ts";
import { Server } from "./server.ts";
import { atMost, median, type Section, skipList, table, targetTable } from "./table.ts";
import { allVariants, BASE, fewVariants, onDeno, OURS, type Variant } from "./variants.ts";

/** How many connections. */
const CONNECTIONS = 5000;
/** How many say something before anything is measured, so that what a server allocates once is there. */
const WARM_UP = 200;
/** How many connect at a time. */
const BATCH = 100;
/** How long memory gets to settle, in milliseconds. */
const SETTLE = 500;
/** What a connection may cost, in KiB. */
const LIMIT = 9;
/** The floor: no loop, and as small a buffer as ours. */
const SMALL: Variant = onDeno("Deno async/await, 512 B", "deno_async.ts", "512");
/** And the floor for whatever has our API. */
const LEAST_SMALL: Variant = onDeno("least loop, 512 B", "least_loop.ts", "512");

/** Opens `count` connections; each has one message echoed. */
async function speak(port: number, count: number): Promise<Deno.Conn[]> {
  const conns: Deno.Conn[] = [];
  const message = new Uint8Array(64).fill(65);
  while (conns.length < count) {
    const batch = await Promise.all(
      Array.from({ length: Math.min(BATCH, count - conns.length) }, async () => {
        const conn = await Deno.connect({ hostname: "127.0.0.1", port });
        await conn.write(message);
        const got = new Uint8Array(message.length);
        for (let n = 0; n < got.length;) n += await conn.read(got.subarray(n)) ?? Infinity;
        return conn;
      }),
    );
    conns.push(...batch);
  }
  return conns;
}

const settle = () => new Promise((resolve) => setTimeout(resolve, SETTLE));

/** KiB per idle connection. */
async function measure(variant: Variant, connections: number): Promise<number> {
  const server = await Server.start(variant);
  const conns: Deno.Conn[] = [];
  try {
    conns.push(...await speak(server.port, WARM_UP));
    await settle();
    const before = server.memory;
    conns.push(...await speak(server.port, connections));
    await settle();
    return (server.memory - before) / connections;
  } finally {
    for (const conn of conns) conn.close();
    await server.stop();
  }
}

/** Measures idle connections. */
export async function benchIdle(options: Options): Promise<Section> {
  const scratch = await Deno.makeTempDir();
  try {
    const skipped: string[] = [];
    const variants = [...options.quick ? fewVariants() : await allVariants(scratch, skipped), SMALL, LEAST_SMALL];
    const connections = options.quick ? CONNECTIONS / 5 : CONNECTIONS;
    const sizes = new Map<string, number[]>();
    for (let round = 0; round < Math.min(options.rounds, 3); round++) {
      for (const variant of variants.filter(({ name }) => name.includes(options.only))) {
        const size = await measure(variant, connections);
        console.log(`${variant.name}: ${size.toFixed(1)} KiB per idle connection`);
        sizes.set(variant.name, [...sizes.get(variant.name) ?? [], size]);
      }
    }
    const base = median(sizes.get(BASE) ?? []);
    const rows = [...sizes].map(([name, all]) => [name, median(all), median(all) / base]);
    return {
      title: "Idle connections",
      body: [
        `Growth of resident memory per connection, at ${connections.toLocaleString("en-US")} that have spoken once.`,
        table(["server", "KiB per connection", "ratio"], rows),
        ...skipList(skipped),
      ],
      targets: [{
        ...atMost("idle connection", LIMIT, median(sizes.get(OURS) ?? []), " KiB"),
        floor: median(sizes.get(SMALL.name) ?? []),
      }],
    };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}

if (import.meta.main) {
  const { body, targets } = await benchIdle(parseOptions(Deno.args));
  console.log(`\n${body.join("\n\n")}\n\n${targetTable(targets)}`);
}
