/**
 * tests/bench/server.ts: a server process, pinned to a core, and what the system says it has cost.
 */
import type { Variant } from "./variants.ts";

/** The core that servers run on; the load has the other. */
const SERVER_CORE = 0;
/** How long a server may take until it listens, in milliseconds. */
const START_TIMEOUT = 20_000;

/** What a process has used so far. */
export interface Cpu {
  /** All of it, in microseconds, of all its threads. */
  total: number;
  /** What it has spent in the program, in the ticks of 10 ms that the system counts. */
  user: number;
  /** And in the system. */
  system: number;
}

/** A running server. */
export class Server {
  readonly #child: Deno.ChildProcess;
  readonly #name: string;

  private constructor(child: Deno.ChildProcess, name: string, readonly port: number) {
    this.#child = child;
    this.#name = name;
  }

  /** Starts `variant` and waits until it listens. */
  static async start(variant: Variant): Promise<Server> {
    const child = new Deno.Command("taskset", {
      args: ["-c", String(SERVER_CORE), ...variant.command],
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const timer = setTimeout(() => child.kill("SIGKILL"), START_TIMEOUT);
    const line = await firstLine(child.stdout);
    clearTimeout(timer);
    const port = Number(line.match(/:(\d+)$/)?.[1]);
    if (port) return new Server(child, variant.name, port);
    await end(child);
    throw new Error(`Cannot measure ${variant.name}: it did not say where it listens`);
  }

  /** Processor time so far. */
  cpu(): Cpu {
    const fields = this.#proc("stat").split(") ")[1].split(" ");
    const [user, system] = [Number(fields[11]), Number(fields[12])];
    // The same sum in nanoseconds, where the system keeps it: a tick of `stat` is 10 ms.
    let total = 0;
    for (const thread of Deno.readDirSync(`/proc/${this.#child.pid}/task`)) {
      total += Number(this.#proc(`task/${thread.name}/schedstat`).split(" ")[0]) / 1000;
    }
    return { total: total || (user + system) * 10_000, user, system };
  }

  /** The most memory it ever held, in KiB. */
  get peakMemory(): number {
    return this.#status("VmHWM");
  }

  /** The memory it holds now, in KiB. */
  get memory(): number {
    return this.#status("VmRSS");
  }

  #status(field: string): number {
    return Number(this.#proc("status").match(new RegExp(`^${field}:\\s+(\\d+)`, "m"))![1]);
  }

  #proc(file: string): string {
    try {
      return Deno.readTextFileSync(`/proc/${this.#child.pid}/${file}`);
    } catch (error) {
      if (file.startsWith("task/")) return "0"; // A thread that has just ended.
      throw new Error(`Cannot measure ${this.#name}: its process is gone`, { cause: error });
    }
  }

  /** Sends `size` bytes and compares what comes back. */
  async check(size: number): Promise<void> {
    const sent = new Uint8Array(size).map((_, i) => i * 31 + (i >> 8));
    using conn = await Deno.connect({ hostname: "127.0.0.1", port: this.port });
    const writing = (async () => {
      for (let n = 0; n < size;) n += await conn.write(sent.subarray(n));
    })();
    const got = new Uint8Array(size);
    for (let n = 0; n < size;) {
      const read = await conn.read(got.subarray(n));
      if (read === null) throw new Error(`Cannot measure ${this.#name}: it ended after ${n} of ${size} bytes`);
      n += read;
    }
    await writing;
    if (got.some((byte, i) => byte !== sent[i])) throw new Error(`Cannot measure ${this.#name}: its echo is wrong`);
  }

  /** Ends it. */
  async stop(): Promise<void> {
    await end(this.#child);
  }
}

async function end(child: Deno.ChildProcess): Promise<void> {
  try {
    child.kill("SIGKILL");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // It has ended by itself.
  }
  await child.status;
  await child.stdout.cancel().catch(() => {});
}

async function firstLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  while (!text.includes("\n")) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
  }
  reader.releaseLock();
  return text.split("\n")[0];
}
