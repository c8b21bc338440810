/**
 * tests/server_process.ts: a server program in a process of its own, and clients for it.
 *
 * What a server prints is kept line by line, and `until` waits for a line, never for a time. The clients are plain
 * `Deno.connect` sockets: they share nothing with what they test. Bytes that are to come back through an echo server
 * are taken from `noise`, which has no "G": so the answers can be told from the "Got: " before each of them.
 */

import { connect as nodeConnect } from "node:net";

/** How long `until` waits before it calls the test failed, in milliseconds. */
const GIVE_UP = 20_000;

const here = new URL(import.meta.url);

/** Where an example stands. */
export function example(name: string): string {
  return new URL(`../examples/${name}.ts`, here).pathname;
}

/** What a finished program left behind. */
export interface Outcome {
  code: number;
  out: string;
  err: string;
}

/** Runs a program to its end. */
export async function run(args: string[]): Promise<Outcome> {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...args],
    env: { NO_COLOR: "1" },
    stdin: "null",
  });
  const { code, stdout, stderr } = await command.output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), err: decoder.decode(stderr) };
}

/** A program that has printed `listening on HOST:PORT`. It ends with the block that is `using` it. */
export class Server implements AsyncDisposable {
  /** The lines printed so far. */
  readonly out: string[] = [];
  /** What stands on stderr so far. */
  err = "";
  /** The port it listens on. */
  port = 0;
  readonly #child: Deno.ChildProcess;
  readonly #read: Promise<unknown>;
  #ended = false;
  #waiters = new Set<() => void>();

  private constructor(args: string[], env: Record<string, string>) {
    const command = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", "--allow-net", ...args],
      env: { NO_COLOR: "1", ...env },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    });
    this.#child = command.spawn();
    this.#read = Promise.all([this.#readOut(), this.#readErr()]).finally(() => {
      this.#ended = true;
      this.#changed();
    });
  }

  /**
   * Starts a program on `port`, by default a free one. `args` are flags, the program, and what stands behind it before the
   * port; `afterPort` is what stands behind that.
   */
  static async start(
    args: string[],
    env: Record<string, string> = {},
    afterPort: string[] = [],
    port = 0,
  ): Promise<Server> {
    const server = new Server([...args, String(port), ...afterPort], env);
    try {
      await server.until("listening on", () => server.out.some((line) => line.startsWith("listening on ")));
      const line = server.out.find((line) => line.startsWith("listening on "))!;
      server.port = Number(/^listening on 127\.0\.0\.1:(\d+)$/.exec(line)?.[1]);
      return server;
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Starts one of the examples. */
  static example(name: string): Promise<Server> {
    return Server.start([example(name)]);
  }

  /** The process's id. */
  get pid(): number {
    return this.#child.pid;
  }

  /** The code it ends with, once it has. */
  get code(): Promise<number> {
    return this.#child.status.then(({ code }) => code);
  }

  /** How many of the lines printed so far begin with `start`. */
  count(start: string): number {
    return this.out.filter((line) => line.startsWith(start)).length;
  }

  /** Waits until `met` is true; it is asked again whenever the server has printed something. */
  async until(what: string, met: () => boolean): Promise<void> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#changed();
    }, GIVE_UP);
    try {
      while (!met()) {
        if (late || this.#ended) {
          const why = late ? "it has not happened yet" : "the program has ended";
          throw new Error(`Cannot wait for ${what}: ${why}. It printed:\n${this.out.join("\n")}\n${this.err}`);
        }
        await new Promise<void>((resolve) => this.#waiters.add(resolve));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits until so many lines that begin with `start` have been printed. */
  untilCount(start: string, n: number): Promise<void> {
    return this.until(`${n} times "${start}"`, () => this.count(start) >= n);
  }

  /** Sends the process a signal. */
  signal(name: Deno.Signal): void {
    this.#child.kill(name);
  }

  /** How many files and sockets the process holds open; null where `/proc` does not tell. */
  openFiles(): number | null {
    if (Deno.build.os !== "linux") return null;
    return [...Deno.readDirSync(`/proc/${this.pid}/fd`)].length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // It has ended already.
    }
    await this.#child.status;
    await this.#read;
  }

  async #readOut(): Promise<void> {
    let rest = "";
    for await (const text of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + text).split("\n");
      rest = lines.pop()!;
      this.out.push(...lines);
      this.#changed();
    }
  }

  async #readErr(): Promise<void> {
    for await (const text of this.#child.stderr.pipeThrough(new TextDecoderStream())) {
      this.err += text;
      this.#changed();
    }
  }

  #changed(): void {
    const waiters = this.#waiters;
    this.#waiters = new Set();
    for (const wake of waiters) wake();
  }
}

