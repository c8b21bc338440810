/**
 * The larger examples, each driven by clients that nobody here wrote: nc and socat, redis-cli and redis-benchmark, curl, wrk.
 */

import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { chat } from "../examples/chat.ts";
import { type Coroutine, type Loop, sleep, type Socket, socketPair, Stream } from "../mod.ts";
import { needs, needsPrograms } from "./permissions.ts";
import { example, noise, Server } from "./server_process.ts";
import { random, simulate } from "./world.ts";

const WANTED = { net: true, run: true, read: true, env: true } as const;

/** Runs a client to its end; `input` is what it is given to read. */
async function client(
  program: string,
  args: string[],
  input = "",
): Promise<{ code: number; out: string; err: string }> {
  const command = new Deno.Command(program, { args, stdin: "piped", stdout: "piped", stderr: "piped" });
  await using child = command.spawn();
  const output = child.output();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { code, stdout, stderr } = await output;
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

/** A client that is talked to line by line. */
class Talker implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #lines: ReadableStreamDefaultReader<string>;
  #rest = "";

  constructor(program: string, args: string[]) {
    this.#child = new Deno.Command(program, { args, stdin: "piped", stdout: "piped" }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#lines = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  say(line: string): Promise<void> {
    return this.#writer.write(new TextEncoder().encode(`${line}\n`));
  }

  /** The next line it has printed; null at the end. */
  async hear(): Promise<string | null> {
    while (!this.#rest.includes("\n")) {
      const { value, done } = await this.#lines.read();
      if (done) return null;
      this.#rest += value;
    }
    const end = this.#rest.indexOf("\n");
    const line = this.#rest.slice(0, end);
    this.#rest = this.#rest.slice(end + 1);
    return line;
  }

  async leave(): Promise<void> {
    await this.#writer.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writer.close().catch(() => {});
    while (await this.hear() !== null);
    await this.#child.status;
  }
}

// ---- The chat ------------------------------------------------------------------------------------------------------

Deno.test("examples/chat.ts lets nc and socat talk to each other", needsPrograms(["nc", "socat"]), async () => {
  await using server = await Server.example("chat");
  await using ann = new Talker("nc", ["-N", "127.0.0.1", String(server.port)]);
  assertEquals(await ann.hear(), "Your name?");
  await ann.say("ann");
  await ann.say("/who");
  assertEquals(await ann.hear(), "* here are ann");

  await using bob = new Talker("socat", ["-t0.1", "-", `TCP:127.0.0.1:${server.port}`]);
  assertEquals(await bob.hear(), "Your name?");
  await bob.say("bob");
  assertEquals(await ann.hear(), "* bob has come");
  await ann.say("grüß dich");
  assertEquals(await bob.hear(), "ann: grüß dich");
  await bob.say("x".repeat(2000));
  assertEquals(await bob.hear(), "* that was longer than 1000 bytes, and nobody has seen it");
  await bob.say("hello");
  assertEquals(await ann.hear(), "bob: hello");
  await bob.say("/quit");
  assertEquals(await ann.hear(), "* bob has left");
  assertEquals(await bob.hear(), null);
  await ann.leave();
  assertEquals(await ann.hear(), null);
  assertEquals(server.err, "");
});

/** A guest of a chat that runs in this process, on a connection in memory. */
function* guest(loop: Loop, name: string): Coroutine<Stream> {
  const [ours, theirs]: Socket[] = socketPair();
  loop.createTask(function* (): Coroutine {
    using sock = theirs;
    yield* chat(sock);
  }());
  const stream = new Stream(ours);
  assertEquals(yield* stream.readLine(), "Your name?");
  yield* stream.write(`${name}\n/who\n`);
  while (!(yield* stream.readLine())?.startsWith("* here are "));
  return stream;
}

/** The lines that a guest hears up to `last`, with a pause of so many milliseconds after every twentieth. */
function* hearUntil(stream: Stream, last: string, pause = 0): Coroutine<string[]> {
  const heard: string[] = [];
  while (heard.at(-1) !== last) {
    const line = yield* stream.readLine();
    if (line === null) throw new Error(`The chat ended before it said "${last}"`);
    heard.push(line);
    if (pause > 0 && heard.length % 20 === 0) yield* sleep(pause);
  }
  return heard;
}

