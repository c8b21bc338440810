/**
 * What the package promises: the names in `mod.ts`, the entry points in `deno.json`, and which room may know which.
 * A name added or dropped here is a change users see, and belongs into the changelog.
 */
import { assertEquals, assertThrows } from "@std/assert";
import * as mod from "../mod.ts";
import { needs } from "./permissions.ts";

const ROOT = new URL("..", import.meta.url);

const VALUES = `
  BusyError CancelScope Cancelled ClosedError Condition DatagramSocket DeadlockError DefaultSelector EVENT_READ
  EVENT_WRITE Event IncompleteReadError LifoQueue LimitError Listener Lock Loop ParkingLot Pollable PriorityQueue
  Queue Semaphore SignalQueue Socket Stream Task TaskError TaskGroup TaskLocal TimeoutError WorkerPool WouldBlock all
  call cancelScope checkpoint connect connectTls currentTask datagram failAfter listen listenTls moveOnAfter park race
  readWait runInWorker runningLoop serve shield signal sleep socketPair startTls taskGroup until writeWait
`;

const TYPES = `
  Addr CancelScopeOptions Clock ConnectOptions ConnectTlsOptions Connection ConnectionListener Coroutine
  DatagramConnection DatagramLike DatagramOptions Deque ListenOptions ListenTlsOptions ListenerLike LoopOptions
  Network Op OpHandler QueueItems Results Selectable Selector SelectorKey SemaphoreOptions ServeListener ServeOptions
  ShieldOptions SocketLike StartTlsOptions StreamOptions StreamSocket TaskOptions TlsHandshakeInfo TraceEvent
  WorkerPoolOptions WorkerRunOptions
`;

/** What a root module may import. */
const LAYERS: Record<string, string[]> = {
  "loop.ts": [],
  "scope.ts": ["loop.ts"],
  "sync.ts": ["loop.ts", "scope.ts"],
  "stream.ts": ["loop.ts", "scope.ts"],
  "net.ts": ["loop.ts"],
  "process.ts": ["loop.ts", "scope.ts", "sync.ts", "node:worker_threads"],
};

function words(text: string): string[] {
  return text.split(/\s+/).filter((word) => word).sort();
}

function read(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT));
}

function modulesIn(folder: string): string[] {
  const entries = [...Deno.readDirSync(new URL(folder, ROOT))];
  return entries.filter((entry) => entry.isFile && entry.name.endsWith(".ts")).map((entry) => folder + entry.name);
}

Deno.test("mod.ts exports these names", () => {
  assertEquals(Object.keys(mod).sort(), words(VALUES));
});

/** A server on this package, as far as "listening", and which lazy globals it has asked Deno for by then. */
const STARTS = `
  const touched = [];
  for (const [name, { get }] of Object.entries(Object.getOwnPropertyDescriptors(globalThis))) {
    if (!["Buffer", "clearImmediate", "global", "process", "setImmediate"].includes(name)) continue;
    Object.defineProperty(globalThis, name, { get: () => (touched.push(name), get.call(globalThis)) });
  }
  const { checkpoint, listen, Loop } = await import(Deno.args[0]);
  const loop = new Loop();
  await loop.run((function* () {
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    console.log("listening", touched);
    yield* checkpoint();
  })());`;

Deno.test(
  "a server starts without what Deno has for Node, which takes it long to load",
  needs({ run: true }),
  async () => {
    const args = ["eval", STARTS, new URL("mod.ts", ROOT).href];
    const { stdout } = await new Deno.Command(Deno.execPath(), { args, env: { NO_COLOR: "1" } }).output();
    assertEquals(new TextDecoder().decode(stdout), "listening []\n");
  },
);

Deno.test("mod.ts exports these types", needs({ read: true, run: true }), async () => {
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["doc", "--json", "mod.ts"], cwd: ROOT }).output();
  const doc = JSON.parse(new TextDecoder().decode(stdout));
  const symbols: { name: string }[] = (Object.values(doc.nodes) as any[])[0].symbols;
  assertEquals(symbols.map(({ name }) => name).filter((name) => !(name in mod)).sort(), words(TYPES));
});

