/**
 * tests/hostile.ts: the clients of a bad hour. They reset, stall, half-close, trickle, leave in the middle, of a word or
 * of a handshake, speak the wrong language, or flood without reading; some are polite.
 *
 * They come as a crowd, all at once, and a seed decides who does what: the same seed, the same decisions. Each compares
 * every byte that it hears with what it has said. No habit waits for a time: those who stay do so until the crowd is told
 * to leave. Over TCP the bytes of a handshake are bytes as others are, so one list of habits serves both transports.
 */

import { assert } from "@std/assert";
import { connect as nodeConnect } from "node:net";
import { sameBytes, tls } from "./net_transports.ts";
import { noise } from "./server_process.ts";
import { type Next, random } from "./world.ts";

/** How long a crowd may take before the test has failed, in milliseconds. */
const GIVE_UP = 20_000;

/** Where clients go. */
export interface Door {
  port: number;
  tls: boolean;
  /** What a client of TLS says first. */
  hello: Uint8Array<ArrayBuffer>;
}

/** The way to an echo server on `port`. */
export async function doorTo(port: number, transport: "tcp" | "tls"): Promise<Door> {
  return { port, tls: transport === "tls", hello: await clientHello() };
}

/** Clients who are there at once. */
export class Crowd implements Disposable {
  /** How many will not go before they are told to. */
  staying = 0;
  readonly #guests: Guest[];
  readonly #over = Promise.withResolvers<void>();
  #visits: Promise<unknown> = Promise.resolve();

  private constructor(guests: Guest[]) {
    this.#guests = guests;
  }

  /** So many clients connect, and do nothing yet. */
  static async gather(door: Door, count: number, next: Next): Promise<Crowd> {
    const arriving = Array.from({ length: count }, (_, number) => Guest.arrive(door, number, random(next(2 ** 32))));
    return new Crowd(await Promise.all(arriving));
  }

