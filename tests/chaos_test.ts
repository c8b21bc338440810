/**
 * A hostile hour in seconds: five hundred clients at once that reset, stall, half-close, trickle, leave in the middle, or
 * flood without reading, in an order that a seed decides; and a soak of many short connections. Whatever they do, every
 * byte that comes back is the right one, and in the end nothing is left: no socket, no task, no memory.
 */

import { assert, assertEquals, assertLess } from "@std/assert";
import { connect as nodeConnect } from "node:net";
import { type Coroutine, listen, Loop, serve, type Socket, Stream } from "../mod.ts";
import { needs } from "./permissions.ts";
import { Client, example, Server } from "./server_process.ts";

const SEED = 20160217;
const CLIENTS = 500;
/** How many connections the soak opens; `YIELDLOOP_SOAK=1000000` makes it the long one. */
const SOAK = Number(variable("YIELDLOOP_SOAK") ?? 20_000);

/** A variable of the environment, where that may be read. */
function variable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}

/** Numbers from 0 up to, not with, `n`; the same ones for the same seed. */
function random(seed: number): (n: number) => number {
  let state = seed >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
}

/** What a client says: byte `i` of it is known, so that each byte that comes back can be judged. */
function pattern(client: number, from: number, length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).map((_, i) => (client * 31 + (from + i) * 7 + ((from + i) >> 8)) & 255);
}

/** One client of the echo, which compares what it hears with what it has said. */
class Guest {
  readonly conn: Deno.TcpConn;
  readonly #number: number;
  #said = 0;
  #heard = 0;

  constructor(conn: Deno.TcpConn, number: number) {
    this.conn = conn;
    this.#number = number;
  }

