/**
 * structured_examples_test.ts: the examples of structured concurrency, started as their headers say.
 *
 * What they do one after the other is told from the order of their lines, never from how long they took.
 */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { needs } from "./permissions.ts";
import { Client, example, run, Server } from "./server_process.ts";

const RUN = needs({ run: true, read: true });
const SERVE = needs({ run: true, read: true, net: true });

/** Starts examples/graceful_shutdown.ts, with so many milliseconds to drain. */
function gracefulServer(drainMs = 60_000): Promise<Server> {
  return Server.start([example("graceful_shutdown")], {}, [String(drainMs)]);
}

Deno.test("examples/timeouts.ts cuts short what takes too long, cleanup first", RUN, async () => {
  const { code, out, err } = await run([example("timeouts"), "40"]);
  assertEquals([code, err], [0, ""]);
  assertEquals(out.trimEnd().split("\n"), [
    "hang up slow",
    "strict: Timed out after 40 ms",
    "hang up slower",
    "lenient: no answer, and on we go",
    "hang up first",
    "hang up third",
    "hang up second",
    "patient: first answered, second answered, third answered",
  ]);
});

Deno.test("examples/timeouts.ts says what is wrong with its argument", RUN, async () => {
  const { code, err } = await run([example("timeouts"), "soon"]);
  assertEquals(code, 1);
  assertStringIncludes(err, "RangeError");
  assertStringIncludes(err, "NaN");
});

Deno.test("examples/producer_consumer.ts passes every item once, in order, through a queue of three", RUN, async () => {
  const { code, out, err } = await run([example("producer_consumer"), "20"]);
  assertEquals([code, err], [0, ""]);
  const lines = out.trimEnd().split("\n");
  assertEquals(lines.pop(), "40 items went through");
  for (const producer of ["ann", "bob"]) {
    const numbers = (pattern: RegExp) => lines.flatMap((line) => pattern.exec(line)?.slice(1, 2).map(Number) ?? []);
    const all = Array.from({ length: 20 }, (_, i) => i + 1);
    assertEquals(numbers(new RegExp(`^${producer} made (\\d+),`)), all);
    assertEquals(numbers(new RegExp(`used (\\d+) of ${producer}$`)), all);
  }
  for (const line of lines) assert(Number(/(\d+) in the queue/.exec(line)?.[1] ?? 0) <= 3, line);
});

Deno.test("examples/graceful_shutdown.ts drains after the first SIGINT and ends with 0", SERVE, async () => {
  await using server = await gracefulServer();
  using client = await Client.connect(server.port);
  await client.say("hello");
  server.signal("SIGINT");
  await server.untilCount("draining", 1);
  await client.say("still served"); // With a turn of the server's behind it, the port is closed.
  await assertRejects(() => Deno.connect({ hostname: "127.0.0.1", port: server.port }), Deno.errors.ConnectionRefused);
  client.conn.close();
  assertEquals(await server.code, 0);
  await server.untilCount("connection closed", 1);
  assertEquals(server.out.slice(2), ["draining, connections: 1", "connection closed"]);
  assertEquals(server.err, "");
});

Deno.test("examples/graceful_shutdown.ts ends at once with 0 if there is nobody to wait for", SERVE, async () => {
  await using server = await gracefulServer();
  server.signal("SIGINT");
  assertEquals(await server.code, 0);
});

Deno.test("examples/graceful_shutdown.ts ends with 1 when the time to drain is up", SERVE, async () => {
  await using server = await gracefulServer(20);
  using client = await Client.connect(server.port);
  await client.say("hello");
  server.signal("SIGINT");
  assertEquals(await server.code, 1);
  assertEquals(await client.read(new Uint8Array(1)), false);
  assertEquals(server.err, "");
});

Deno.test("examples/graceful_shutdown.ts ends at once with 130 at the second SIGINT", SERVE, async () => {
  await using server = await gracefulServer();
  using client = await Client.connect(server.port);
  await client.say("hello");
  server.signal("SIGINT");
  await server.untilCount("draining", 1);
  server.signal("SIGINT");
  assertEquals(await server.code, 130);
  assertEquals(server.err, "");
});

Deno.test("examples/port_scan.ts finds the ports that are open", SERVE, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const port = listener.addr.port;
  const [first, last] = [Math.max(port - 150, 1), Math.min(port + 150, 65535)];
  const { code, out, err } = await run(["--allow-net", example("port_scan"), String(first), String(last)]);
  assertEquals([code, err], [0, ""]);
  const lines = out.trimEnd().split("\n");
  assert(lines.includes(`${port} is open`), out);
  assertEquals(lines.at(-1), `127.0.0.1: ${lines.length - 1} of ${last - first + 1} ports open`);
});

Deno.test("examples/port_scan.ts says what is wrong with a range, and with a permission", SERVE, async () => {
  const [empty, denied] = await Promise.all([
    run(["--allow-net", example("port_scan"), "9", "1"]),
    run([example("port_scan"), "1", "1"]),
  ]);
  assertEquals([empty.code, empty.out], [2, ""]);
  assertStringIncludes(empty.err, "Usage: port_scan.ts");
  assertEquals([denied.code, denied.out], [1, ""]);
  assertStringIncludes(denied.err, "Requires net access");
});
