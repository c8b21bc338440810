/**
 * Every program in `examples/`, started as its header says and driven by real clients.
 *
 * Nothing here waits for a time. That a client had to wait is shown by the order of events: others got their answers,
 * or the server printed its lines, while it had none.
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { connect as nodeConnect } from "node:net";
import { hasProgram, needs, needsPrograms } from "./permissions.ts";
import { Client, example, noise, resetWhileOpen, run, sendSource, Server } from "./server_process.ts";

/** The servers that serve many clients at once. */
const CONCURRENT = ["echo", "echo_stream", "trace", "echo_async", "echo_select", "echo_thread"];
const ALL = [...CONCURRENT, "echo_blocking"];

const WANTED = { net: true, run: true, read: true } as const;

for (const name of ALL) {
  const title = `examples/${name}.ts`;

  Deno.test(`${title} answers "Got: " and prints who comes and goes`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    using client = await Client.connect(server.port);
    await client.say("hello");
    await client.say("yield");
    client.conn.close();
    await server.untilCount("connection closed", 1);
    const lines = server.out.filter((line) => !line.startsWith("task "));
    assertEquals(lines, [`listening on 127.0.0.1:${server.port}`, `connect from ${client.name}`, "connection closed"]);
    assertEquals(server.err, "");
  });

  Deno.test(`${title} answers a long first message as a whole`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    using conn = await Deno.connect({ hostname: "127.0.0.1", port: server.port });
    const story = "a long story".repeat(400);
    await conn.write(new TextEncoder().encode(story));
    await conn.closeWrite();
    assertEquals(await new Response(conn.readable).text(), `Got: ${story}`);
  });

  Deno.test(`${title} returns every byte, also after the client has ended its side`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    using client = await Client.connect(server.port);
    await client.exchange(noise);
    await server.untilCount("connection closed", 1);
    assertEquals(server.err, "");
  });

  Deno.test(`N6 ${title} goes on after clients that reset the connection`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    await resetWhileOpen(server.port);
    await server.until("an error", () => /ConnectionReset|BrokenPipe/.test(server.err));
    await resetUnaccepted(server, 50);
    using next = await Client.connect(server.port);
    await next.say("still there");
    assertEquals(server.count("listening"), 1);
  });

  Deno.test(`${title} says what is wrong with its port, and ends with 1`, needs(WANTED), async () => {
    using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const [inUse, outOfRange, noNumber, denied] = await Promise.all([
      run(["--allow-net", example(name), String(taken.addr.port)]),
      run(["--allow-net", example(name), "70000"]),
      run(["--allow-net", example(name), "nonsense"]),
      run([example(name)]),
    ]);
    assertStringIncludes(inUse.err, "AddrInUse");
    assertStringIncludes(outOfRange.err, "RangeError");
    assertStringIncludes(outOfRange.err, "70000");
    assertStringIncludes(noNumber.err, "port");
    assertStringIncludes(noNumber.err, "NaN");
    assertStringIncludes(denied.err, `Requires net access to "127.0.0.1:25000"`);
    assertStringIncludes(denied.err, "--allow-net");
    for (const outcome of [inUse, outOfRange, noNumber, denied]) {
      assertEquals(outcome.code, 1);
      assertEquals(outcome.out, "");
    }
  });

  Deno.test(`${title} serves nc`, needsPrograms(["nc"]), async () => {
    await drive(name, "nc", (port) => ["-N", "127.0.0.1", String(port)]);
  });

  Deno.test(`${title} serves socat`, needsPrograms(["socat"]), async () => {
    await drive(name, "socat", (port) => ["-t5", "-", `TCP:127.0.0.1:${port}`]);
  });
}

for (const name of CONCURRENT) {
  const title = `examples/${name}.ts`;

  Deno.test(`${title} serves a client while others are silent`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    using silent = await Client.connect(server.port);
    await server.untilCount("connect from", 1);
    using client = await Client.connect(server.port);
    await client.say("hello");
    await silent.say("not silent any more");
  });

  Deno.test(`N7 ${title} serves a client while another does not read its answers`, needs(WANTED), async () => {
    await using server = await Server.example(name);
    using flood = await Client.connect(server.port);
    const flooding = sendMuch(flood, 64);
    using client = await Client.connect(server.port);
    for (let i = 0; i < 20; i++) await client.say("hello");
    flood.conn.close();
    assert(await flooding < 64 * noise.length, "the server took everything from a client that does not read");
    await client.say("hello");
  });
}

Deno.test("examples/echo_blocking.ts lets the second client wait for the first to leave", needs(WANTED), async () => {
  await using server = await Server.example("echo_blocking");
  using first = await Client.connect(server.port);
  await first.say("I am the first");
  using second = await Client.connect(server.port);
  let answered = false;
  const answer = second.say("I am the second").then(() => answered = true);
  for (let i = 0; i < 50; i++) {
    await first.say("I am the first");
    assert(!answered, "the second client did not wait");
  }
  first.conn.close();
  await answer;
  second.conn.close();
  await server.untilCount("connection closed", 2);
  assertEquals(server.out.slice(1), [
    `connect from ${first.name}`,
    "connection closed",
    `connect from ${second.name}`,
    "connection closed",
  ]);
});