Deno.test("the docs show nothing that is for the modules here only", needs({ read: true, run: true }), async () => {
  const args = ["doc", "mod.ts", "loop.ts"];
  const { stdout } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT, env: { NO_COLOR: "1" } }).output();
  const shown = new TextDecoder().decode(stdout).match(/^( +.*?\b_[a-z]\w*[(:]|function (check[A-Z]|hush|kind)).*/gm);
  assertEquals(shown, null);
});

Deno.test("every root module and every example is an entry point of the package", needs({ read: true }), () => {
  const expected = Object.fromEntries(
    [...modulesIn("./"), ...modulesIn("./examples/")].map((path) => [path.slice(0, -".ts".length), path]),
  );
  delete expected["./mod"];
  assertEquals(JSON.parse(read("deno.json")).exports, { ".": "./mod.ts", ...expected });
});

Deno.test("the offline import map leads where deno.json does", needs({ read: true }), () => {
  const { name, exports } = JSON.parse(read("deno.json"));
  const { imports } = JSON.parse(read("tests/offline/import_map.json"));
  for (const [entry, path] of Object.entries<string>(exports)) {
    assertEquals([entry, imports[name + entry.slice(1)]], [entry, `../../${path.slice(2)}`]);
  }
});

Deno.test("a room imports only the rooms below it, and nothing from elsewhere", needs({ read: true }), () => {
  const allowed = (path: string) => LAYERS[path] ?? modulesIn("./").map((other) => other.slice(2));
  for (const path of modulesIn("./").map((path) => path.slice(2))) {
    const specifiers = read(path).matchAll(/^(?:import|export|\}) .*?from "(.*)";$/gm);
    const foreign = [...specifiers].map(([, specifier]) => specifier.replace(/^\.\//, ""))
      .filter((specifier) => !allowed(path).includes(specifier));
    assertEquals([path, foreign], [path, []]);
  }
});

Deno.test("an example is one file over mod.ts, so that it runs by URL", needs({ read: true }), () => {
  for (const path of modulesIn("./examples/")) {
    const specifiers = [...read(path).matchAll(/^(?:import|export|\}) .*?from "(.*)";$/gm)].map(([, name]) => name);
    const foreign = specifiers.filter((name) => name !== "../mod.ts" && !name.startsWith("npm:"));
    assertEquals([path, foreign], [path, []]);
  }
});

Deno.test("an option that is undefined is one that was left out, by type too", async () => {
  // With `exactOptionalPropertyTypes`, which deno.json turns on, this says something about the types as well.
  const none = undefined;
  const loop = new mod.Loop({ clock: none, network: none, onError: none, selector: none, trace: none });
  assertEquals(await loop.run(main(), { signal: none }), "done");

  function* main(): mod.Coroutine<string> {
    loop.createTask(mod.checkpoint(), { name: none, scope: none });
    yield* mod.cancelScope(() => mod.checkpoint(), { deadline: none, shield: none, timeout: none });
    yield* mod.shield(mod.checkpoint(), { timeout: none });
    yield* mod.taskGroup(function* (group) {
      group.createTask(mod.checkpoint(), { name: none });
    });
    new mod.Semaphore(1, { max: none });
    const [sock] = mod.socketPair();
    using _stream = new mod.Stream(sock, { limit: none });
    const options: mod.ListenOptions = { port: 0, hostname: none, transport: none, reusePort: none };
    assertThrows(() => mod.listen({ ...options, port: -1 }), RangeError);
    assertThrows(() => mod.connect({ port: -1, hostname: none, transport: none, signal: none }).next(), RangeError);
    using _pool = new mod.WorkerPool(1, { onError: none });
    return "done";
  }
});