  async say(length: number): Promise<void> {
    const data = pattern(this.#number, this.#said, length);
    this.#said += length;
    for (let sent = 0; sent < length;) sent += await this.conn.write(data.subarray(sent));
  }

  /** Reads once; false at end of stream. */
  async hear(max: number): Promise<boolean> {
    const buffer = new Uint8Array(max);
    const n = await this.conn.read(buffer);
    if (n === null) return false;
    const expected = pattern(this.#number, this.#heard, n);
    assert(expected.every((byte, i) => byte === buffer[i]), `client ${this.#number} heard a wrong byte`);
    this.#heard += n;
    return true;
  }

  async hearAll(max: number): Promise<void> {
    while (this.#heard < this.#said) assert(await this.hear(max), `client ${this.#number} did not hear all`);
  }
}

type Next = (n: number) => number;

/** What clients do. Each may count on an honest server, and on nothing of the others. */
const HABITS: Record<string, (guest: Guest, next: Next, over: () => Promise<void>) => Promise<void>> = {
  async talk(guest, next) {
    for (let i = next(10); i >= 0; i--) {
      await guest.say(1 + next(20_000));
      await guest.hearAll(1 + next(30_000));
    }
  },
  async halfClose(guest, next) {
    const length = 1 + next(300_000);
    const saying = guest.say(length).then(() => guest.conn.closeWrite());
    await guest.hearAll(1 + next(30_000));
    await saying;
    assert(!await guest.hear(1), "something came behind the end");
  },
  async trickle(guest, next) {
    for (let i = 1 + next(20); i > 0; i--) {
      await guest.say(1);
      await guest.hearAll(1);
    }
  },
  async leaveInTheMiddle(guest, next) {
    await guest.say(1 + next(100_000));
  },
  async resetUnread(guest, next) {
    await guest.say(100 + next(10_000));
    await guest.hear(1 + next(50)); // To close while there is more to read is to reset.
  },
  async flood(guest) {
    const flooding = (async () => {
      for (;;) await guest.say(65536);
    })();
    // It does not read, so the server stops reading too, and what it holds is bounded: the flood stands still.
    await Promise.race([flooding.catch(() => {}), new Promise((resolve) => setTimeout(resolve, 40))]);
    guest.conn.close();
    await flooding.catch(() => {});
  },
  async stall(guest, next, over) {
    if (next(2)) await guest.say(1 + next(100));
    await over();
  },
};

const names = Object.keys(HABITS);

async function visit(port: number, number: number, next: Next, over: () => Promise<void>): Promise<void> {
  const habit = names[next(names.length + 1)];
  if (!habit) return await resetAtOnce(port);
  const guest = new Guest(await Deno.connect({ hostname: "127.0.0.1", port }), number);
  try {
    await HABITS[habit](guest, random(next(2 ** 31)), over);
  } finally {
    close(guest.conn);
  }
}

function close(conn: Deno.Conn): void {
  try {
    conn.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}

function resetAtOnce(port: number): Promise<void> {
  return new Promise((resolve) => {
    const socket = nodeConnect(port, "127.0.0.1", () => socket.resetAndDestroy());
    socket.on("error", () => {}).on("close", () => resolve());
  });
}

/** What is on its way to be closed gets a second. */
async function eventually(met: () => boolean, otherwise: string): Promise<void> {
  for (let i = 0; i < 100 && !met(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert(met(), otherwise);
}

function openFiles(): number {
  return Deno.build.os === "linux" ? [...Deno.readDirSync("/proc/self/fd")].length : 0;
}

Deno.test(
  "N12 N13 N15 five hundred hostile clients at once leave nothing behind",
  needs({ net: true, read: true }),
  async () => {
    const filesBefore = openFiles();
    const errors: unknown[] = [];
    const stop = new AbortController();
    const loop = new Loop({ onError: (error) => errors.push(error) });
    let open = 0;
    let most = 0;

    function* echo(sock: Socket): Coroutine {
      most = Math.max(most, ++open);
      try {
        const stream = new Stream(sock);
        for (let data; (data = yield* stream.read()).length > 0;) yield* stream.write(data);
      } finally {
        open--;
      }
    }

    const listener = listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr as Deno.NetAddr;
    const serving = loop.run(serve(listener, echo, { signal: stop.signal, drainTimeout: 20 }));

    const next = random(SEED);
    const { promise: over, resolve: end } = Promise.withResolvers<void>();
    let visiting = CLIENTS;
    let stalling = 0;
    const stall = () => (stalling++, over);
    const visits = Promise.all(Array.from({ length: CLIENTS }, (_, number) => {
      return visit(port, number, random(next(2 ** 31)), stall).finally(() => visiting--);
    }));
    visits.catch(() => {}); // It is awaited below.
    while (visiting > stalling) await new Promise((resolve) => setTimeout(resolve, 5));
    stop.abort(); // Those who stall are still there, and are cancelled.
    await serving;
    end();
    await visits;

    assertEquals(open, 0);
    assertEquals([...loop.tasks].length, 0);
    for (const error of errors) assert(/ConnectionReset|BrokenPipe/.test(String(error)), String(error));
    assert(most > CLIENTS / 10, `only ${most} clients were there at once`);
    // The platform keeps a few of its own once they are needed.
    await eventually(() => openFiles() <= filesBefore + 5, "sockets were left open");
  },
);

Deno.test(
  `K13 N12 ${SOAK} connections leave the memory of a server as it was`,
  needs({ net: true, run: true, read: true }),
  async () => {
    // V8 lets its nursery grow under load, which is no growth of ours: it is kept small.
    await using server = await Server.start(["--v8-flags=--max-semi-space-size=1", example("echo_stream")]);
    const tenth = SOAK / 10;
    await short(server.port, tenth);
    await server.untilCount("connection closed", tenth);
    const filesBefore = server.openFiles()!;
    const first = residentKib(server.pid);
    await short(server.port, SOAK - tenth);
    const last = residentKib(server.pid);
    await server.untilCount("connection closed", SOAK);
    if (first !== null && last !== null) assertLess(last, first * 1.25 + 8192);
    await eventually(() => server.openFiles()! <= filesBefore + 2, "sockets were left open");
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

/** What a process holds in memory, in KiB; null where `/proc` does not tell. */
function residentKib(pid: number): number | null {
  if (Deno.build.os !== "linux") return null;
  const resident = /^VmRSS:\s+(\d+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`));
  return resident && Number(resident[1]);
}