/** What somebody says who does not wait for anything: so many long lines, then a short one. */
function flood(lines: number): string[] {
  return [...Array.from({ length: lines }, (_, i) => `${i} ${"x".repeat(900)}`), "done"];
}

Deno.test("N7 examples/chat.ts sends a guest away who does not read, after a moment, and the others go on", async () => {
  await simulate(function* ({ loop }) {
    using _deaf = yield* guest(loop, "deaf");
    using ann = yield* guest(loop, "ann");
    using bob = yield* guest(loop, "bob");
    const said = flood(1000);
    const hearing = loop.createTask(hearUntil(bob, "ann: done"));
    yield* ann.write(said.map((line) => `${line}\n`).join(""));
    const heard = yield* hearing.join();
    assertEquals(heard.filter((line) => !line.startsWith("*")), said.map((line) => `ann: ${line}`));
    assertEquals(heard.filter((line) => line.startsWith("*")), ["* deaf has left"]);
    assertEquals(loop.time(), 200);
    yield* bob.write("/who\n");
    assertEquals(yield* bob.readLine(), "* here are ann, bob");
  });
});

Deno.test("examples/chat.ts passes on nothing that a terminal would obey", async () => {
  await simulate(function* ({ loop }) {
    using ann = yield* guest(loop, "ann");
    using bob = yield* guest(loop, "b\x1b[2Job");
    yield* bob.write("\x1b]0;title\x07grüß\tdich\x9b31m\n");
    assertEquals(yield* hearUntil(ann, "b [2Job:  ]0;title grüß dich 31m"), [
      "* b [2Job has come",
      "b [2Job:  ]0;title grüß dich 31m",
    ]);
  });
});

Deno.test("N7 examples/chat.ts lets nobody talk faster than a slow guest reads", async () => {
  await simulate(function* ({ loop }) {
    using slow = yield* guest(loop, "slow");
    using ann = yield* guest(loop, "ann");
    const said = flood(500);
    const hearing = loop.createTask(hearUntil(slow, "ann: done", 10));
    yield* ann.write(said.map((line) => `${line}\n`).join(""));
    const heard = yield* hearing.join();
    assertEquals(heard.filter((line) => !line.startsWith("*")), said.map((line) => `ann: ${line}`));
    assert(loop.time() >= 250);
  });
});

async function say(conn: Deno.Conn, line: string): Promise<void> {
  const data = new TextEncoder().encode(`${line}\n`);
  for (let sent = 0; sent < data.length;) sent += await conn.write(data.subarray(sent));
}

// ---- The key-value server ------------------------------------------------------------------------------------------

Deno.test("examples/kv_server.ts serves redis-cli", needsPrograms(["redis-cli"]), async () => {
  await using server = await Server.example("kv_server");
  const commands = ["set a hello", "get a", "get b", "incr n", "incr n", "incr a", "exists a n b", "del a b", "dbsize"];
  commands.push("set a 0x10", "incr a", "set a -1", "incr a");
  for (const most of ["-9007199254740991", "-9007199254740993", "9007199254740991"]) {
    commands.push(`set a ${most}`, "incr a");
  }
  const { out } = await client("redis-cli", ["-p", String(server.port)], [...commands, "nonsense", "get"].join("\n"));
  assertEquals(
    out.trimEnd().split(/\n+/),
    [
      "OK",
      "hello",
      "",
      "1",
      "2",
      "ERR value is not an integer or out of range",
      "2",
      "1",
      "1",
      "OK",
      "ERR value is not an integer or out of range",
      "OK",
      "0",
      "OK",
      "-9007199254740990",
      "OK",
      "ERR value is not an integer or out of range",
      "OK",
      "ERR value is not an integer or out of range",
      'ERR unknown command "NONSENSE"',
      "ERR wrong number of arguments for 'GET' command",
    ].filter((line) => line !== ""),
  );
  assertEquals(server.err, "");
});

