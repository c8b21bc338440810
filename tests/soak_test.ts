/**
 * A soak: many short connections, one after the other, leave a server as it was. Who is not as polite as these comes in
 * `chaos_test.ts`.
 */

import { assert, assertEquals, assertLess } from "@std/assert";
import { needs } from "./permissions.ts";
import { Client, example, Server } from "./server_process.ts";

/** How many connections are opened; `YIELDLOOP_SOAK=1000000` makes it the long one. */
const SOAK = Number(variable("YIELDLOOP_SOAK") ?? 20_000);

/** A variable of the environment, where that may be read. */
function variable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}

Deno.test(
  `K13 N12 ${SOAK} connections leave the memory of a server as it was`,
  needs({ net: true, run: true, read: true }),
  async () => {
    // V8 lets its nursery grow under load, which is no growth of ours: it is kept small.
    await using server = await Server.start(["--v8-flags=--max-semi-space-size=1", example("echo_stream")]);
    const tenth = SOAK / 10;
    await short(server.port, tenth);
    await server.untilCount("connection closed", tenth);
    const filesBefore = await openFiles(server);
    const first = residentKib(server.pid);
    await short(server.port, SOAK - tenth);
    const last = residentKib(server.pid);
    if (first !== null && last !== null) assertLess(last, first * 1.25 + 8192);
    await server.untilCount("connection closed", SOAK + 1); // One came to count the files.
    const files = await openFiles(server);
    assert(files <= filesBefore + 2, `${files} files are open, and there were ${filesBefore}`);
    assertEquals(server.err, "");
  },
);

/** So many connections, twenty at a time; each says a word and hears it. */
async function short(port: number, count: number): Promise<void> {
  let left = count;
  await Promise.all(Array.from({ length: 20 }, async () => {
    const buffer = new Uint8Array(64);
    while (left-- > 0) {
      using client = await Client.connect(port);
      await client.send(HELLO);
      await client.settle(buffer);
    }
  }));
}

const HELLO = new TextEncoder().encode("hello");

/** A socket is closed after its end was printed, but before a client who comes later is answered. */
async function openFiles(server: Server): Promise<number> {
  using client = await Client.connect(server.port);
  await client.say("hello");
  return server.openFiles() ?? 0;
}

/** What a process holds in memory, in KiB; null where `/proc` does not tell. */
function residentKib(pid: number): number | null {
  if (Deno.build.os !== "linux") return null;
  const resident = /^VmRSS:\s+(\d+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`));
  return resident && Number(resident[1]);
}
