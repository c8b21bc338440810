/**
 * `examples/echo_cluster.ts`: many loops on one port, which start together and end together.
 *
 * Which worker gets a connection is for the system to decide, by the client's address. So the tests connect often
 * enough for each of them to have one, and say nothing about shares.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { needs } from "./permissions.ts";
import { Client, example, noise, run, sendSource, Server } from "./server_process.ts";

const WANTED = { net: true, run: true, read: true } as const;
const CLUSTER = ["--unstable-net", "--allow-read", example("echo_cluster")];
const WORKERS = 2;
/** With so many clients and two workers, one of them goes without a client once in 2^39 runs. */
const CLIENTS = 40;

Deno.test("N12 the workers of echo_cluster.ts share one port, and all of them serve", needs(WANTED), async () => {
  await using server = await start();
  using clients = await crowd(server);
  await Promise.all(clients.all.map((client, i) => client.exchange(noise.subarray(i, i + 50_000))));
  await server.untilCount("connection closed", CLIENTS);
  assertEquals(server.count("listening on"), 1);
  assertEquals(workersOf(server), ["1", "2"]);
  assertEquals(server.err, "");
});

for (const name of ["SIGINT", "SIGTERM"] as const) {
  Deno.test(
    `N12 one ${name} drains every worker: nobody new, and each client gets all of its answers`,
    needs(WANTED),
    async () => {
      await using server = await start();
      using clients = await crowd(server);
      server.signal(name);
      await server.untilCount("draining", 1);
      await untilRefused(server.port);
      await Promise.all(clients.all.map((client, i) => client.exchange(noise.subarray(i, i + 50_000))));
      assertEquals(await server.code, 0);
      await server.untilCount("connection closed", CLIENTS);
      assertEquals(server.err, "");
    },
  );
}

Deno.test("a second Ctrl-C ends every worker of echo_cluster.ts at once", needs(WANTED), async () => {
  await using server = await start();
  using clients = await crowd(server);
  server.signal("SIGINT");
  await server.untilCount("draining", 1);
  // The listener of the first is taken off a moment after that: until then another one is ignored.
  const ended = server.code;
  let code: number | null = null;
  ended.then((it) => code = it);
  for (let tries = 0; code === null; tries++) {
    assert(tries < 2000, "The workers do not end");
    try {
      server.signal("SIGINT");
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // It has ended already.
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assertEquals(code, 130);
  assertEquals(clients.all.length, CLIENTS);
});

Deno.test("echo_cluster.ts ends with 1, and says why, if its workers cannot listen", needs(WANTED), async () => {
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const [inUse, outOfRange, stable, denied] = await Promise.all([
    run(["--allow-net", ...CLUSTER, String(taken.addr.port)]),
    run(["--allow-net", ...CLUSTER, "70000"]),
    run(["--allow-net", "--allow-read", example("echo_cluster")]),
    run(["--unstable-net", "--allow-read", example("echo_cluster")]),
  ]);
  assertStringIncludes(inUse.err, "AddrInUse");
  assertStringIncludes(outOfRange.err, "70000");
  assertStringIncludes(stable.err, "--unstable-net");
  assertStringIncludes(denied.err, "--allow-net");
  for (const { code, out } of [inUse, outOfRange, stable, denied]) {
    assertEquals(code, 1);
    assertEquals(out, "");
  }
});

Deno.test("echo_cluster.ts runs by URL", needs({ ...WANTED, write: true }), async () => {
  await using site = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, sendSource);
  const cache = await Deno.makeTempDir();
  try {
    const host = `127.0.0.1:${site.addr.port}`;
    const args = ["--no-config", "--unstable-net", `http://${host}/examples/echo_cluster.ts`];
    await using server = await Server.start(args, { DENO_DIR: cache }, [String(WORKERS)]);
    using client = await Client.connect(server.port);
    await client.say("hello");
  } finally {
    await Deno.remove(cache, { recursive: true });
  }
});

function start(): Promise<Server> {
  return Server.start(CLUSTER, {}, [String(WORKERS)]);
}

/** Clients who have all been answered once, so that each is served by now, and every worker has some of them. */
async function crowd(server: Server): Promise<Disposable & { all: Client[] }> {
  const all = await Promise.all(Array.from({ length: CLIENTS }, () => Client.connect(server.port)));
  await Promise.all(all.map((client) => client.say("hello")));
  await server.untilCount("connect from", CLIENTS);
  assertEquals(workersOf(server), ["1", "2"]);
  return {
    all,
    [Symbol.dispose]() {
      for (const client of all) client[Symbol.dispose]();
    },
  };
}

function workersOf(server: Server): string[] {
  const lines = server.out.filter((line) => line.startsWith("connect from"));
  return [...new Set(lines.map((line) => line.split("in worker ")[1]))].sort();
}

/** Connects until that is refused: each worker stops to listen in its own time. */
async function untilRefused(port: number): Promise<void> {
  for (let i = 0; i < 10_000; i++) {
    try {
      (await Deno.connect({ hostname: "127.0.0.1", port })).close();
    } catch (error) {
      if (error instanceof Deno.errors.ConnectionRefused) return;
      // Who was not accepted before a worker stopped is reset: in the middle of `connect`, or behind it.
      const reset = error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.NotConnected;
      assert(reset, String(error));
    }
  }
  throw new Error("The workers go on accepting");
}
