/**
 * `examples/haproxy.cfg` with a real HAProxy and two real servers, which are restarted one after the other while
 * clients talk, and killed.
 *
 * What is promised: an answer that has come is the right one, and a client is never cut by a restart as that file
 * describes it, unless it stays longer than servers wait for their clients. Then it knows what was answered, and goes
 * on with the other server.
 */

import { assert, assertEquals } from "@std/assert";
import { type Coroutine, failAfter, listen, Loop, serve, type Socket, Stream } from "../mod.ts";
import { needsPrograms } from "./permissions.ts";
import { example, Server } from "./server_process.ts";

const CLUSTER = ["--unstable-net", "--allow-read", example("echo_cluster")];
const CONFIG = example("").replace(/[^/]*$/, "haproxy.cfg");
/** How many clients talk at once. */
const CLIENTS = 20;
/** How long a state of a server is waited for before the test has failed, in milliseconds. */
const GIVE_UP = 10_000;

const options = needsPrograms(["haproxy"], { net: true, write: true });

Deno.test("N12 a rolling restart of two servers behind HAProxy under load cuts nobody", options, async () => {
  await using front = await Front.start();
  const load = new Load(front.port);
  await load.untilMore(20 * CLIENTS);
  await Promise.all(front.all.map(untilBusy));
  for (const name of ["a", "b"] as const) {
    await front.restart(name, load);
    await load.untilMore(20 * CLIENTS);
    await untilBusy(front.all.at(-1)!);
  }
  await load.end();
  assertEquals(load.cut, 0);
  assertEquals(load.wrong, []);
  for (const server of front.all) assertEquals(server.err, "");
  assertEquals(front.all.length, 4);
});

/** Until a server has had a good part of the clients. */
function untilBusy(server: Server): Promise<void> {
  return server.untilCount("connect from", CLIENTS + 1);
}

Deno.test("N12 who talks on and on is cut by a restart, and has lost no answer", options, async () => {
  await using front = await Front.start(50);
  const load = new Load(front.port, Infinity);
  await load.untilMore(20 * CLIENTS);
  for (const name of ["a", "b"] as const) {
    await front.restart(name, load);
    await load.untilMore(20 * CLIENTS);
  }
  await load.end();
  assert(load.cut > 0, "nobody was cut");
  assertEquals(load.wrong, []);
});

Deno.test("clients find the server that is left when the other one was killed", options, async () => {
  await using front = await Front.start();
  const load = new Load(front.port);
  await load.untilMore(5 * CLIENTS);
  front.a.signal("SIGKILL");
  await front.a.code;
  const cut = load.cut;
  await load.untilMore(10 * CLIENTS);
  await load.end();
  assert(load.cut <= cut + CLIENTS, "more were cut than were there when the server was killed");
  assertEquals(load.wrong, []);
  await front.until("a", "DOWN");
});

Deno.test("ST1 a server behind send-proxy reads who its client is before anything else", options, async () => {
  const stop = new AbortController();
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  const serving = new Loop().run(serve(listener, tellAddress, { signal: stop.signal }));
  const target = `127.0.0.1:${listener.addr.port}`;
  const text = await Deno.readTextFile(CONFIG);
  const edited = text.replace(/^( *(default-server|tcp-check connect)) /gm, "$1 send-proxy "); // As its opening says.
  assertEquals(edited.length, text.length + 2 * " send-proxy".length);
  {
    await using front = await Front.run(target, target, edited);
    using client = await Deno.connect({ hostname: "127.0.0.1", port: front.port });
    const expected = `Got: hello, 127.0.0.1:${client.localAddr.port}`;
    assertEquals(await converse(client, "hello\n", expected.length), expected);
  }
  stop.abort();
  await serving;
});