Deno.test("examples/kv_server.ts keeps any bytes, up to its limit", needsPrograms(["redis-cli"]), async () => {
  await using server = await Server.example("kv_server");
  const args = ["-p", String(server.port)];
  const value = "grüß \r\n$5\r\n*1\r\n🙂".repeat(10_000);
  assertEquals((await client("redis-cli", [...args, "-x", "set", "k"], value)).out, "OK\n");
  assertEquals((await client("redis-cli", [...args, "--raw", "get", "k"])).out, `${value}\n`);
  const tooLong = await client("redis-cli", [...args, "-x", "set", "k"], "x".repeat(1 << 21));
  assertMatch(tooLong.out + tooLong.err, /Protocol error|closed|reset|Broken pipe/i);
  assertEquals((await client("redis-cli", [...args, "--raw", "get", "k"])).out, `${value}\n`);
});

Deno.test(
  "N7 examples/kv_server.ts gathers no more than a megabyte of words for one command",
  needs(WANTED),
  async () => {
    await using server = await Server.example("kv_server");
    using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
    const word = `$600000\r\n${"x".repeat(600_000)}\r\n`;
    const answered = readAll(conn);
    await say(conn, `*1024\r\n$3\r\nDEL\r\n${word}${word}`);
    await conn.closeWrite();
    assertEquals(await answered, "-ERR Protocol error: expected a number from 0 to 448573\r\n");
  },
);

