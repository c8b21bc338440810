/**
 * Two hundred clients at once who do not read, or who are not read: what is held for each of them is what `net.ts`
 * says, at most 64 KiB that have arrived and were not taken, and 128 KiB that were sent and have not left.
 *
 * First to the byte, over connections that take nothing or bring without end; then as the memory of a server whose
 * clients are real. They come by a Unix socket: for TCP the system would hold gigabytes before the server had to hold
 * anything.
 */

import { assert, assertEquals } from "@std/assert";
import { type Addr, Cancelled, type Connection, type Coroutine, Loop, Socket, taskGroup, until } from "../mod.ts";
import { report, startMeasured } from "./measured_server.ts";
import { needs } from "./permissions.ts";
import type { Server } from "./server_process.ts";
import { platformTurn } from "./world.ts";

const CLIENTS = 200;
const UNREAD_MAX = 65536;
const UNSENT_MAX = 2 * 65536;
/** What a connection costs besides that, its task and the message in its hands included: in bytes. */
const OVERHEAD_MAX = 24_576;

// ---- To the byte ---------------------------------------------------------------------------------------------------

/** A peer that sends as fast as it is read, and reads nothing. */
class Flood implements Connection {
  readonly localAddr: Addr = { transport: "unix", path: "" };
  readonly remoteAddr: Addr = { transport: "unix", path: "" };
  /** How many bytes it has sent. */
  brought = 0;
  #close = Promise.withResolvers<never>();

  constructor() {
    this.#close.promise.catch(() => {});
  }

  read(buffer: Uint8Array): Promise<number> {
    this.brought += buffer.length;
    return Promise.resolve(buffer.length);
  }

  write(): Promise<number> {
    return this.#close.promise;
  }

  closeWrite(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    this.#close.reject(new Deno.errors.Interrupted("The connection was closed"));
  }
}

Deno.test("N7 200 sockets whose peers do not read take 128 KiB each, and no byte more", async () => {
  const much = new Uint8Array(4 * UNSENT_MAX);
  const taken: (number | undefined)[] = [];
  const loop = new Loop();

  function* send(): Coroutine {
    const sock = new Socket(new Flood());
    try {
      yield* loop.sockSendall(sock, much);
    } catch (error) {
      if (!(error instanceof Cancelled)) throw error;
      taken.push(error.bytesSent);
    } finally {
      sock.abort(); // To close would be to wait for a peer who never reads.
    }
  }

  await loop.run(taskGroup(function* (group) {
    for (let i = 0; i < CLIENTS; i++) group.createTask(send());
    for (let i = 0; i < 10; i++) yield* until(platformTurn());
    group.cancel();
  }));
  assertEquals(taken, Array(CLIENTS).fill(UNSENT_MAX));
});

Deno.test("N7 200 sockets whose peers send without end hold 64 KiB each, and no byte more", async () => {
  const most: number[] = [];
  const loop = new Loop();

  function* receive(): Coroutine {
    const peer = new Flood();
    const sock = new Socket(peer);
    let taken = 0;
    let unread = 0;
    while (taken < 4 * UNREAD_MAX) {
      taken += (yield* loop.sockRecv(sock, 1000)).length;
      unread = Math.max(unread, peer.brought - taken);
    }
    most.push(unread);
    for (let i = 0; i < 10; i++) yield* until(platformTurn());
    assert(peer.brought - taken <= UNREAD_MAX, "it goes on reading though nobody takes what came");
    sock.abort(); // To close would be to read until the peer has ended, too.
  }

  await loop.run(taskGroup(function* (group) {
    for (let i = 0; i < CLIENTS; i++) group.createTask(receive());
  }));
  assertEquals(most, Array(CLIENTS).fill(UNREAD_MAX - 1000)); // A thousand were taken as the last of them came.
});

// ---- Of a process --------------------------------------------------------------------------------------------------

Deno.test(
  "N7 200 clients who do not read cost a server 192 KiB each and little more, and nobody loses a byte",
  needs({ net: true, run: true, read: true, write: true }),
  async () => {
    const folder = await Deno.makeTempDir({ prefix: "yieldloop_" });
    const path = `${folder}/echo.sock`;
    try {
      await using server = await startMeasured(path);
      await Promise.all((await connectAll(path)).map((client) => client.takeBack())); // What stays is made.
      const { memory: before } = await report(server);
      const clients = await connectAll(path);
      for (const client of clients) client.flood();
      const full = await memoryWhenAllStandStill(server, clients);
      const each = (full - before) / CLIENTS;
      assert(each <= UNREAD_MAX + UNSENT_MAX + OVERHEAD_MAX, `${each} bytes are held for each client`);
      assert(each > UNSENT_MAX / 2, `only ${each} bytes are held for each client, so they were not slow`);

      await Promise.all(clients.map((client) => client.takeBack()));
      const { memory: after } = await report(server);
      assert(after - before < MOST_KEPT, `${after - before} bytes are left behind`);
      assertEquals(server.err, "");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

/** By how much a server may have grown when its clients have left, in bytes: it keeps 2 MiB of free buffers. */
const MOST_KEPT = 4 * 1024 * 1024;
/** What clients say, again and again; it does not repeat itself within this. */
const WORDS = Uint8Array.from({ length: 65536 }, (_, i) => (i * 7 + (i >> 8)) & 255);

/** A client who sends as long as that gets anywhere, and reads only when told to. */
class SlowReader {
  sent = 0;
  readonly #conn: Deno.Conn;
  #sending: Promise<void> = Promise.resolve();
  #enough = false;

  constructor(conn: Deno.Conn) {
    this.#conn = conn;
  }

  /** Sends without end, or rather until {@linkcode takeBack}. */
  flood(): void {
    this.#sending = this.#send();
    this.#sending.catch(() => {}); // It is awaited there.
  }

  async #send(): Promise<void> {
    while (!this.#enough) this.sent += await this.#conn.write(WORDS.subarray(this.sent % WORDS.length));
  }

  /** Sends no more, and reads until it has everything back. */
  async takeBack(): Promise<void> {
    using _ = this.#conn;
    this.#enough = true;
    const sending = this.#sending.then(() => this.#conn.closeWrite());
    const buffer = new Uint8Array(WORDS.length);
    let got = 0;
    for (let n; (n = await this.#conn.read(buffer)) !== null; got += n) {
      for (let i = 0; i < n; i++) {
        if (buffer[i] !== WORDS[(got + i) % WORDS.length]) throw new Error(`Byte ${got + i} came back wrong`);
      }
    }
    await sending;
    assertEquals(got, this.sent);
  }
}

async function connectAll(path: string): Promise<SlowReader[]> {
  const connecting = Array.from({ length: CLIENTS }, () => Deno.connect({ transport: "unix", path }));
  return (await Promise.all(connecting)).map((conn) => new SlowReader(conn));
}

/** The memory when nobody's next bytes have any place left to go to, neither here nor there. */
async function memoryWhenAllStandStill(server: Server, clients: SlowReader[]): Promise<number> {
  let last = -1;
  for (let i = 0; i < 200; i++) {
    const { memory, stuck } = await report(server);
    const sent = clients.reduce((sum, client) => sum + client.sent, 0);
    if (stuck === clients.length && sent === last) return memory;
    last = sent;
  }
  throw new Error(`The server goes on taking what it cannot send: ${last} bytes by now`);
}