const G = "G".charCodeAt(0);
const GOT = new TextEncoder().encode("Got: ");

/** A quarter of a megabyte of bytes that are no "G", always the same. */
export const noise: Uint8Array<ArrayBuffer> = makeNoise(256 * 1024);

function makeNoise(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  let state = 12345;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    const byte = state >>> 24;
    bytes[i] = byte === G ? 0 : byte;
  }
  return bytes;
}

/** A client of an echo server that knows what it is still to get back, and compares each byte as it arrives. */
export class Client implements Disposable {
  /** How many bytes were sent and have not come back. */
  owed = 0;
  readonly conn: Deno.TcpConn;
  #expected: Uint8Array[] = [];
  /** How much of "Got: " has arrived; the bytes that follow it are ours. */
  #prefix = 0;
  #fresh = true;

  private constructor(conn: Deno.TcpConn) {
    this.conn = conn;
  }

  static async connect(port: number): Promise<Client> {
    const conn = await Deno.connect({ hostname: "127.0.0.1", port });
    conn.setNoDelay(true);
    return new Client(conn);
  }

  /** Its own address, as the servers print it. */
  get name(): string {
    return `127.0.0.1:${this.conn.localAddr.port}`;
  }

  /** Sends bytes of `noise`, or others without a "G". */
  async send(bytes: Uint8Array): Promise<void> {
    this.#expected.push(bytes);
    this.owed += bytes.length;
    for (let sent = 0; sent < bytes.length;) sent += await this.conn.write(bytes.subarray(sent));
  }

  /** Reads once, and checks what came; false at end of stream. */
  async read(buffer: Uint8Array): Promise<boolean> {
    const n = await this.conn.read(buffer);
    if (n !== null) this.#check(buffer.subarray(0, n));
    return n !== null;
  }

  /** Reads until everything sent so far has come back. */
  async settle(buffer: Uint8Array = new Uint8Array(4096)): Promise<void> {
    while (this.owed > 0) {
      if (!await this.read(buffer)) throw new Error(`The stream ended with ${this.owed} bytes still to come`);
    }
  }

  /** Sends a short text, and waits for the answer. */
  async say(text: string): Promise<void> {
    await this.send(new TextEncoder().encode(text));
    await this.settle();
  }

  /** Sends, ends its side, and reads until the server has ended its own: every byte must have come back. */
  async exchange(bytes: Uint8Array): Promise<void> {
    const sending = this.send(bytes).then(() => this.conn.closeWrite());
    const buffer = new Uint8Array(65536);
    while (await this.read(buffer));
    await sending;
    if (this.owed > 0) throw new Error(`The stream ended with ${this.owed} bytes still to come`);
  }

  [Symbol.dispose](): void {
    try {
      this.conn.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  #check(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      if (this.#prefix > 0 || bytes[at] === G) {
        if (bytes[at++] !== GOT[this.#prefix++]) throw new Error(`Expected "Got: " in an answer to ${this.name}`);
        if (this.#prefix === GOT.length) this.#prefix = 0;
        this.#fresh = false;
        continue;
      }
      if (this.#fresh) throw new Error(`Expected the answers to ${this.name} to begin with "Got: "`);
      at += this.#compare(bytes, at);
    }
  }

  /** Compares what follows with what is owed, up to the next "Got: "; returns how many bytes that were. */
  #compare(bytes: Uint8Array, from: number): number {
    const next = bytes.indexOf(G, from);
    const expected = this.#expected[0];
    const length = Math.min((next < 0 ? bytes.length : next) - from, expected?.length ?? 0);
    if (length === 0) throw new Error(`${this.name} got more than it had sent`);
    for (let i = 0; i < length; i++) {
      if (bytes[from + i] !== expected[i]) throw new Error(`${this.name} got a wrong byte`);
    }
    this.owed -= length;
    if (length === expected.length) this.#expected.shift();
    else this.#expected[0] = expected.subarray(length);
    return length;
  }
}

/** Says something, and resets the connection when the answer comes. */
export async function resetWhileOpen(port: number): Promise<void> {
  await new Promise<void>((resolve) => {
    const socket = nodeConnect(port, "127.0.0.1", () => socket.write("hello"));
    socket.on("data", () => socket.resetAndDestroy());
    socket.on("close", () => resolve());
  });
}

/** Serves the files of this project as a plain file server would. */
export async function sendSource(request: Request): Promise<Response> {
  const path = new URL(request.url).pathname;
  const text = await Deno.readTextFile(new URL(`..${path}`, import.meta.url));
  return new Response(text, { headers: { "content-type": "application/typescript" } });
}