Deno.test(
  "examples/kv_server.ts answers what it has done to a client that leaves in a command",
  needs(WANTED),
  async () => {
    await using server = await Server.example("kv_server");
    using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
    const answered = readAll(conn);
    await say(conn, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*1\r\n$4\r\nPI");
    await conn.closeWrite();
    assertEquals(await answered, "+OK\r\n");
  },
);

Deno.test("N7 examples/kv_server.ts holds few answers for who does not read them", needs(WANTED), async () => {
  await using server = await Server.example("kv_server");
  const memory = () => {
    const status = Deno.readTextFileSync(`/proc/${server.pid}/status`);
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * 1024;
  };
  const address = { hostname: "127.0.0.1", port: server.port };
  using first = await Deno.connect(address);
  await say(first, `*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\n${"x".repeat(1_000_000)}\r`);
  await first.read(new Uint8Array(5));
  const before = memory();
  const others: Deno.Conn[] = [];
  for (let i = 0; i < 4; i++) {
    const conn = await Deno.connect(address);
    others.push(conn);
    await say(conn, "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(64));
    await conn.read(new Uint8Array(1)); // It has begun to answer.
  }
  const grown = memory() - before;
  for (const conn of others) conn.close();
  assert(grown < 64e6, `${grown} bytes are held for four clients`);
});

Deno.test(
  "examples/kv_server.ts stands redis-benchmark with pipelines",
  needsPrograms(["redis-benchmark"]),
  async () => {
    await using server = await Server.example("kv_server");
    const args = ["-p", String(server.port), "-t", "set,get", "-P", "16", "-n", "20000", "--csv"];
    const { code, out } = await client("redis-benchmark", args);
    assertEquals(code, 0);
    assertMatch(out, /^"SET","[\d.]+"/m);
    assertMatch(out, /^"GET","[\d.]+"/m);
    assertEquals(server.err, "");
  },
);

Deno.test(
  "examples/kv_server.ts answers random bytes with an error or an end, never with a crash",
  needs(WANTED),
  async () => {
    await using server = await Server.example("kv_server");
    const address = { hostname: "127.0.0.1", port: server.port };
    const next = random(3);
    const parts = [
      "*",
      "$",
      "3",
      "-1",
      "\r\n",
      "\n",
      "SET",
      "GET",
      " ",
      "\0",
      "ÿ",
      "99999999999",
      "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    ];
    for (let round = 0; round < 200; round++) {
      using conn = await Deno.connect(address);
      const words = Array.from(
        { length: next(30) },
        () => next(4) ? parts[next(parts.length)] : String.fromCharCode(next(256)),
      );
      const answered = readAll(conn);
      await say(conn, words.join("")).then(() => conn.closeWrite()).catch(() => {}); // It may have been sent away by now.
      for (const reply of (await answered).split("\r\n")) assertMatch(reply, /^([-+:$*].*|k|)$/, words.join(""));
    }
    using conn = await Deno.connect(address);
    const answered = readAll(conn);
    await say(conn, "PING\r");
    await conn.closeWrite();
    assertEquals(await answered, "+PONG\r\n");
    assertEquals(server.err.replace(/^.*(ConnectionReset|BrokenPipe).*\n/gm, ""), "");
  },
);

async function readAll(conn: Deno.Conn): Promise<string> {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(65536);
  let all = "";
  try {
    for (let n; (n = await conn.read(buffer)) !== null;) all += decoder.decode(buffer.subarray(0, n), { stream: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
  }
  return all;
}

// ---- The proxy -----------------------------------------------------------------------------------------------------

/** A redis-server on a port of its own, which keeps nothing on disk. */
async function redisServer(): Promise<{ port: number } & AsyncDisposable> {
  using free = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = free.addr;
  free.close();
  const args = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"];
  const child = new Deno.Command("redis-server", { args, stdin: "null", stdout: "piped", stderr: "null" }).spawn();
  const out = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  for (let said = ""; !said.includes("Ready to accept connections");) {
    const { value, done } = await out.read();
    if (done) throw new Error(`Cannot start redis-server: ${said}`);
    said += value;
  }
  return {
    port,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      while (!(await out.read()).done);
      await child.status;
    },
  };
}

Deno.test("examples/tcp_proxy.ts between redis-cli, redis-benchmark and redis-server", {
  ...needsPrograms(["redis-server", "redis-cli", "redis-benchmark"]),
}, async () => {
  await using redis = await redisServer();
  await using server = await Server.start([example("tcp_proxy"), `127.0.0.1:${redis.port}`]);
  const args = ["-p", String(server.port)];
  assertEquals((await client("redis-cli", [...args, "set", "a", "hello"])).out, "OK\n");
  assertEquals((await client("redis-cli", [...args, "get", "a"])).out, "hello\n");
  const value = new TextDecoder().decode(noise.map((byte) => 65 + byte % 26));
  assertEquals((await client("redis-cli", [...args, "-x", "set", "b"], value)).out, "OK\n");
  assertEquals((await client("redis-cli", ["-p", String(redis.port), "get", "b"])).out, `${value}\n`);
  assertEquals((await client("redis-cli", [...args, "get", "b"])).out, `${value}\n`);
  const run = await client("redis-benchmark", [...args, "-t", "set,get", "-P", "16", "-n", "20000", "--csv"]);
  assertEquals(run.code, 0);
  assertMatch(run.out, /^"GET","[\d.]+"/m);
});

Deno.test(
  "examples/tcp_proxy.ts passes a half-close on, each direction for itself",
  needsPrograms(["nc"]),
  async () => {
    using target = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    await using server = await Server.start([example("tcp_proxy"), `127.0.0.1:${target.addr.port}`]);
    const text = "a line of text\n".repeat(20_000);
    const answer = client("nc", ["-N", "127.0.0.1", String(server.port)], text);
    using conn = await target.accept();
    const received = await readAll(conn); // to the end: nc has closed its side
    await conn.write(new TextEncoder().encode(`${received.length} bytes\n`));
    conn.closeWrite();
    assertEquals((await answer).out, `${text.length} bytes\n`);
    assertEquals(server.err, "");
  },
);

Deno.test(
  "examples/tcp_proxy.ts closes the client if nobody listens at the other end",
  needsPrograms(["nc"]),
  async () => {
    using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = taken.addr;
    taken.close();
    await using server = await Server.start([example("tcp_proxy"), `127.0.0.1:${port}`]);
    assertEquals((await client("nc", ["-N", "127.0.0.1", String(server.port)])).out, "");
    await server.until("an error", () => server.err.includes("ConnectionRefused"));
  },
);

Deno.test(
  "T3 examples/tcp_proxy.ts cuts who is silent in both directions, half-closed or not, and who is not read",
  needs({ ...WANTED, write: true }),
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      const source = await Deno.readTextFile(example("tcp_proxy"));
      const hasty = source.replace("5 * 60_000", "50").replace("../mod.ts", new URL("../mod.ts", import.meta.url).href);
      assert(hasty.includes("IDLE_TIMEOUT = 50;"));
      await Deno.writeTextFile(`${folder}/proxy.ts`, hasty);
      using target = Deno.listen({ hostname: "127.0.0.1", port: 0 });
      await using server = await Server.start([`${folder}/proxy.ts`, `127.0.0.1:${target.addr.port}`]);
      for (const way of ["silent", "half-closed", "not read"]) {
        using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
        using far = await target.accept();
        if (way === "half-closed") await conn.closeWrite();
        if (way === "not read") await assertRejects(() => flow(far));
        else assertEquals([await readAll(conn), await readAll(far)], ["", ""], way);
      }
      await server.until("all three reports", () => server.err.split("Nothing was said for 50 ms").length === 4);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

/** Sends without end. */
async function flow(conn: Deno.Conn): Promise<never> {
  for (;;) await conn.write(noise);
}

Deno.test("N11 examples/tcp_proxy.ts passes TLS through for curl", needsPrograms(["curl"]), async () => {
  const pem = (name: string) => new URL(`./tls/${name}`, import.meta.url).pathname;
  const [cert, key] = await Promise.all(["localhost.pem", "localhost.key"].map((name) => Deno.readTextFile(pem(name))));
  const options = { hostname: "127.0.0.1", port: 0, cert, key, onListen() {} };
  await using site = Deno.serve(options, () => new Response("hello"));
  await using server = await Server.start([example("tcp_proxy"), `127.0.0.1:${site.addr.port}`]);
  const { out, err } = await client("curl", ["-sS", "--cacert", pem("ca.pem"), `https://127.0.0.1:${server.port}/`]);
  assertEquals([out, err], ["hello", ""]);
});

// ---- The file server -----------------------------------------------------------------------------------------------

async function fileServer(): Promise<Server> {
  const root = new URL("..", import.meta.url).pathname;
  return await Server.start(["--allow-read", example("file_server"), root]);
}

Deno.test(
  "examples/file_server.ts serves files to curl, several on one connection",
  needsPrograms(["curl"]),
  async () => {
    await using server = await fileServer();
    const base = `http://127.0.0.1:${server.port}`;
    const { out, err } = await client("curl", ["-sSv", `${base}/LICENSE`, `${base}/loop.ts?x=1`]);
    const files = await Promise.all(
      ["LICENSE", "loop.ts"].map((name) => Deno.readTextFile(new URL(`../${name}`, import.meta.url))),
    );
    assertEquals(out, files.join(""));
    assertMatch(err, /re-?us/i);
    assertStringIncludes(err, "application/typescript");
    const head = await client("curl", ["-sSI", `${base}/loop.ts`]);
    assertStringIncludes(head.out, `Content-Length: ${new TextEncoder().encode(files[1]).length}\r\n`);
    assertEquals(server.err, "");
  },
);

Deno.test(
  "examples/file_server.ts stands wrk: twenty connections for a second, no error and no answer but the file",
  needsPrograms(["wrk"]),
  async () => {
    await using server = await fileServer();
    const args = ["-t", "1", "-c", "20", "-d", "1s", "--timeout", "10s", `http://127.0.0.1:${server.port}/LICENSE`];
    const { code, out, err } = await client("wrk", args);
    assertEquals([code, err], [0, ""]);
    // It tells of errors, and of other answers than 2xx and 3xx, only where there were any.
    assert(!/Socket errors|Non-2xx/.test(out), out);
    assert(Number(/(\d+) requests in/.exec(out)?.[1]) >= 20, out);
    using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
    await say(conn, "GET /LICENSE HTTP/1.0\r\n\r");
    assertMatch(await readAll(conn), /^HTTP\/1\.1 200 OK\r\n/); // It is still there.
    // The connections that wrk cut off in the middle of an answer may be told of; nothing else.
    assertEquals(server.err.replace(/^.*(ConnectionReset|BrokenPipe).*\n/gm, ""), "");
  },
);

Deno.test(
  "examples/file_server.ts sends large files whole, also to a slow reader",
  needsPrograms(["curl"]),
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      const data = new Uint8Array(16 * noise.length);
      for (let at = 0; at < data.length; at += noise.length) data.set(noise, at);
      await Deno.writeFile(`${folder}/large`, data);
      await using server = await Server.start(["--allow-read", example("file_server"), folder]);
      const args = ["-sS", "--limit-rate", "40M", "-o", `${folder}/copy`, `http://127.0.0.1:${server.port}/large`];
      assertEquals(await client("curl", args), { code: 0, out: "", err: "" });
      const copy = await Deno.readFile(`${folder}/copy`);
      assert(copy.length === data.length && copy.every((byte, i) => byte === data[i]));
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test(
  "examples/file_server.ts says what is wrong, and shows nothing outside its folder",
  needsPrograms(["curl"]),
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      await Deno.mkdir(`${folder}/site`);
      await Deno.writeTextFile(`${folder}/secret`, "secret");
      await Deno.symlink(`${folder}/secret`, `${folder}/site/link`);
      await using server = await Server.start(["--allow-read", example("file_server"), `${folder}/site`]);
      const base = `http://127.0.0.1:${server.port}`;
      const status = async (...args: string[]) => {
        const { out } = await client("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", ...args]);
        return Number(out);
      };
      assertEquals(await status(`${base}/nothing`), 404);
      assertEquals(await status(`${base}/`), 404);
      for (const path of ["/link", "/../secret", "/..%2fsecret", "/%2e%2e/secret"]) {
        assertEquals(await status(base + path), 404, path);
      }
      assertEquals(await status(`${base}/%ff`), 400);
      assertEquals(await status("-X", "DELETE", `${base}/`), 405);
      assertEquals(await status("-d", "a body", "-X", "GET", `${base}/`), 413);
      for (const [fields, code] of [["Content-Length: 9\r\nContent-Length: 0", 413], ["Content-Length : 9", 400]]) {
        assertMatch(await converse(server, `GET / HTTP/1.1\r\n${fields}\r\n\r\n`), new RegExp(`^HTTP/1.1 ${code} `));
      }
      assertEquals(await status("-H", `x: ${"y".repeat(20_000)}`, `${base}/`), 431);
      assertEquals(server.err, "");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("examples/file_server.ts answers HEAD with a head alone, and ends the connection when asked to", {
  ...needs({ ...WANTED, write: true }),
}, async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/index.html`, "hello\n");
    await using server = await Server.start(["--allow-read", example("file_server"), folder]);
    for (const [request, line] of [["/nothing", "404 Not Found"], ["/%ff", "400 Bad Request"]]) {
      const [head, rest] = (await converse(server, `HEAD ${request} HTTP/1.1\r\n\r\n`)).split("\r\n\r\n");
      assertEquals([head.split("\r\n")[0], rest], [`HTTP/1.1 ${line}`, ""]);
    }
    const twice = "GET / HTTP/1.1\r\nConnection: Close, TE\r\n\r\n".repeat(2);
    assertEquals((await converse(server, twice)).split("hello").length, 2);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test(
  "examples/file_server.ts opens no pipe, which would hold up everybody",
  needsPrograms(["mkfifo"], { net: true, write: true }),
  async () => {
    const folder = await Deno.makeTempDir();
    try {
      await client("mkfifo", [`${folder}/pipe`]);
      await Deno.writeTextFile(`${folder}/index.html`, "hello\n");
      await using server = await Server.start(["--allow-read", example("file_server"), folder]);
      assertMatch(await converse(server, "GET /pipe HTTP/1.0\r\n\r\n"), /^HTTP\/1\.1 404 /);
      assertMatch(await converse(server, "GET / HTTP/1.0\r\n\r\n"), /hello\n$/);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

Deno.test("examples/file_server.ts serves the root of the file system too", needs(WANTED), async () => {
  await using server = await Server.start(["--allow-read", example("file_server"), "/"]);
  const path = new URL("../LICENSE", import.meta.url).pathname;
  assertMatch(await converse(server, `GET ${path} HTTP/1.0\r\n\r\n`), /^HTTP\/1\.1 200 OK\r\n/);
});

/** Sends `request` and returns all of the answer; the server has to end the connection, five seconds are given to it. */
async function converse(server: Server, request: string): Promise<string> {
  using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
  const timer = setTimeout(() => conn.close(), 5000);
  try {
    await conn.write(new TextEncoder().encode(request));
    return await readAll(conn);
  } finally {
    clearTimeout(timer);
  }
}
