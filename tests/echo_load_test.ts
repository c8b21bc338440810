/**
 * Many clients, and rude ones, against `examples/echo.ts` in a process of its own.
 *
 * The server's memory is what its heap and its buffers hold after a collection: a module loaded before the example
 * collects and prints it on a signal. Its open files are counted in `/proc`, where there is one.
 */

import { assert, assertEquals } from "@std/assert";
import { needs } from "./permissions.ts";
import { Client, example, noise, resetWhileOpen, Server } from "./server_process.ts";

const CLIENTS = 1000;
const MESSAGES = 20;
const LARGEST = 65536;
const MEGABYTE = 1024 * 1024;
/** By how much a server's memory may have grown when its clients have left, or do not read: in bytes. */
const MOST_KEPT = 4 * MEGABYTE;

const WANTED = { net: true, run: true, read: true } as const;

Deno.test(
  "N1 1,000 clients at once, 20 messages of 1 B to 64 KiB each, come and go byte-exact",
  needs(WANTED),
  async () => {
    await using server = await startMeasured();
    await load(server, 100); // The first round makes what stays: compiled code, pooled buffers.
    const memory = await memoryOf(server);
    const files = server.openFiles();
    await load(server, CLIENTS);
    const growth = await growthOf(server, memory);
    assertNoneLeftOpen(server, files);
    assertEquals(server.count("connect from"), 100 + CLIENTS);
    assertEquals(server.count("connection closed"), 100 + CLIENTS);
    assertEquals(server.err, "");
    assert(growth < MOST_KEPT, `${growth} bytes are left behind`);
  },
);

Deno.test("N6 N7 rude clients lose nothing of their own, and the others do not notice", needs(WANTED), async () => {
  await using server = await startMeasured();
  await load(server, 20);
  const memory = await memoryOf(server);
  const files = server.openFiles();

  const floods = await Promise.all(Array.from({ length: 5 }, () => Client.connect(server.port)));
  const flooding = floods.map((client) => flood(client, 64 * MEGABYTE));
  await Promise.all([
    ...Array.from({ length: 10 }, () => resetWhileOpen(server.port)),
    ...Array.from({ length: 5 }, () => byteByByte(server.port, 500)),
    ...Array.from({ length: 3 }, () => halfClose(server.port, 5 * MEGABYTE)),
    ...Array.from({ length: 20 }, (_, i) => talkAlone(server.port, i)),
  ]);

  const held = await growthOf(server, memory);
  assert(held < MOST_KEPT, `${held} bytes are held for five clients that do not read`);
  for (const client of floods) client.conn.close();
  for (const sent of await Promise.all(flooding)) {
    assert(sent < 64 * MEGABYTE, "the server took everything from a client that does not read");
  }
  await server.until("the end of every connection", () => {
    const failed = server.err.split("Error in task ").length - 1;
    return server.count("connection closed") + failed === server.count("connect from");
  });
  const left = await growthOf(server, memory);
  assertNoneLeftOpen(server, files);
  assert(left < MOST_KEPT, `${left} bytes are left behind`);
  await talkAlone(server.port, 0);
});

// ---- The server ------------------------------------------------------------------------------------------------------

/** The second collection is for what the first has only unlinked: buffers are given back a turn later. */
const REPORT = `Deno.addSignalListener("SIGUSR2", async () => {
  for (let i = 0; i < 2; i++) {
    gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { heapUsed, external } = Deno.memoryUsage();
  console.log("memory", heapUsed + external);
});`;

function startMeasured(): Promise<Server> {
  const preload = `data:text/javascript,${encodeURIComponent(REPORT)}`;
  return Server.start(["--v8-flags=--expose-gc", "--preload", preload, example("echo")]);
}

/** What the server's heap and buffers hold, in bytes. */
async function memoryOf(server: Server): Promise<number> {
  const reports = server.count("memory ");
  server.signal("SIGUSR2");
  await server.untilCount("memory ", reports + 1);
  return Number(server.out.findLast((line) => line.startsWith("memory "))!.slice(7));
}

/** By how much it has grown. Freed buffers are swept beside the program, so too high a figure is asked for again. */
async function growthOf(server: Server, before: number): Promise<number> {
  let growth = await memoryOf(server) - before;
  for (let i = 0; i < 20 && growth >= MOST_KEPT; i++) growth = await memoryOf(server) - before;
  return growth;
}

/** The platform opens and closes one or two of its own; every kind of client here would leave more than that. */
function assertNoneLeftOpen(server: Server, before: number | null): void {
  const now = server.openFiles();
  assert(now === null || now <= before! + 2, `${now} files are open, and there were ${before}`);
}

// ---- Polite clients --------------------------------------------------------------------------------------------------

/** So many clients connect, all say something, and only then talk on. Returns when the server has closed them all. */
async function load(server: Server, clients: number): Promise<void> {
  const closed = server.count("connection closed");
  const all = await Promise.all(Array.from({ length: clients }, () => Client.connect(server.port)));
  try {
    await Promise.all(all.map((client) => client.say("hello")));
    await Promise.all(all.map((client, i) => talk(client, i)));
  } finally {
    for (const client of all) client[Symbol.dispose]();
  }
  await server.untilCount("connection closed", closed + clients);
}

/** Sends the messages of the `i`th client, each when the one before it has come back. */
async function talk(client: Client, i: number): Promise<void> {
  const buffer = new Uint8Array(16384);
  for (let k = 0; k < MESSAGES; k++) {
    const from = (i * 131 + k * 7919) % (noise.length - LARGEST);
    await client.send(noise.subarray(from, from + sizeOf(i, k)));
    await client.settle(buffer);
  }
}

async function talkAlone(port: number, i: number): Promise<void> {
  using client = await Client.connect(port);
  await talk(client, i);
}

/** From 1 to 65536 bytes: both ends for everybody, and between them as many small ones as large ones in each octave. */
function sizeOf(i: number, k: number): number {
  if (k === 0) return 1;
  if (k === MESSAGES - 1) return LARGEST;
  const fraction = (Math.imul(i * MESSAGES + k + 1, 2654435761) >>> 0) / 2 ** 32;
  return Math.floor(LARGEST ** fraction);
}

// ---- Rude clients ----------------------------------------------------------------------------------------------------

/** Sends up to `most` bytes and reads nothing, until it is closed; returns how many were taken. */
async function flood(client: Client, most: number): Promise<number> {
  let sent = 0;
  try {
    while (sent < most) sent += await client.conn.write(noise);
  } catch (error) {
    assert(error instanceof Error && !(error instanceof TypeError), String(error));
  }
  return sent;
}

/** Sends one byte, waits until it has come back, sends the next. */
async function byteByByte(port: number, bytes: number): Promise<void> {
  using client = await Client.connect(port);
  const buffer = new Uint8Array(64);
  for (let i = 0; i < bytes; i++) {
    await client.send(noise.subarray(i, i + 1));
    await client.settle(buffer);
  }
}

/** Ends its side after so many bytes, and still wants them all back. */
async function halfClose(port: number, bytes: number): Promise<void> {
  using client = await Client.connect(port);
  const much = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += noise.length) much.set(noise.subarray(0, bytes - at), at);
  await client.exchange(much);
}