/** What the README tells a server to do that wants its clients' addresses. */
function* tellAddress(sock: Socket): Coroutine {
  const stream = new Stream(sock);
  const header = yield* failAfter(1000, stream.readLine());
  if (header === null) return;
  const [, , host, , port] = header.split(" "); // PROXY TCP4 from to port port
  for (let line; (line = yield* stream.readLine()) !== null;) yield* stream.write(`Got: ${line}, ${host}:${port}`);
}

// ---- HAProxy and its servers ---------------------------------------------------------------------------------------

/** HAProxy with the example's configuration, two servers behind it, and the one who deploys. */
class Front implements AsyncDisposable {
  readonly port: number;
  /** Every server that was started here. */
  readonly all: Server[] = [];
  readonly #child: Deno.ChildProcess;
  /** What HAProxy has to say, once it has ended. */
  readonly #err: Promise<string>;
  #ended = false;
  readonly #folder: string;
  #drainMs = 0;

  private constructor(child: Deno.ChildProcess, folder: string, port: number) {
    this.#child = child;
    this.#err = new Response(child.stderr).text().finally(() => this.#ended = true);
    this.#folder = folder;
    this.port = port;
  }

  /** With two servers that give their clients so many milliseconds to finish. */
  static async start(drainMs = 5000): Promise<Front> {
    await using started = new AsyncDisposableStack();
    const a = started.use(await startServer(drainMs));
    const b = started.use(await startServer(drainMs));
    const front = await Front.run(`127.0.0.1:${a.port}`, `127.0.0.1:${b.port}`, await Deno.readTextFile(CONFIG));
    front.#drainMs = drainMs;
    front.all.push(a, b);
    started.move(); // From here on they are the front's.
    return front;
  }