  /** Lets loose all of them; returns when each has left or only stays. */
  async behave(): Promise<void> {
    const visits = this.#guests.map((guest) => guest.visit(this.#over.promise));
    this.#visits = Promise.all(visits);
    this.#visits.catch(() => {}); // It is awaited when they leave.
    await this.#inTime(Promise.all(visits.map((visit, i) => Promise.race([visit, this.#guests[i].stays]))));
    for (const guest of this.#guests) if (guest.staying) this.staying++;
  }

  /** Tells those who stay to go, and waits until all have left. */
  async leave(): Promise<void> {
    for (const guest of this.#guests) guest.staying = false;
    this.#over.resolve();
    await this.#inTime(this.#visits);
  }

  /** Fails if it takes far too long, and says what those do who are not done. */
  async #inTime(what: Promise<unknown>): Promise<void> {
    const { promise: late, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      const waiting = this.#guests.filter((guest) => !guest.gone && !guest.staying).map((guest) => guest.habit);
      reject(new Error(`Cannot wait for ${waiting.length} clients any longer: ${[...new Set(waiting)].join(", ")}`));
    }, GIVE_UP);
    try {
      await Promise.race([what, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** For a test that has failed: takes away all that is still there. */
  [Symbol.dispose](): void {
    for (const guest of this.#guests) guest.close();
    this.#over.resolve();
  }
}

/** A client of an echo server, alone among strangers. It may count on the server, and on nothing else. */
class Guest {
  readonly door: Door;
  readonly next: Next;
  /** What it does. */
  readonly habit: string;
  /** Whether it only stays. */
  staying = false;
  /** Whether it has left. */
  gone = false;
  readonly #stays = Promise.withResolvers<void>();
  readonly #number: number;
  #over = this.#stays.promise;
  #conn: Deno.Conn;
  #agreed: boolean;
  #said = 0;
  #heard = 0;

  private constructor(door: Door, number: number, next: Next, conn: Deno.Conn) {
    this.door = door;
    this.next = next;
    this.habit = habits[next(habits.length)];
    this.#number = number;
    this.#conn = conn;
    this.#agreed = !door.tls;
  }

  static async arrive(door: Door, number: number, next: Next): Promise<Guest> {
    return new Guest(door, number, next, await Deno.connect({ hostname: "127.0.0.1", port: door.port }));
  }

  /** Resolves when it begins to stay. */
  get stays(): Promise<void> {
    return this.#stays.promise;
  }

  /** Does what it came for, and goes. */
  async visit(over: Promise<void>): Promise<void> {
    this.#over = over;
    try {
      await HABITS[this.habit](this, this.next);
    } finally {
      this.close();
      this.gone = true;
    }
  }

  /** From now on it does nothing new, until it is told to go. */
  stay(): Promise<void> {
    this.staying = true;
    this.#stays.resolve();
    return this.#over;
  }

  /** Says so many of its bytes, inside of TLS if this is the server's language. */
  async say(length: number): Promise<void> {
    if (!this.#agreed) await this.#agree();
    const data = words(this.#number, this.#said, length);
    this.#said += length;
    await this.send(data);
  }

  async #agree(): Promise<void> {
    this.#agreed = true;
    const plain = this.#conn as Deno.TcpConn;
    this.#conn = await Deno.startTls(plain, { hostname: "127.0.0.1", caCerts: [tls.ca] });
  }

  /** Sends bytes as they are. */
  async send(data: Uint8Array): Promise<void> {
    for (let sent = 0; sent < data.length;) sent += await this.#conn.write(data.subarray(sent));
  }

  /** Reads once what it has said; false at end of stream. */
  async hear(max: number): Promise<boolean> {
    const buffer = new Uint8Array(max);
    const n = await this.#conn.read(buffer);
    if (n === null) return false;
    const expected = words(this.#number, this.#heard, n);
    assert(sameBytes(buffer.subarray(0, n), expected), `client ${this.#number} heard a wrong byte`);
    this.#heard += n;
    return true;
  }

  async hearAll(max: number): Promise<void> {
    while (this.#heard < this.#said) assert(await this.hear(max), `client ${this.#number} did not hear all`);
  }

  /** Reads once, whatever it is; false if there is no more. */
  async listen(): Promise<boolean> {
    return await this.#conn.read(new Uint8Array(4096)).catch(whenCutOff) !== null;
  }

  async closeWrite(): Promise<void> {
    try {
      await this.#conn.closeWrite();
    } catch (error) {
      if (!(error instanceof Deno.errors.NotConnected)) throw error; // Who was rude may have been cut off before.
    }
  }

  close(): void {
    try {
      this.#conn.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error; // It is closed already.
    }
  }
}

/** What clients do. */
const HABITS: Record<string, (guest: Guest, next: Next) => Promise<void>> = {
  async talk(guest, next) {
    for (let i = next(10); i >= 0; i--) {
      await guest.say(1 + next(20_000));
      await guest.hearAll(1 + next(30_000));
    }
  },
  async halfClose(guest, next) {
    await guest.say(1);
    const saying = guest.say(1 + next(250_000)).then(() => guest.closeWrite());
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
  async flood(guest, next) {
    if (next(8)) return await guest.say(1 + next(250_000)); // A few floods are enough: each is megabytes.
    let flooding = true;
    const said = (async () => {
      while (flooding) await guest.say(65536);
    })().catch(() => {}); // Those who are still there at the end are cut off.
    await guest.stay();
    // Over TLS one who leaves with bytes unsent is not gone: the platform goes on with them. So what stands in their way
    // is read, and no more than that.
    let stuck = true;
    said.then(() => stuck = false);
    flooding = false;
    while (guest.door.tls && stuck && await guest.hear(65536).catch(whenCutOff));
    guest.close();
    await said;
  },
  async stall(guest, next) {
    if (next(2)) await guest.say(1 + next(100));
    await guest.stay();
  },
  async resetAtOnce(guest, next) {
    guest.close();
    await reset(guest.door.port, begun(guest.door.hello, next));
  },
  async leaveInTheHandshake(guest, next) {
    await guest.send(begun(guest.door.hello, next));
  },
  async leaveAfterTheHello(guest) {
    await guest.send(guest.door.hello);
    await guest.listen();
  },
  async stallInTheHandshake(guest, next) {
    await guest.send(next(2) ? begun(guest.door.hello, next) : guest.door.hello);
    await guest.stay();
  },
  async speakNoTls(guest) {
    await guest.send(noise.subarray(0, 1000));
    await guest.closeWrite();
    while (await guest.listen());
  },
};

const habits = Object.keys(HABITS);

/** There is no more to read. */
function whenCutOff(error: unknown): null {
  if (error instanceof Deno.errors.ConnectionReset) return null;
  throw error;
}

/** The first part of a handshake. */
function begun(hello: Uint8Array<ArrayBuffer>, next: Next): Uint8Array<ArrayBuffer> {
  return hello.subarray(0, [0, 1, 70, 200][next(4)]);
}

const twice = new Uint8Array([...noise, ...noise]);

/** What a client says: each byte of it is known, so that each byte that comes back can be judged. */
function words(client: number, from: number, length: number): Uint8Array {
  const start = (client * 977 + from) % noise.length;
  return twice.subarray(start, start + length);
}

/** Connects, sends a few bytes and resets. */
function reset(port: number, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    const socket = nodeConnect(port, "127.0.0.1", () => {
      if (bytes.length === 0) socket.resetAndDestroy();
      else socket.write(bytes, () => socket.resetAndDestroy());
    });
    socket.on("error", () => {}).on("close", () => resolve());
  });
}

async function clientHello(): Promise<Uint8Array<ArrayBuffer>> {
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
