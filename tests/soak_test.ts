/**
 * Rude clients of a TLS server, round after round: some go away in the middle of the handshake, or never begin it, some
 * speak no TLS, some break off later, and some are polite. After each round nothing may be left of it, and the memory
 * after the last is what it was after the first.
 *
 * A seed decides who does what. The same without TLS, and many more connections, are in `chaos_test.ts`.
 */

import { assert, assertEquals } from "@std/assert";
import { connect as nodeConnect } from "node:net";
import { report, startMeasured } from "./measured_server.ts";
import { tls } from "./net_transports.ts";
import { needs } from "./permissions.ts";
import { noise, type Server } from "./server_process.ts";

const SEED = 19990101;
const ROUNDS = 10;
const CLIENTS = 50;
/** By how much the memory may differ, in bytes: 4 KiB for each of the clients in between would be more. */
const NOISE_MAX = 1024 * 1024;

Deno.test(
  "N11 N12 N15 rude clients of a TLS server leave nothing behind, round after round",
  needs({ net: true, run: true, read: true, write: true }),
  async () => {
    const hello = await clientHello();
    await using server = await startMeasured("tls");
    const idle = await report(server);
    const files = server.openFiles();
    const memory: number[] = [];
    const next = random(SEED);
    for (let i = 0; i < ROUNDS; i++) {
      await Promise.all(Array.from({ length: CLIENTS }, () => visit(server.port, hello, random(next(2 ** 31)))));
      memory.push(await memoryWhenAllHaveLeft(server, idle.tasks));
    }
    const growth = memory[ROUNDS - 1] - memory[0];
    assert(growth < NOISE_MAX, `${growth} bytes are left behind: ${memory}`);
    await untilClosed(server, files);
    const errors = new Set(server.out.filter((line) => line.startsWith("error ")));
    for (const error of errors) assert(/ (ConnectionReset|BrokenPipe|InvalidData|UnexpectedEof)$/.test(error), error);
    assert(errors.has("error InvalidData"), "nobody was rude");
    server.signal("SIGTERM");
    assertEquals(await server.code, 0);
    assertEquals(server.err, "");
  },
);

// ---- The server ----------------------------------------------------------------------------------------------------

async function memoryWhenAllHaveLeft(server: Server, idleTasks: number): Promise<number> {
  for (let i = 0; i < 200; i++) {
    const { tasks, memory } = await report(server);
    if (tasks === idleTasks) return memory;
  }
  throw new Error("The server goes on with clients who have left");
}

/** The platform opens one or two files of its own. */
async function untilClosed(server: Server, before: number | null): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if (before === null || server.openFiles()! <= before + 2) return;
    await report(server);
  }
  throw new Error(`${server.openFiles()} files are open, and there were ${before}`);
}

// ---- The clients ---------------------------------------------------------------------------------------------------

/** A number from 0 up to, not with, `n`. */
type Next = (n: number) => number;

function random(seed: number): Next {
  let state = seed;
  return (n) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
}

/** What one client does: half of them get through the handshake. */
async function visit(port: number, hello: Uint8Array, next: Next): Promise<void> {
  const behaviour = next(8);
  if (behaviour >= 4) return await breakOff(port, hello, behaviour, next);
  using conn = await Deno.connectTls({ hostname: "127.0.0.1", port, caCerts: [tls.ca] });
  const bytes = noise.subarray(0, 1 + next(50_000));
  if (behaviour === 0) {
    await send(conn, bytes); // It leaves with the answer unread.
  } else if (behaviour === 1) {
    for (let i = 0; i < 10; i++) await exchange(conn, bytes.subarray(i, i + 1));
  } else if (behaviour === 2) {
    await exchange(conn, bytes);
    await conn.closeWrite();
    assertEquals(await conn.read(new Uint8Array(1)), null);
  } else {
    for (let i = 0; i < 3; i++) await exchange(conn, bytes);
  }
}

/** Does not get that far. */
async function breakOff(port: number, hello: Uint8Array, behaviour: number, next: Next): Promise<void> {
  const begun = hello.subarray(0, [0, 1, 70, 200][next(4)]);
  if (behaviour === 4) return await reset(port, begun);
  using conn = await Deno.connect({ hostname: "127.0.0.1", port });
  if (behaviour === 5) return await send(conn, begun);
  await send(conn, behaviour === 6 ? hello : noise.subarray(0, 1000));
  await readToTheEnd(conn, behaviour === 6 ? 1 : Infinity); // It hears the server's part, and leaves.
}

async function send(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let sent = 0; sent < bytes.length;) sent += await conn.write(bytes.subarray(sent));
}

/** Sends, and checks what comes back. */
async function exchange(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  const sending = send(conn, bytes);
  const buffer = new Uint8Array(16384);
  for (let got = 0; got < bytes.length;) {
    const n = await conn.read(buffer.subarray(0, Math.min(buffer.length, bytes.length - got)));
    assert(n !== null, "the server ended first");
    assertEquals(buffer.subarray(0, n), bytes.subarray(got, got + n));
    got += n;
  }
  await sending;
}

/** Reads at most so many times, or to the end. */
async function readToTheEnd(conn: Deno.Conn, times: number): Promise<void> {
  try {
    for (let i = 0; i < times; i++) if (await conn.read(new Uint8Array(4096)) === null) return;
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
  }
}

function reset(port: number, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    const socket = nodeConnect(port, "127.0.0.1", () => socket.write(bytes, () => socket.resetAndDestroy()));
    socket.on("error", () => {}).on("close", () => resolve());
  });
}

/** What a client says first. */
async function clientHello(): Promise<Uint8Array> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const connecting = Deno.connectTls({ hostname: "127.0.0.1", port: listener.addr.port }).then((conn) => {
    using _ = conn;
    return conn.handshake();
  });
  connecting.catch(() => {});
  const buffer = new Uint8Array(4096);
  const conn = await listener.accept();
  const n = await conn.read(buffer);
  conn.close();
  await connecting.catch(() => {});
  return buffer.subarray(0, n!);
}
