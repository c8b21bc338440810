/**
 * tests/bench/echo.ts: echo servers as whole processes under the same load.
 *
 * `deno run -A tests/bench/echo.ts [--quick] [--rounds=N] [--only=TEXT]`
 */
import { drive, type Load, type Seen } from "./load.ts";
import { type Options, parseOptions, pick } from "./options.ts";
import { Server } from "./server.ts";
import {
  atMost,
  figure,
  median,
  pairedRatio,
  type Section,
  skipList,
  table,
  type Target,
  targetTable,
} from "./table.ts";
import { allVariants, BASE, fewVariants, INTO, LEAST, LEAST_INTO, OURS, type Variant } from "./variants.ts";

/** A load, and who is measured under it. */
interface Scenario extends Load {
  name: string;
  /** Whether every server is measured, or only the few that matter most. */
  everybody: boolean;
}

/** What one run of one server under one load gave. */
interface Sample extends Seen {
  /** Processor time of the server per message, in microseconds. */
  cpu: number;
  user: number;
  system: number;
  /** In KiB. */
  peakMemory: number;
}

/** By name of the variant: its samples, one a round. */
type Samples = Map<string, Sample[]>;

/** How many pipelines of messages to measure, by the size of a message: about half a second of work each. */
const PIPELINES: Record<number, number> = { 64: 40_000, 1024: 40_000, 16384: 20_000, 102400: 8_000 };
/** By how many connections a server is warmed up with as many: until it has met each message often, it still compiles. */
const WARM_UP_CONNECTIONS = 50;

/** How many bytes are a large message: from here on it matters whether each read needs memory of its own. */
const LARGE = 16384;

/** So many connections that what it takes to accept them shows. */
const MANY = 500;

function scenario(size: number, connections: number, pipeline: number, everybody = false): Scenario {
  const messages = PIPELINES[size] * pipeline * (connections === 1 ? 0.25 : connections >= MANY ? 1.5 : 1);
  const bytes = size < 1024 ? `${size} B` : `${size / 1024} KiB`;
  const name = `${bytes}, ${connections} ${connections === 1 ? "connection" : "connections"}, pipeline ${pipeline}`;
  return { name, size, connections, pipeline, messages, everybody };
}

/**
 * Discussion: no pipeline for large messages. `redis-benchmark` reads no reply before it has written the whole pipeline,
 * and 16 times 100 KiB is more than the buffers between it and the server are sure to hold: both would wait for ever.
 */
function scenarios({ quick, only }: Options): Scenario[] {
  const all = quick
    ? [scenario(64, 50, 1), scenario(64, 1, 1), scenario(16384, 50, 1)].map((s) => ({
      ...s,
      messages: s.messages / (s.connections === 1 ? 5 : 3),
    }))
    : [
      ...[64, 1024].flatMap((size) =>
        [1, 50, 1000].flatMap((n) =>
          [1, 16].map((pipeline) => scenario(size, n, pipeline, size === 64 && n === 50 && pipeline === 1))
        )
      ),
      ...[16384, 102400].flatMap((size) => [1, 50, 1000].map((n) => scenario(size, n, 1, size === 16384 && n === 50))),
    ];
  return pick(all, only, ({ name }) => name);
}

/**
 * Discussion: the load opens its connections anew each time, and to accept a thousand of them costs a server as much as
 * some thousand messages. So where there are many, a load of one request each is measured too, and taken off.
 */
async function measure(variant: Variant, load: Scenario): Promise<Sample> {
  const server = await Server.start(variant);
  try {
    const short = load.connections * load.pipeline;
    const warmUp = PIPELINES[load.size] * load.pipeline;
    await drive(server.port, { ...load, connections: WARM_UP_CONNECTIONS, messages: warmUp });
    if (load.connections >= MANY) await drive(server.port, { ...load, messages: short });
    const before = server.cpu();
    if (load.connections >= MANY) await drive(server.port, { ...load, messages: short });
    const between = server.cpu();
    const seen = await drive(server.port, load);
    const after = server.cpu();
    const messages = load.messages - (load.connections >= MANY ? short : 0);
    const cpu = (after.total - between.total - (between.total - before.total)) / messages;
    const user = (after.user - between.user) / (after.user - between.user + after.system - between.system);
    return { ...seen, cpu, user: cpu * user, system: cpu * (1 - user), peakMemory: server.peakMemory };
  } finally {
    await server.stop();
  }
}

/** Measures every variant once a round, one after the other, so that what the machine does besides hits all alike. */
async function alternate(variants: Variant[], load: Scenario, rounds: number): Promise<Samples> {
  const samples: Samples = new Map(variants.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    const order = round % 2 === 0 ? variants : variants.toReversed();
    for (const variant of order) samples.get(variant.name)!.push(await measure(variant, load));
  }
  return samples;
}

