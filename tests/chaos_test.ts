/**
 * A hostile hour in seconds: ten times five hundred clients at once, over TCP and over TLS, who do all that
 * `hostile.ts` knows, against `serve` in a process of its own.
 *
 * Every byte that comes back is the right one, and each time that they have left nothing is left of them: no task, no
 * socket, no memory; what the server holds after the last tenth is what it held after the first. In the end those who
 * will not go are cancelled.
 */

import { assert, assertEquals } from "@std/assert";
import { Crowd, doorTo } from "./hostile.ts";
import { type Report, report, startMeasured } from "./measured_server.ts";
import { needs } from "./permissions.ts";
import type { Server } from "./server_process.ts";
import { random } from "./world.ts";

const SEED = 20160217;
const TENTHS = 10;
/** How many clients are there at once. */
const CLIENTS = 500;
/** By how much the memory may differ, in bytes: 256 bytes for each of the clients in between would be more. */
const NOISE_MAX = 1024 * 1024;

/** How often the server is asked before the test has failed: for about twenty seconds. */
const ASKS_MAX = 2000;

/** The errors that such clients cause, and the one that is not up to chance. */
const ERRORS = {
  tcp: { allowed: ["ConnectionReset", "BrokenPipe"], sure: "ConnectionReset" },
  tls: { allowed: ["ConnectionReset", "BrokenPipe", "InvalidData", "UnexpectedEof"], sure: "InvalidData" },
};

for (const transport of ["tcp", "tls"] as const) {
  Deno.test(
    `N11 N12 N13 N15 ten times five hundred hostile clients at once leave nothing behind (${transport})`,
    needs({ net: true, run: true, read: true, write: true }),
    async () => {
      await using server = await startMeasured(transport);
      const door = await doorTo(server.port, transport);
      const next = random(SEED);
      const idle = await report(server);
      const files = server.openFiles();
      const memory: number[] = [];
      for (let i = 0; i < TENTHS; i++) {
        using crowd = await Crowd.gather(door, CLIENTS, next);
        await untilTasks(server, idle.tasks + CLIENTS);
        await crowd.behave();
        await untilTasks(server, idle.tasks + crowd.staying);
        await crowd.leave();
        await untilTasks(server, idle.tasks);
        memory.push(await memoryOf(server));
      }
      const growth = memory[TENTHS - 1] - memory[0];
      assert(growth < NOISE_MAX, `${growth} bytes are left behind: ${memory}`);
      await untilClosed(server, files);

      using last = await Crowd.gather(door, CLIENTS, next);
      await last.behave();
      await untilTasks(server, idle.tasks + last.staying);
      server.signal("SIGTERM");
      await server.untilCount("ended with 0 tasks", 1);
      await last.leave();
      assertEquals(await server.code, 0);
      assertEquals(server.err, "");
      const errors = server.out.filter((line) => line.startsWith("error ")).map((line) => line.slice("error ".length));
      const { allowed, sure } = ERRORS[transport];
      assertEquals([...new Set(errors)].filter((name) => !allowed.includes(name)), []);
      assert(errors.includes(sure), "nobody was rude");
    },
  );
}

/** Waits until the server has so many tasks, no more and no less. */
async function untilTasks(server: Server, tasks: number): Promise<void> {
  let last: Report | undefined;
  for (let i = 0; i < ASKS_MAX; i++) {
    last = await report(server);
    if (last.tasks === tasks) return;
  }
  throw new Error(`The server does not come to have ${tasks} tasks: ${JSON.stringify(last)}`);
}

/** What the server holds. Freed buffers are swept beside the program, so the first figure may be too high. */
async function memoryOf(server: Server): Promise<number> {
  let least = Infinity;
  for (let i = 0; i < 3; i++) least = Math.min(least, (await report(server)).memory);
  return least;
}

/** The platform opens one or two files of its own. */
async function untilClosed(server: Server, before: number | null): Promise<void> {
  for (let i = 0; i < ASKS_MAX; i++) {
    if (before === null || server.openFiles()! <= before + 2) return;
    await report(server);
  }
  throw new Error(`${server.openFiles()} files are open, and there were ${before}`);
}