Deno.test("examples/echo_thread.ts computes for one client while it answers another", needs(WANTED), async () => {
  await using server = await Server.example("echo_thread");
  using busy = await Client.connect(server.port);
  using client = await Client.connect(server.port);
  await busy.say("hello"); // Both threads are up.
  await client.say("hello");
  let burnt = false;
  const burning = busy.say("burn 300").then(() => burnt = true);
  let answers = 0;
  while (!burnt) {
    await client.say("hello");
    if (!burnt) answers++;
  }
  await burning;
  assert(answers > 1, `only ${answers} answers came while the other thread was busy`);
});

Deno.test("examples/trace.ts prints every op of every task as it happens", needs(WANTED), async () => {
  await using server = await Server.example("trace");
  using client = await Client.connect(server.port);
  await client.say("hello");
  client.conn.close();
  await server.untilCount("connection closed", 1);
  const task = `task 2 "${client.name}"`;
  assertEquals(server.out, [
    `listening on 127.0.0.1:${server.port}`,
    `task 1 "server": read_wait listener 1`,
    `connect from ${client.name}`,
    `task 1 "server": read_wait listener 1`,
    `${task}: read_wait socket 2`,
    `${task}: write_wait socket 2`,
    `${task}: read_wait socket 2`,
    "connection closed",
  ]);
});

Deno.test(
  "K14 examples/async_yield.ts steps a coroutine by hand, and its comments are true",
  needs(WANTED),
  async () => {
    const { code, out, err } = await run([example("async_yield")]);
    assertEquals(err, "");
    assertEquals(code, 0);
    const source = await Deno.readTextFile(example("async_yield"));
    const promised = [...source.matchAll(/^ *console\.log\(.*\); \/\/ +(.*)$/gm)].map(([, comment]) => comment);
    assertEquals(out.trimEnd().split("\n"), promised);
    assertEquals(promised.slice(1, 3), [`[ "read_wait", "somesocket" ]`, "true"]);
  },
);

Deno.test(
  "every example that serves runs by URL with the same permission",
  needs({ ...WANTED, write: true }),
  async () => {
    await using site = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, sendSource);
    const cache = await Deno.makeTempDir();
    try {
      for (const name of ALL) {
        const url = `http://127.0.0.1:${site.addr.port}/examples/${name}.ts`;
        await using server = await Server.start(["--no-config", url], { DENO_DIR: cache });
        using client = await Client.connect(server.port);
        await client.say("hello");
      }
    } finally {
      await Deno.remove(cache, { recursive: true });
    }
  },
);

Deno.test("a host that does not resolve is a clear error, and ends a program with 1", needs(WANTED), async () => {
  const mod = new URL("../mod.ts", import.meta.url).href;
  const program = (text: string) =>
    run([
      "--allow-net",
      `data:application/typescript,${encodeURIComponent(`import { connect, listen, Loop } from "${mod}";${text}`)}`,
    ]);
  const outcomes = await Promise.all([
    program(`listen({ hostname: "no-such-host.invalid", port: 0 });`),
    program(`await new Loop().run(connect({ hostname: "no-such-host.invalid", port: 25000 }));`),
  ]);
  for (const { code, err } of outcomes) {
    assertEquals(code, 1);
    assertStringIncludes(err, "failed to lookup address");
  }
});

/** Has a program nobody here wrote type a line, read its answer and end its side. */
async function drive(name: string, program: string, args: (port: number) => string[]): Promise<void> {
  assert(hasProgram(program));
  await using server = await Server.example(name);
  const command = new Deno.Command(program, { args: args(server.port), stdin: "piped", stdout: "piped" });
  await using child = command.spawn();
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  await writer.write(new TextEncoder().encode("hello\n"));
  let answer = "";
  while (!answer.endsWith("\n")) {
    const { value, done } = await reader.read();
    if (done) break;
    answer += value;
  }
  assertEquals(answer, "Got: hello\n");
  await writer.close();
  assertEquals((await reader.read()).done, true);
  assertEquals((await child.status).code, 0);
  await server.untilCount("connection closed", 1);
}

/** Stops the server, connects, resets, and lets it go on: it finds connections that are gone before it accepts them. */
async function resetUnaccepted(server: Server, n: number): Promise<void> {
  server.signal("SIGSTOP");
  for (let i = 0; i < n; i++) {
    await new Promise<void>((resolve) => {
      const socket = nodeConnect(server.port, "127.0.0.1", () => socket.resetAndDestroy());
      socket.on("close", () => resolve());
    });
  }
  server.signal("SIGCONT");
}

/** Sends `noise` so many times without reading, until the connection is closed; returns how much was taken. */
async function sendMuch(client: Client, times: number): Promise<number> {
  let sent = 0;
  try {
    while (sent < times * noise.length) sent += await client.conn.write(noise);
  } catch (error) {
    assert(error instanceof Error && !(error instanceof TypeError), String(error));
  }
  return sent;
}
