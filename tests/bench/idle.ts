/**
 * tests/bench/idle.ts: what a connection costs that has spoken once and is silent now.
 *
 * `deno run -A tests/bench/idle.ts [--quick] [--rounds=N] [--only=TEXT]`
 */
import { type Options, parseOptions, pick } from "./options.ts";
import { Server } from "./server.ts";
import { atMost, median, type Section, skipList, table, targetTable } from "./table.ts";
import { allVariants, BASE, fewVariants, inSmallNewSpace, onDeno, OURS, type Variant } from "./variants.ts";

/** How many connections. */
const CONNECTIONS = 5000;
/** How many there are, and have said something, before anything is measured. */
const EARLY = 200;
/** And how often they say it again to a server that is to be warm: then what it compiles and allocates once is there. */
const WARM_UP = 100;
/** A warm server has to bear so many times as many: its heap has room to begin with, and grows in steps. */
const WARM_FACTOR = 2;
/** How many connect at a time. */
const BATCH = 100;
/** How long memory gets to settle, in milliseconds. */
const SETTLE = 500;
/** And how long to rest: V8 tidies up when for half a minute there was nothing to do. */
const REST = 45_000;
/** What a connection may cost, in KiB. */
const LIMIT = 9;
/** The floor: no loop, and as small a buffer as ours. */
const SMALL: Variant = onDeno("Deno async/await, 512 B", "deno_async.ts", "512");
/** And the floor for whatever has our API. */
const LEAST_SMALL: Variant = onDeno("least loop, 512 B", "least_loop.ts", "512");
/** Those that are looked at again when they have rested. */
const RESTING: readonly string[] = [OURS, SMALL.name];
/** What is left of the difference when V8's new space cannot grow with what survives. */
const SMALL_SPACES: Variant[] = [onDeno(OURS, "yieldloop.ts"), SMALL, LEAST_SMALL].map(inSmallNewSpace);

const message = new Uint8Array(64).fill(65);

/** Has one message echoed. */
async function say(conn: Deno.Conn): Promise<void> {
  await conn.write(message);
  const got = new Uint8Array(message.length);
  for (let n = 0; n < got.length;) n += await conn.read(got.subarray(n)) ?? Infinity;
}

/** Opens `count` connections; each has one message echoed. */
async function speak(port: number, count: number): Promise<Deno.Conn[]> {
  const conns: Deno.Conn[] = [];
  while (conns.length < count) {
    const batch = await Promise.all(
      Array.from({ length: Math.min(BATCH, count - conns.length) }, async () => {
        const conn = await Deno.connect({ hostname: "127.0.0.1", port });
        await say(conn);
        return conn;
      }),
    );
    conns.push(...batch);
  }
  return conns;
}

const inWords = (n: number) => n.toLocaleString("en-US");
const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** KiB per idle connection, when memory has had each of `pauses` to settle. */
async function measure(variant: Variant, warmUp: number, connections: number, pauses: number[]): Promise<number[]> {
  const server = await Server.start(variant);
  const conns: Deno.Conn[] = [];
  try {
    conns.push(...await speak(server.port, EARLY));
    for (let i = 0; i < warmUp; i++) await Promise.all(conns.map(say));
    await wait(SETTLE);
    const before = server.memory;
    conns.push(...await speak(server.port, connections));
    const sizes: number[] = [];
    for (const pause of pauses) {
      await wait(pause);
      sizes.push((server.memory - before) / connections);
    }
    return sizes;
  } finally {
    for (const conn of conns) conn.close();
    await server.stop();
  }
}

/** KiB per idle connection, one figure a round. */
interface Sizes {
  started: number[];
  rested: number[];
  warm: number[];
}

/** Measures idle connections. */
export async function benchIdle(options: Options): Promise<Section> {
  const scratch = await Deno.makeTempDir();
  try {
    const skipped: string[] = [];
    const all = [
      ...options.quick ? fewVariants() : await allVariants(scratch, skipped),
      SMALL,
      LEAST_SMALL,
      ...SMALL_SPACES,
    ];
    const variants = pick(all, options.only, ({ name }) => name);
    const connections = options.quick ? CONNECTIONS / 5 : CONNECTIONS;
    const sizes = new Map<string, Sizes>(variants.map(({ name }) => [name, { started: [], rested: [], warm: [] }]));
    for (let round = 0; round < Math.min(options.rounds, 3); round++) {
      for (const variant of variants) {
        const pauses = RESTING.includes(variant.name) && !options.quick ? [SETTLE, REST] : [SETTLE];
        const [started, ...rested] = await measure(variant, 0, connections, pauses);
        const [warm] = await measure(variant, WARM_UP, connections * WARM_FACTOR, [SETTLE]);
        console.log(`${variant.name}: ${started.toFixed(1)} KiB per idle connection, ${warm.toFixed(1)} when warm`);
        const its = sizes.get(variant.name)!;
        its.started.push(started);
        its.rested.push(...rested);
        its.warm.push(warm);
      }
    }
    const of = (name: string, when: keyof Sizes) => median(sizes.get(name)?.[when] ?? []);
    const rows = variants.map(({ name }) => [
      name,
      of(name, "started"),
      of(name, "started") / of(BASE, "started"),
      of(name, "rested"),
      of(name, "warm"),
      of(name, "warm") / of(BASE, "warm"),
    ]);
    return {
      title: "Idle connections",
      body: [
        `Growth of resident memory per connection that has spoken once: of a server just started, at ` +
        `${inWords(connections)} of them, and again when it has rested for ${REST / 1000} s; of a warm one, at ` +
        `${inWords(connections * WARM_FACTOR)}.`,
        table(["server", "KiB, just started", "ratio", "KiB, rested", "KiB, warm", "ratio"], rows),
        ...skipList(skipped),
      ],
      targets: [
        {
          ...atMost("idle connection, server just started", LIMIT, of(OURS, "started"), " KiB"),
          floor: of(SMALL.name, "started"),
        },
        ...options.quick ? [] : [{
          ...atMost("idle connection, server just started, rested", LIMIT, of(OURS, "rested"), " KiB"),
          floor: of(SMALL.name, "rested"),
        }],
        { ...atMost("idle connection, server warm", LIMIT, of(OURS, "warm"), " KiB"), floor: of(SMALL.name, "warm") },
      ],
    };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}

if (import.meta.main) {
  const { body, targets } = await benchIdle(parseOptions(Deno.args));
  console.log(`\n${body.join("\n\n")}\n\n${targetTable(targets)}`);
}