  /** In front of two servers that run somewhere. */
  static async run(a: string, b: string, config: string): Promise<Front> {
    const folder = await Deno.makeTempDir({ prefix: "yieldloop_" });
    await Deno.writeTextFile(`${folder}/haproxy.cfg`, config);
    const port = freePort();
    const child = new Deno.Command("haproxy", {
      args: ["-db", "-f", `${folder}/haproxy.cfg`],
      env: { ECHO_ADMIN: `${folder}/admin.sock`, ECHO_BIND: `127.0.0.1:${port}`, ECHO_A: a, ECHO_B: b },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const front = new Front(child, folder, port);
    try {
      await Promise.all([front.until("a", "UP"), front.until("b", "UP")]);
      return front;
    } catch (error) {
      await front[Symbol.asyncDispose]();
      throw error;
    }
  }

  get a(): Server {
    return this.all[0];
  }

  /** What the example's configuration says is to be done; but instead of a second it waits as long as it takes. */
  async restart(name: "a" | "b", load: Load): Promise<void> {
    await this.tell(`set server echo/${name} state drain`);
    await load.untilAllAnswered();
    const old = this.all[name === "a" ? 0 : 1];
    old.signal("SIGTERM");
    assertEquals(await old.code, 0);
    this.all.push(await startServer(this.#drainMs, old.port));
    await this.tell(`set server echo/${name} state ready`);
    await this.until(name, "UP");
  }

  /** Waits until HAProxy says that a server is so. */
  async until(name: string, state: string): Promise<void> {
    let last: unknown;
    for (const end = Date.now() + GIVE_UP; Date.now() < end && !this.#ended;) {
      try {
        const rows = (await this.tell("show stat")).split("\n").map((line) => line.split(","));
        const row = rows.find((row) => row[1] === name);
        last = row;
        // Servers are up, for HAProxy, before they are checked for the first time.
        if (row?.[17] === state && (state !== "UP" || row[36].endsWith("L7OK"))) return;
      } catch (error) {
        last = error; // It is still starting.
      }
      await new Promise((resolve) => setTimeout(resolve, 10)); // It tells nobody of a change: it has to be asked.
    }
    const why = this.#ended ? await this.#err : last;
    throw new Error(`Cannot wait for server ${name} to be ${state}: ${why}`);
  }

  /** Gives HAProxy a command, and returns its answer. */
  async tell(command: string): Promise<string> {
    using conn = await Deno.connect({ transport: "unix", path: `${this.#folder}/admin.sock` });
    await conn.write(new TextEncoder().encode(`${command}\n`));
    let answer = "";
    const decoder = new TextDecoder();
    const buffer = new Uint8Array(4096);
    for (let n; (n = await conn.read(buffer)) !== null;) answer += decoder.decode(buffer.subarray(0, n));
    return answer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // It has ended already.
    }
    await this.#child.status;
    await this.#err;
    await Promise.all(this.all.map((server) => server[Symbol.asyncDispose]()));
    await Deno.remove(this.#folder, { recursive: true });
  }
}

/** An echo server with one worker. */
function startServer(drainMs: number, port = 0): Promise<Server> {
  return Server.start(CLUSTER, {}, ["1", String(drainMs)], port);
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

// ---- Clients -------------------------------------------------------------------------------------------------------

/** Clients who connect, say some things, each when the one before it was answered, leave, and connect again. */
class Load {
  /** Conversations in which the server, or HAProxy, had the last word. */
  cut = 0;
  /** Answers that were not the right ones. */
  readonly wrong: string[] = [];
  /** How many things each client has said and had answered. */
  readonly #said: number[] = new Array(CLIENTS).fill(0);
  #over = false;
  #progress = Promise.withResolvers<void>();
  readonly #clients: Promise<unknown>;

  /** Without end if `most` is infinite; else between 1 and `most` things are said in one conversation. */
  constructor(port: number, most = 10) {
    this.#clients = Promise.all(Array.from({ length: CLIENTS }, (_, i) => this.#client(port, i, most)));
    this.#clients.catch(() => {}); // It is awaited at the end.
  }

  /** Waits until so many more things were answered. */
  async untilMore(count: number): Promise<void> {
    const answers = () => this.#said.reduce((sum, said) => sum + said);
    const goal = answers() + count;
    while (answers() < goal) await Promise.race([this.#progress.promise, this.#clients]);
  }

  /** Waits until each client has had one more answer: the connection it has by now was accepted by its server. */
  async untilAllAnswered(): Promise<void> {
    const before = [...this.#said];
    while (this.#said.some((said, id) => said === before[id])) await this.untilMore(1);
  }

  async end(): Promise<void> {
    this.#over = true;
    await this.#clients;
  }

  async #client(port: number, id: number, most: number): Promise<void> {
    const said = this.#said;
    while (!this.#over) {
      using conn = await Deno.connect({ hostname: "127.0.0.1", port });
      const last = most < Infinity ? said[id] + 1 + (said[id] * 7 + id) % most : Infinity;
      while (!this.#over && said[id] < last) {
        if (!await this.#say(conn, `client ${id} says ${said[id]}`)) {
          this.cut++; // What was not answered is said again, on another connection.
          break;
        }
        said[id]++;
        const { resolve } = this.#progress;
        this.#progress = Promise.withResolvers();
        resolve();
      }
    }
  }

  /** Says one thing; whether it was answered. */
  async #say(conn: Deno.Conn, text: string): Promise<boolean> {
    const answer = await converse(conn, text, `Got: ${text}`.length);
    if (answer.length < `Got: ${text}`.length && `Got: ${text}`.startsWith(answer)) return false;
    if (answer !== `Got: ${text}`) this.wrong.push(`${text}: ${answer}`);
    return true;
  }
}

/** Sends a text, and returns what comes back: so many bytes, or fewer if that was the end. */
async function converse(conn: Deno.Conn, text: string, length: number): Promise<string> {
  const answer = new Uint8Array(length + 1); // One more than is due would be noticed.
  let got = 0;
  try {
    await conn.write(new TextEncoder().encode(text));
    for (let n; got < length && (n = await conn.read(answer.subarray(got))) !== null;) got += n;
  } catch (error) {
    const gone = error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe;
    if (!gone) throw error;
  }
  return new TextDecoder().decode(answer.subarray(0, got));
}