/** The ratio of the processor time of `a` to that of `b`, pair by pair. */
function cpuRatio(samples: Samples | undefined, a: string, b: string): number | null {
  const [as, bs] = [samples?.get(a), samples?.get(b)];
  return as && bs ? pairedRatio(as.map((s) => s.cpu), bs.map((s) => s.cpu)) : null;
}

function scenarioTable(samples: Samples): string {
  const rows = [...samples].map(([name, all]) => {
    const middle = (pick: (sample: Sample) => number) => median(all.map(pick));
    return [
      name,
      cpuRatio(samples, name, BASE)!,
      middle((s) => s.cpu),
      middle((s) => s.user),
      middle((s) => s.system),
      middle((s) => s.rate),
      middle((s) => s.p50),
      middle((s) => s.p99),
      middle((s) => s.peakMemory) / 1024,
    ];
  });
  return table(
    ["server", "CPU ratio", "CPU µs/msg", "user", "system", "msg/s", "p50 ms", "p99 ms", "peak MiB"],
    rows,
  );
}

/** Starts each variant once and looks whether it echoes; who does not is left out. */
async function checked(variants: Variant[], skipped: string[]): Promise<Variant[]> {
  const good: Variant[] = [];
  for (const variant of variants) {
    try {
      const server = await Server.start(variant);
      await server.check(1 << 20).finally(() => server.stop());
      good.push(variant);
    } catch (error) {
      skipped.push(`${variant.name}: ${(error as Error).message}`);
      console.error(`Skipped ${skipped.at(-1)}`);
    }
  }
  return good;
}

/** Measures echo servers. */
export async function benchEcho(options: Options): Promise<Section> {
  const scratch = await Deno.makeTempDir();
  try {
    const skipped: string[] = [];
    const variants = await checked(options.quick ? fewVariants() : await allVariants(scratch, skipped), skipped);
    const body: string[] = [];
    const results = new Map<string, Samples>();
    for (const one of scenarios(options)) {
      const few = one.size < LARGE ? [OURS, BASE, LEAST] : [OURS, INTO, BASE, LEAST, LEAST_INTO];
      const who = one.everybody ? variants : variants.filter(({ name }) => few.includes(name));
      const samples = await alternate(who, one, options.rounds);
      results.set(one.name, samples);
      body.push(`### ${one.name}`, scenarioTable(samples));
      console.log(`\n${one.name}\n${scenarioTable(samples)}`);
    }
    return { title: "Echo servers", body: [...body, ...skipList(skipped)], targets: targets(results) };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}

function targets(results: Map<string, Samples>): Target[] {
  const list: Target[] = [];
  for (const [name, samples] of results) {
    const large = !/^(64 B|1 KiB)/.test(name);
    const limit = large ? 1.05 : 1;
    const floor = cpuRatio(samples, LEAST, BASE) ?? undefined;
    list.push({ ...atMost(`CPU per echo, ${name}`, limit, cpuRatio(samples, OURS, BASE)), floor });
    if (!large) continue;
    const into = atMost(`CPU per echo, ${name}, sockRecvInto`, limit, cpuRatio(samples, INTO, BASE));
    list.push({ ...into, floor: cpuRatio(samples, LEAST_INTO, BASE) ?? undefined });
  }
  const small = results.get("64 B, 50 connections, pipeline 1");
  for (const [peer, limit] of [["asyncio sock_*", 0.5], ["node:net on Node", 1], ["Go", 1], ["curio", 1]] as const) {
    if (small?.has(peer)) {
      const floor = cpuRatio(small, BASE, peer) ?? undefined;
      const what = `CPU per echo against ${peer}, 64 B, 50 connections`;
      list.push({ ...atMost(what, limit, cpuRatio(small, OURS, peer)), floor });
    }
  }
  const growth = growthFromFiftyToThousand(results);
  if (growth) list.push(growth);
  return list;
}

/** How much more an echo costs at 1,000 connections than at 50, ours against the idiomatic one. */
function growthFromFiftyToThousand(results: Map<string, Samples>): Target | null {
  const few = results.get("64 B, 50 connections, pipeline 1");
  const many = results.get("64 B, 1000 connections, pipeline 1");
  if (!few || !many) return null;
  const growth = (name: string) => median(many.get(name)!.map((s) => s.cpu)) / median(few.get(name)!.map((s) => s.cpu));
  return {
    what: "growth of CPU per echo from 50 to 1000 connections, 64 B",
    wanted: `≤ that of ${BASE}, ${figure(growth(BASE))}`,
    got: growth(OURS),
    floor: growth(LEAST),
    reaches: (figure) => figure <= growth(BASE),
  };
}

if (import.meta.main) {
  const { targets } = await benchEcho(parseOptions(Deno.args));
  console.log(`\n${targetTable(targets)}`);
}
