/**
 * The rules ST1 to ST5 of streams, on a socket in memory whose peer is the test; and streams over real sockets at the end.
 */

import { assert, assertEquals, assertInstanceOf, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { Buffer } from "node:buffer";
import {
  all,
  BusyError,
  type Cancelled,
  cancelScope,
  checkpoint,
  ClosedError,
  connect,
  type Coroutine,
  EVENT_WRITE,
  failAfter,
  IncompleteReadError,
  LimitError,
  listen,
  Loop,
  moveOnAfter,
  runningLoop,
  serve,
  type ServeListener,
  sleep,
  socketPair,
  Stream,
  type StreamOptions,
  TaskError,
  TimeoutError,
  until,
  WouldBlock,
} from "../mod.ts";
import { battery } from "./net_transports.ts";
import { needs } from "./permissions.ts";
import { PieceSocket } from "./pieces.ts";
import { bytes, platformTurn, random, simulate, text, thrownBy } from "./world.ts";

/** A stream of these pieces that then ends. */
function ended(pieces: (string | Uint8Array)[], options?: StreamOptions): Stream {
  return new Stream(new PieceSocket(...pieces).end(), options);
}

function run<T>(main: () => Coroutine<T>): Promise<T> {
  return simulate(main);
}

function* lines(stream: Stream): Coroutine<string[]> {
  const found: string[] = [];
  for (let line; (line = yield* stream.readLine()) !== null;) found.push(line);
  return found;
}

/** The error that `coro` throws. */
function* thrown<E extends Error>(kind: new (...args: any[]) => E, coro: Coroutine<unknown>): Coroutine<E> {
  try {
    yield* coro;
  } catch (error) {
    assertInstanceOf(error, kind);
    return error as E;
  }
  throw new Error(`Expected ${kind.name} to be thrown`);
}

// ---- Lines ---------------------------------------------------------------------------------------------------------

Deno.test("ST1 readLine joins a line that came in several packets", async () => {
  assertEquals(await run(() => lines(ended(["one l", "ine", "\ntwo\n"]))), ["one line", "two"]);
});

Deno.test("ST1 readLine finds several lines in one packet", async () => {
  assertEquals(await run(() => lines(ended(["a\nb\n\nc\n"]))), ["a", "b", "", "c"]);
});

Deno.test("ST1 readLine takes \\n and \\r\\n as the end, also if the two are cut apart; a lone \\r is text", async () => {
  assertEquals(await run(() => lines(ended(["a\r\nb\nc\r", "\nd\re\n\r\n"]))), ["a", "b", "c", "d\re", ""]);
});

Deno.test("ST1 the last line needs no newline, and an empty one is none", async () => {
  assertEquals(await run(() => lines(ended(["a\nb"]))), ["a", "b"]);
  assertEquals(await run(() => lines(ended(["a\n"]))), ["a"]);
  assertEquals(await run(() => lines(ended([]))), []);
});

Deno.test("ST1 readLine at end of stream is null, again and again", async () => {
  await run(function* () {
    const stream = ended(["a"]);
    assertEquals(yield* stream.readLine(), "a");
    for (let i = 0; i < 3; i++) assertEquals(yield* stream.readLine(), null);
    assertEquals((yield* stream.read()).length, 0);
  });
});

Deno.test("ST1 a line of exactly limit bytes is fine, one of a byte more is not, whatever ends it", async () => {
  for (const end of ["\n", "\r\n"]) {
    for (const pieces of [[`12345678${end}`], [..."12345678", ...end], [`12345678${end[0]}`, end.slice(1)]]) {
      await run(function* () {
        assertEquals(yield* ended(pieces, { limit: 8 }).readLine(), "12345678");
        assertEquals((yield* thrown(LimitError, ended(pieces, { limit: 7 }).readLine())).limit, 7);
      });
    }
  }
});

Deno.test("ST1 what could have become a line's end or a delimiter, and did not, counts", async () => {
  await run(function* () {
    for (const pieces of [["12345\r"], [..."12345\r"]]) {
      assertEquals(yield* ended(pieces, { limit: 6 }).readLine(), "12345\r");
      const stream = ended(pieces, { limit: 5 });
      yield* thrown(LimitError, stream.readLine());
      assertEquals(yield* stream.readLine(), null);
    }
    for (const pieces of [["12345abc"], [..."12345abc"]]) {
      const { partial } = yield* thrown(IncompleteReadError, ended(pieces, { limit: 8 }).readUntil("abcd"));
      assertEquals(partial.length, 8);
      const stream = ended(pieces, { limit: 7 });
      yield* thrown(LimitError, stream.readUntil("abcd"));
      assertEquals((yield* stream.readAll()).length, 0);
    }
  });
});

Deno.test("ST1 limit exceeded: LimitError, and the stream goes on with the next line", async () => {
  const whole = "123456789\nshort\r\n123456789\r\nlast";
  for (const pieces of [[whole], [...whole], ["12345678", "9", "\nsho", "rt\r\n123456789\r", "\nlast"]]) {
    await run(function* () {
      const stream = ended(pieces, { limit: 8 });
      yield* thrown(LimitError, stream.readLine());
      assertEquals(yield* stream.readLine(), "short");
      yield* thrown(LimitError, stream.readLine());
      assertEquals(yield* stream.readLine(), "last");
      assertEquals(yield* stream.readLine(), null);
    });
  }
});

Deno.test("ST1 the LimitError comes as soon as the line is too long, without waiting for its end", async () => {
  await run(function* () {
    const sock = new PieceSocket("123456789");
    const stream = new Stream(sock, { limit: 8 });
    const error = yield* thrown(LimitError, failAfter(10, stream.readLine()));
    assertEquals(error.name, "LimitError");
    assertEquals(error.message, "Cannot read a line: it is longer than the limit of 8 bytes");
    assertEquals(stream.buffered, 0); // What no read will return does not count.
    const split = ended([`${"x".repeat(60)}\r`], { limit: 20 });
    yield* thrown(LimitError, split.readUntil("\r\n\r\n"));
    assertEquals(split.buffered, 0); // Nor does what may be a part of the delimiter.
    const over = ended(["123456789\nnext"], { limit: 8 });
    yield* thrown(LimitError, over.readLine());
    assertEquals(over.buffered, 4); // But what is behind it does.
    // The rest is dropped by whatever reads next, also if that is cancelled meanwhile.
    sock.feed("abc");
    assertEquals(yield* moveOnAfter(10, stream.readLine()), undefined);
    sock.feed("def\nnext");
    assertEquals(text(yield* stream.read()), "next");
  });
});

Deno.test("ST1 a line that is too long and never ends holds no memory and ends with the stream", async () => {
  await run(function* () {
    const stream = ended(Array(1000).fill("x".repeat(1000)), { limit: 8 });
    yield* thrown(LimitError, stream.readLine());
    assertEquals(yield* stream.readLine(), null);
  });
});

Deno.test("ST1 the default limit of a line is 64 KiB", async () => {
  await run(function* () {
    assertEquals((yield* ended(["x".repeat(65536) + "\n"]).readLine())!.length, 65536);
    yield* thrown(LimitError, ended(["x".repeat(65537) + "\n"]).readLine());
  });
});

// ---- Exactly so many bytes -----------------------------------------------------------------------------------------

Deno.test("ST2 readExactly takes exactly so many bytes, from many packets or from a part of one", async () => {
  await run(function* () {
    const stream = ended(["ab", "c", "defgh"]);
    assertEquals(text(yield* stream.readExactly(4)), "abcd");
    assertEquals(text(yield* stream.readExactly(0)), "");
    assertEquals(text(yield* stream.readExactly(4)), "efgh");
    assertEquals(text(yield* stream.readExactly(0)), "");
  });
});

Deno.test("ST2 a buffer of which the front was taken grows when its end is reached", async () => {
  await run(function* () {
    const sizes = [100, 100, 900, 300, 9000]; // The third fits into what it has, but not behind what is there.
    const sock = new PieceSocket(...sizes.map((size, i) => String(i).repeat(size))).end();
    const stream = new Stream(sock);
    assertEquals(text(yield* stream.readExactly(150)), "0".repeat(100) + "1".repeat(50));
    const rest = "1".repeat(50) + "2".repeat(900) + "3".repeat(300) + "4".repeat(9000);
    assertEquals(text(yield* stream.readExactly(1000)), rest.slice(0, 1000));
    assertEquals(text(yield* stream.readExactly(9250)), rest.slice(1000));
  });
});

Deno.test("ST2 an early end is IncompleteReadError with what there was, which is taken", async () => {
  await run(function* () {
    const stream = ended(["ab", "c"]);
    const error = yield* thrown(IncompleteReadError, stream.readExactly(5));
    assertEquals(error.name, "IncompleteReadError");
    assertEquals(error.message, "Cannot read all of 5 bytes: the stream ended after 3 bytes");
    assertEquals([text(error.partial), error.expected], ["abc", 5]);
    assertEquals((yield* stream.read()).length, 0);
    assertEquals((yield* thrown(IncompleteReadError, stream.readExactly(1))).partial.length, 0);
  });
});

Deno.test("ST2 a readExactly that timed out leaves the bytes to the next read", async () => {
  await run(function* () {
    const sock = new PieceSocket("ab", "c");
    const stream = new Stream(sock);
    yield* thrown(TimeoutError, failAfter(10, stream.readExactly(5)));
    sock.feed("de");
    assertEquals(text(yield* stream.readExactly(5)), "abcde");
  });
});

Deno.test("ST2 C7 every kind of read, cancelled at any moment, leaves every byte to the next", async () => {
  const reads: ((stream: Stream) => Coroutine<unknown>)[] = [
    (stream) => stream.readLine(),
    (stream) => stream.readExactly(9),
    (stream) => stream.readUntil("!"),
    (stream) => stream.readAll(),
  ];
  for (const [i, read] of reads.entries()) {
    for (let steps = 0; steps < 8; steps++) {
      await simulate(function* ({ loop }) {
        const sock = new PieceSocket("ab", "cd", "ef");
        const stream = new Stream(sock);
        const task = loop.createTask(read(stream));
        for (let step = 0; step < steps; step++) yield* checkpoint();
        task.cancel();
        yield* task.wait();
        assert(task.cancelled);
        sock.feed("g").end();
        assertEquals(text(yield* stream.readAll()), "abcdefg", `read ${i} cancelled after ${steps} turns`);
      });
    }
  }
});

Deno.test("ST2 C7 a read of what is in the buffer already is a place to be cancelled, and takes nothing then", async () => {
  await simulate(function* ({ loop }) {
    const stream = new Stream(new PieceSocket("ab\ncd\n"));
    assertEquals(yield* stream.readLine(), "ab");
    const task = loop.createTask(stream.readLine());
    task.cancel();
    yield* task.wait();
    assertEquals(yield* stream.readLine(), "cd");
  });
});

// ---- Up to a delimiter, and all ------------------------------------------------------------------------------------

Deno.test("ST3 readUntil finds a delimiter that falls across chunks, and returns it with what is before it", async () => {
  const whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
  for (let cut = 0; cut <= whole.length; cut++) {
    await run(function* () {
      const stream = ended([whole.slice(0, cut), whole.slice(cut)].filter((piece) => piece));
      assertEquals(text(yield* stream.readUntil("\r\n\r\n")), whole.slice(0, -4));
      assertEquals(text(yield* stream.readAll()), "body");
    });
  }
});

Deno.test("ST3 readUntil is not led astray by a false start of the delimiter", async () => {
  for (const pieces of [["aab-aaab-x"], [..."aab-aaab-x"]]) {
    await run(function* () {
      const stream = ended(pieces);
      assertEquals(text(yield* stream.readUntil(bytes("aaab"))), "aab-aaab");
      assertEquals(text(yield* stream.readUntil("-")), "-");
      const error = yield* thrown(IncompleteReadError, stream.readUntil("-"));
      assertEquals(error.message, "Cannot read the delimiter: the stream ended after 1 bytes");
      assertEquals([text(error.partial), error.expected], ["x", null]);
    });
  }
});

Deno.test("ST3 readUntil finds a delimiter that begins within a false start, and that within another", async () => {
  // Where "aabaaa" does not go on as wanted, its last "aa" may still be a beginning. To know that, the delimiter is looked
  // for in itself, and "aab" turns out to be a false start there; as "abab" does in the second, and "ab" in that.
  for (const [delimiter, found] of [["aabaaaa", "aabaaabaaaa"], ["ababaaa", "ababaababaaa"]]) {
    for (const pieces of [[`${found}-x`], [...`${found}-x`]]) {
      await run(function* () {
        const stream = ended(pieces);
        assertEquals(text(yield* stream.readUntil(delimiter)), found);
        assertEquals(text(yield* stream.readAll()), "-x");
      });
    }
  }
});

Deno.test("ST3 ST4 readUntil finds delimiters that repeat themselves, however the bytes are cut", async () => {
  const next = random(3);
  await run(function* () {
    for (let round = 0; round < 1000; round++) {
      const word = (length: number) => Array.from({ length }, () => "ab"[next(2)]).join("");
      const delimiter = word(1 + next(6));
      const whole = word(next(60));
      const cuts = Array.from({ length: next(10) }, () => next(whole.length + 1));
      const stream = ended(cutAt(bytes(whole), cuts));
      const parts: string[] = [];
      let from = 0;
      for (let at; (at = whole.indexOf(delimiter, from)) >= 0; from = at + delimiter.length) {
        parts.push(whole.slice(from, at + delimiter.length));
      }
      for (const part of parts) assertEquals(text(yield* stream.readUntil(delimiter)), part);
      assertEquals(text(yield* stream.readAll()), whole.slice(from), `${whole} by ${delimiter} cut at ${cuts}`);
    }
  });
});

Deno.test("ST3 readUntil has the limit of lines: what is too long is dropped with its delimiter", async () => {
  const whole = "12345678--123456789--abc--";
  for (const pieces of [[whole], [...whole]]) {
    await run(function* () {
      const stream = ended(pieces, { limit: 8 });
      assertEquals(text(yield* stream.readUntil("--")), "12345678--");
      assertEquals((yield* thrown(LimitError, stream.readUntil("--"))).limit, 8);
      assertEquals(text(yield* stream.readUntil("--")), "abc--");
    });
  }
  await run(function* () {
    // Only in lines does a \r belong to the end.
    yield* thrown(LimitError, ended(["12345678\r--"], { limit: 8 }).readUntil("--"));
  });
});

Deno.test("ST3 the caller of readUntil may change the delimiter", async () => {
  await run(function* () {
    const stream = ended(["toolong", ";next", " line;last"], { limit: 4 });
    const delimiter = bytes(";");
    yield* thrown(LimitError, stream.readUntil(delimiter));
    delimiter[0] = 10;
    assertEquals(text(yield* stream.readUntil("x")), "nex");
  });
  await simulate(function* ({ loop }) {
    const sock = new PieceSocket("one");
    const delimiter = Buffer.from("--"); // Its `slice` is no copy.
    const reading = loop.createTask(new Stream(sock).readUntil(delimiter));
    yield* sleep(1);
    delimiter.fill(0);
    sock.feed("--two--");
    assertEquals(text(yield* reading.join()), "one--");
  });
});

Deno.test("ST3 readAll with a limit: LimitError beyond it, and what has arrived can still be read", async () => {
  await run(function* () {
    assertEquals(text(yield* ended(["abc", "de"], { limit: 5 }).readAll()), "abcde");
    assertEquals(text(yield* ended(["abc", "de"]).readAll(5)), "abcde");
    assertEquals((yield* ended([]).readAll(0)).length, 0);
    const stream = ended(["abc", "def", "ghi"], { limit: 5 });
    assertEquals((yield* thrown(LimitError, stream.readAll())).limit, 5);
    assertEquals(text(yield* stream.readAll(100)), "abcdefghi");
    assertEquals((yield* stream.readAll()).length, 0);
    const large = Array(20).fill("x".repeat(10_000));
    assertEquals((yield* ended(large).readAll()).length, 200_000);
  });
});

Deno.test("ST3 read after readLine gives the rest of the packet, then what comes next", async () => {
  await run(function* () {
    const piece = bytes("one\nrest");
    const stream = ended([piece, "next"]);
    assertEquals(yield* stream.readLine(), "one");
    const part = yield* stream.read(2);
    assertEquals([text(part), part.buffer === piece.buffer], ["re", true]); // It was not copied.
    assertEquals(text(yield* stream.read()), "st");
    assertEquals(text(yield* stream.read(3)), "nex");
    assertEquals(stream.buffered, 0); // The socket was not asked for more.
    assertEquals(text(yield* stream.read()), "t");
    assertEquals((yield* stream.read()).length, 0);
  });
});

Deno.test("ST3 what was read stays as it was while more is put together behind it", async () => {
  await run(function* () {
    const stream = ended(["ab", "cd", "efghij", "klmnop"]);
    const first = yield* stream.readExactly(3);
    const second = yield* stream.readExactly(3);
    const third = yield* stream.readExactly(6);
    yield* stream.readAll();
    assertEquals([first, second, third].map(text), ["abc", "def", "ghijkl"]);
  });
});

Deno.test("ST3 an early end of readUntil takes what there was", async () => {
  await run(function* () {
    const stream = ended(["rest"]);
    assertEquals(text((yield* thrown(IncompleteReadError, stream.readUntil("|"))).partial), "rest");
    assertEquals((yield* stream.read()).length, 0);
  });
});

// ---- Cuts ----------------------------------------------------------------------------------------------------------

const PARTS = ["\n", "\r\n", "\r", "\n\n", "a", "bc", "ä", "中", "🙂", "\u{feff}", "a long word", "", "--", "-"];

function randomText(next: (n: number) => number): string {
  return Array.from({ length: 1 + next(12) }, () => PARTS[next(PARTS.length)]).join("");
}

function cutAt(data: Uint8Array, cuts: number[]): Uint8Array[] {
  const borders = [0, ...cuts.toSorted((a, b) => a - b), data.length];
  return borders.slice(1).map((to, i) => data.subarray(borders[i], to)).filter((piece) => piece.length > 0);
}

/** What lines a text has, said in another way than the stream does. */
function expectedLines(data: string): string[] {
  const found = data.split("\n");
  const last = found.pop()!;
  return [...found.map((line) => line.endsWith("\r") ? line.slice(0, -1) : line), ...(last ? [last] : [])];
}

Deno.test("ST4 ST5 a byte stream cut at every possible place gives the same lines", async () => {
  const next = random(1);
  await run(function* () {
    for (let round = 0; round < 60; round++) {
      const data = randomText(next);
      const raw = bytes(data);
      const expected = expectedLines(data);
      for (let cut = 0; cut <= raw.length; cut++) {
        assertEquals(yield* lines(ended(cutAt(raw, [cut]))), expected, `${JSON.stringify(data)} cut at ${cut}`);
      }
      assertEquals(yield* lines(ended(cutAt(raw, [...raw.keys()]))), expected, `${JSON.stringify(data)} byte by byte`);
    }
  });
});

Deno.test("ST4 cut at random places, any mix of reads sees the same as uncut", async () => {
  const next = random(2);
  await run(function* () {
    for (let round = 0; round < 400; round++) {
      const raw = bytes(randomText(next) + randomText(next));
      const reads = Array.from({ length: 12 }, () => next(4));
      const cuts = Array.from({ length: next(8) }, () => next(raw.length + 1));
      const options = { limit: 4 + next(20) };
      const whole = yield* story(ended([raw].filter((piece) => piece.length > 0), options), reads);
      const cut = yield* story(ended(cutAt(raw, cuts), options), reads);
      assertEquals(cut, whole, `round ${round}`);
    }
  });
});

/** What some reads say, error or not. */
function* story(stream: Stream, reads: number[]): Coroutine<string[]> {
  const said: string[] = [];
  for (const kind of reads) {
    try {
      if (kind === 0) said.push(`line ${yield* stream.readLine()}`);
      if (kind === 1) said.push(`until ${yield* stream.readUntil("--")}`);
      if (kind === 2) said.push(`exactly ${yield* stream.readExactly(3)}`);
      if (kind === 3) said.push(`exactly ${yield* stream.readExactly(0)}`);
    } catch (error) {
      if (!(error instanceof LimitError || error instanceof IncompleteReadError)) throw error;
      said.push(error instanceof LimitError ? error.message : `${error.message} ${error.partial}`);
    }
  }
  return said;
}

Deno.test("ST5 UTF-8 characters cut across packets decode right, what is no UTF-8 is marked", async () => {
  const data = "grüß 中文 🙂";
  assertEquals(await run(() => lines(ended(cutAt(bytes(data + "\n"), [...bytes(data).keys()])))), [data]);
  assertEquals(await run(() => lines(ended([Uint8Array.of(0x61, 0xff, 0x62, 0x0a)]))), ["a\ufffdb"]);
});

// ---- Misuse, errors and the end ------------------------------------------------------------------------------------

Deno.test("N3 a second task that reads the same stream gets BusyError, the first is served", async () => {
  await simulate(function* ({ loop }) {
    const sock = new PieceSocket("ab");
    const stream = new Stream(sock);
    const first = loop.createTask(stream.readExactly(4));
    yield* checkpoint();
    yield* checkpoint();
    const error = yield* thrown(BusyError, stream.read());
    assertStringIncludes(error.message, "another task is already reading it");
    sock.feed("cd");
    assertEquals(text(yield* first.join()), "abcd");
    assertEquals(text(yield* failAfter(10, new Stream(sock.feed("e")).read())), "e");
  });
});

Deno.test("N4 after close every use is ClosedError, also of what lies in the buffer; close twice is fine", async () => {
  await run(function* () {
    const sock = new PieceSocket("a\nb\n");
    const stream = new Stream(sock);
    yield* stream.readLine();
    stream.close();
    stream.close();
    assertEquals([sock.closed, stream.buffered], [true, 0]);
    const reads = [stream.read(), stream.readLine(), stream.readExactly(0), stream.readUntil("-"), stream.readAll()];
    const uses = {
      "read from": reads,
      "write to": [stream.write("x")],
      "close the write side of": [stream.closeWrite()],
    };
    for (const [does, coros] of Object.entries(uses)) {
      for (const coro of coros as Coroutine<unknown>[]) {
        assertEquals(
          (yield* thrown(ClosedError, coro)).message,
          `Cannot ${does} the stream of socket ${sock.id}: it is closed`,
        );
      }
    }
  });
});

Deno.test("N4 close while a read is on its way is ClosedError for it", async () => {
  await simulate(function* ({ loop }) {
    const stream = new Stream(new PieceSocket("a\nb\n"));
    yield* stream.readLine();
    const task = loop.createTask(stream.readLine());
    yield* checkpoint();
    stream.close();
    yield* thrown(ClosedError, task.join());
  });
});

Deno.test("N4 a stream that is closed as its socket gives bytes keeps none of them", async () => {
  class Closing extends PieceSocket {
    override recv(maxBytes: number): Uint8Array {
      stream.close();
      return super.recv(maxBytes);
    }
  }
  const stream: Stream = new Stream(Object.assign(new Closing("a line\n"), { close() {} }));
  await run(() => thrown(ClosedError, stream.readLine()));
  assertEquals(stream.buffered, 0);
});

Deno.test("a stream knows what kind of socket it is over, and serve what kind of address it listens at", async () => {
  await run(function* () {
    const stream = new Stream(new PieceSocket("in"));
    assertEquals(stream.sock.output, "");
    const listener = {
      id: 1,
      addr: { transport: "tcp", hostname: "::1", port: 7 } as const,
      accept: () => [],
      close() {},
    };
    let port = 0;
    const end = new AbortController();
    yield* serve(listener as unknown as ServeListener<PieceSocket, typeof listener.addr>, () => checkpoint(), {
      signal: end.signal,
      onListen(addr) {
        port = addr.port;
        end.abort();
      },
    });
    assertEquals(port, 7);
  });
});

Deno.test("using a stream closes its socket", async () => {
  await run(function* () {
    const sock = new PieceSocket();
    {
      using _stream = new Stream(sock);
    }
    assert(sock.closed);
    yield* checkpoint();
  });
});

Deno.test("N4 after abort() nothing can be read, not even what is here", async () => {
  await run(function* () {
    const stream = new Stream(new PieceSocket("one\ntwo\n"));
    assertEquals(yield* stream.readLine(), "one");
    stream.abort();
    yield* thrown(ClosedError, stream.readLine());
  });
});

Deno.test("N4 abort() drops what has not left, and closes a socket that cannot", async () => {
  await run(function* () {
    const [left, right] = socketPair();
    const stream = new Stream(left);
    left.send(new Uint8Array(65536)); // more than a pair holds
    stream.abort();
    assert(left.closed);
    yield* thrown(ClosedError, stream.readLine());
    assert((yield* new Stream(right).readAll()).length < 65536);
    right.close();
    const other = ended(["abc"]);
    other.abort();
    assert(other.sock.closed);
  });
});

Deno.test("N6 an error of the socket passes through, and what had come before it can still be read", async () => {
  await run(function* () {
    const reset = new Error("reset by the peer");
    const stream = new Stream(new PieceSocket("a\nbc").breakWith(reset));
    assertEquals(yield* stream.readLine(), "a");
    assertEquals(yield* thrown(Error, stream.readLine()), reset);
    assertEquals(text(yield* stream.read()), "bc");
  });
});

Deno.test("limits, counts, delimiters and data that are none are refused, and the stream goes on", async () => {
  for (const limit of [0, -1, NaN, "10" as never]) {
    assertThrows(() => new Stream(new PieceSocket(), { limit }), RangeError, `${limit}`);
  }
  for (const wrong of [undefined, null, {}, 8080, Promise.reject(new Error("unheard"))] as never[]) {
    assertThrows(() => new Stream(wrong), TypeError, "it is not a socket");
  }
  await run(function* () {
    const stream = ended(["abc"]);
    for (const n of [-1, 1.5, NaN, Infinity]) {
      yield* thrown(RangeError, stream.readExactly(n));
      yield* thrown(RangeError, stream.read(n));
    }
    for (const limit of [-1, NaN, null as any]) yield* thrown(RangeError, stream.readAll(limit));
    assertEquals(yield* ended(["1\n"], { limit: 1 }).readLine(), "1");
    assertStringIncludes((yield* thrown(RangeError, stream.read("5" as any))).message, 'Cannot read "5" bytes');
    yield* thrown(TypeError, stream.readUntil(""));
    const { message } = yield* thrown(TypeError, stream.readUntil(10 as any));
    assertEquals(message, "Cannot read until 10: it must be a string or a Uint8Array");
    for (const data of [{}, null, Promise.reject(new Error("unheard"))] as any[]) {
      const { message } = yield* thrown(TypeError, stream.write(data));
      assert(/^Cannot write .*: it must be a string or a Uint8Array$/.test(message), message);
    }
    assertEquals(text(yield* stream.readExactly(1)), "a");
    yield* thrown(RangeError, stream.read(0)); // It is no end of the stream.
    assertEquals(text(yield* stream.readAll()), "bc");
  });
});

Deno.test("C2 a read at the end of a stream, or of nothing, is a cancellation point, and may find the stream closed", async () => {
  await run(function* () {
    const loop = runningLoop();
    const stream = ended([]);
    assertEquals(yield* stream.readLine(), null);
    for (const read of [() => stream.read(), () => stream.readExactly(0)]) {
      yield* cancelScope(function* (scope): Coroutine {
        scope.cancel();
        yield* read();
        throw new Error("It was not cancelled");
      });
    }
    const reading = loop.createTask(thrown(ClosedError, stream.read()));
    yield* checkpoint();
    stream.close();
    yield* reading.join();
  });
});

Deno.test("C2 every read is one op: what is here, or at the end, is not waited for", async () => {
  const ops: string[] = [];
  await simulate(function* () {
    const stream = ended(["a\nb\n"]);
    const reads = [stream.readExactly(0), stream.readExactly(2), stream.readExactly(0), stream.readUntil("\n")];
    for (const read of [...reads, stream.readLine(), stream.readLine()]) yield* read as Coroutine<unknown>;
  }, { trace: ({ op }) => void ops.push(op) });
  assertEquals(ops, ["checkpoint", "read_wait", "checkpoint", "checkpoint", "read_wait", "checkpoint"]);
});

// ---- Writing -------------------------------------------------------------------------------------------------------

Deno.test("write sends all of it in order, however little the socket takes at a time; strings as UTF-8", async () => {
  await run(function* () {
    const sock = new PieceSocket();
    sock.room = 2;
    const stream = new Stream(sock);
    yield* stream.write("grüß ");
    yield* stream.write(bytes("Gott"));
    yield* stream.write("");
    assertEquals(text(Uint8Array.from(sock.written.flatMap((data) => [...data]))), "grüß Gott");
    yield* stream.closeWrite();
    assert(sock.writeEnded);
  });
});

Deno.test("C2 closeWrite has no effect on a socket that cannot, but is a cancellation point; abort closes one", async () => {
  await run(function* () {
    const sock = new PieceSocket("abc").end();
    assert(new Stream(sock).closeWrite().next().done); // Else it is what the socket does and no more.
    Object.assign(sock, { closeWrite: undefined, abort: undefined });
    const stream = new Stream(sock);
    yield* stream.closeWrite();
    assertEquals(text(yield* stream.readAll()), "abc");
    yield* cancelScope(function* (scope): Coroutine {
      scope.cancel();
      yield* stream.closeWrite();
      throw new Error("It was not cancelled");
    });
    const ending = runningLoop().createTask(thrown(ClosedError, stream.closeWrite()));
    yield* checkpoint();
    yield* until(stream.writable.abort()); // That is stream.abort().
    yield* ending.join();
    assert(sock.closed);
  });
});

Deno.test("C7 a cancelled write says how many bytes were handed over", async () => {
  await simulate(function* ({ loop }) {
    const sock = new PieceSocket();
    sock.room = 2;
    let bytesSent: number | undefined;
    const task = loop.createTask(function* (): Coroutine {
      try {
        yield* new Stream(sock).write("abcdefghijkl".repeat(10));
      } catch (error) {
        bytesSent = (error as Cancelled).bytesSent;
        throw error;
      }
    }());
    while (sock.written.length < 2) yield* checkpoint();
    sock.ready &= ~EVENT_WRITE;
    yield* checkpoint();
    task.cancel();
    yield* task.wait();
    assertEquals(bytesSent, sock.output.length);
  });
});

// ---- Web streams ---------------------------------------------------------------------------------------------------

Deno.test("readable is a web stream of what is left, and reads nothing ahead", async () => {
  await run(function* () {
    const stream = ended(["header\nro", "st", "s\nlast"]);
    assertEquals(yield* stream.readLine(), "header");
    const { readable } = stream;
    assertEquals(yield* stream.readLine(), "rosts");
    assertEquals(yield* until(new Response(readable).text()), "last");
    assert(stream.readable === readable);
    const over = ended(["toolong", "er\nnext"], { limit: 4 });
    yield* thrown(LimitError, over.readLine());
    assertEquals(yield* until(new Response(over.readable).text()), "next"); // Too long a line is dropped here too.
  });
});

Deno.test("readable and writable are of the loop that asks for them", async () => {
  const sock = new PieceSocket("first");
  const stream = new Stream(sock);
  function* talk(): Coroutine<string> {
    const { readable, writable } = stream;
    assert(readable === stream.readable && writable === stream.writable);
    const [reader, writer] = [readable.getReader(), writable.getWriter()];
    const { value } = yield* until(reader.read());
    yield* until(writer.write(text(value!).toUpperCase()));
    return text(value!);
  }
  assertEquals(await run(talk), "first");
  let ours!: ReadableStream;
  const other = new Loop();
  await run(function* () {
    ours = stream.readable;
    ours.getReader();
    yield* until(other.run(function* () {
      assert(stream.readable !== ours);
    }()));
    assert(stream.readable === ours); // It has not been forgotten over the other's.
  });
  sock.feed("second");
  assertEquals(await run(talk), "second");
  assertEquals(text(sock.written[0]) + text(sock.written[1]), "FIRSTSECOND");
});

Deno.test("ST2 readExactly of nothing from a stream that is closed meanwhile is a ClosedError", async () => {
  await run(function* () {
    const stream = new Stream(new PieceSocket());
    const reading = stream.readExactly(0);
    const wait = reading.next().value; // by hand, up to its op
    stream.close();
    assertEquals(wait, ["checkpoint"]);
    assertThrows(() => reading.next(), ClosedError);
    yield* checkpoint();
  });
});

Deno.test("readable goes through CompressionStream and back, writable through pipeTo", async () => {
  const data = "a line of text\n".repeat(1000);
  await run(function* () {
    const sock = new PieceSocket();
    const packed = ended([data.slice(0, 7), data.slice(7)]).readable.pipeThrough(new CompressionStream("gzip"));
    yield* until(packed.pipeTo(new Stream(sock).writable));
    assert(sock.writeEnded);
    assert(sock.written.reduce((sum, data) => sum + data.length, 0) < data.length / 10);
    const received = ended(sock.written).readable.pipeThrough(new DecompressionStream("gzip"));
    assertEquals(yield* until(new Response(received).text()), data);
  });
});

Deno.test("ST3 what was transferred with what a read returned is missed once, and the stream goes on", async () => {
  for (const begun of [false, true]) {
    await run(function* () {
      const sock = new PieceSocket("headbody", "more");
      const stream = new Stream(sock);
      const head = yield* stream.readExactly(4);
      const reading = stream.read();
      if (begun) reading.next(); // by hand, up to its op
      structuredClone(head, { transfer: [head.buffer] });
      assertStringIncludes((yield* thrownBy(reading)).message, "its last 4 bytes are lost");
      assertEquals(stream.buffered, 0);
      const more = yield* stream.read();
      assertEquals(text(more), "more");
      structuredClone(more, { transfer: [more.buffer] }); // Nothing was behind it.
      sock.feed("line\n");
      assertEquals(yield* stream.readLine(), "line");
    });
  }
  await run(function* () {
    const stream = ended(["headtoolong-", "-more--next"], { limit: 4 });
    const head = yield* stream.readExactly(4);
    yield* thrown(LimitError, stream.readUntil("--")); // The first half of its end is still here.
    structuredClone(head, { transfer: [head.buffer] });
    assertStringIncludes((yield* thrownBy(stream.read())).message, "its last 1 bytes are lost");
    assertEquals(text(yield* stream.read()), "next");
  });
});

Deno.test("ST3 what is transferred while a read waits is missed once, and what comes then is kept", async () => {
  const reads: ((stream: Stream) => Coroutine<unknown>)[] = [
    (stream) => stream.readLine(),
    (stream) => stream.readUntil("!"),
    (stream) => stream.readExactly(100),
    (stream) => stream.readAll(),
  ];
  for (const read of reads) {
    for (const ends of [false, true]) {
      await run(function* () {
        const sock = new PieceSocket("headbody");
        const stream = new Stream(sock);
        const head = yield* stream.readExactly(4);
        const reading = runningLoop().createTask(thrownBy(read(stream)));
        yield* sleep(1);
        structuredClone(head, { transfer: [head.buffer] });
        if (ends) sock.end();
        else sock.feed("more");
        assertStringIncludes((yield* reading.join()).message, "its last 4 bytes are lost");
        assertEquals(text(yield* stream.read()), ends ? "" : "more");
      });
    }
  }
});

Deno.test("ST3 what a read returned at the end, or of nothing, may be transferred, and no stream misses anything", async () => {
  await run(function* () {
    const stream = new Stream(new PieceSocket("abc"));
    assertEquals(text(yield* stream.readExactly(1)), "a");
    for (const nothing of [yield* ended([]).read(), yield* stream.readExactly(0)]) {
      structuredClone(nothing, { transfer: [nothing.buffer] });
    }
    assertEquals(text(yield* stream.read()), "bc");
    assertEquals(yield* ended(["a line"]).readLine(), "a line");
  });
});

Deno.test("ST5 what the web stream gives out may be transferred, and is 64 KiB at most", async () => {
  await run(function* () {
    const stream = new Stream(new PieceSocket(...Array(4).fill("x".repeat(25_000))));
    assertEquals(yield* moveOnAfter(5, stream.readExactly(200_000)), undefined); // All that has come is in one buffer.
    const reader = stream.readable.getReader();
    for (const length of [65536, 100_000 - 65536]) {
      const { value } = yield* until(reader.read());
      assertEquals(text(value!), "x".repeat(length));
      structuredClone(value, { transfer: [value!.buffer] });
    }
    stream.close();
    const piece = Buffer.from("abc"); // Its `slice` is no copy.
    const { value } = yield* until(ended([piece]).readable.getReader().read());
    assert(value!.buffer !== piece.buffer);
  });
});

Deno.test("ST5 readable through TextDecoderStream decodes characters cut across packets", async () => {
  await run(function* () {
    const data = "grüß 中文 🙂";
    const decoded = ended(cutAt(bytes(data), [...bytes(data).keys()])).readable.pipeThrough(new TextDecoderStream());
    let read = "";
    const reader = decoded.getReader();
    for (let part; !(part = yield* until(reader.read())).done;) read += part.value;
    assertEquals(read, data);
  });
});

Deno.test("a pipe that is cancelled gives its stream back, and drops the connection it wrote to", async () => {
  await run(function* () {
    const from = new PieceSocket("abc");
    const to = new PieceSocket();
    const source = new Stream(from);
    const target = new Stream(to);
    const pipe = until((signal) => source.readable.pipeTo(target.writable, { signal }));
    assertEquals(yield* moveOnAfter(10, pipe), undefined);
    assertEquals(to.output, "abc");
    yield* until(platformTurn()); // The pipe takes notice.
    assert(to.aborted);
    yield* checkpoint(); // Its read ends.
    from.feed("def");
    assertEquals(text(yield* failAfter(10, source.read())), "def");
  });
});

Deno.test("C7 a readable that was cancelled while its loop did not run is in nobody's way in the next run", async () => {
  const [client, server] = socketPair();
  const stream = new Stream(server);
  const loop = new Loop();
  const reader = (await loop.run((function* (): Coroutine<ReadableStream<Uint8Array>> {
    yield* checkpoint();
    return stream.readable;
  })())).getReader();
  const read = reader.read();
  await platformTurn();
  const cancelled = reader.cancel();
  client.send(bytes("hello\n"));
  assertEquals(await loop.run(stream.readLine()), "hello");
  await cancelled;
  await read;
  client.close();
  stream.close();
});

Deno.test("C7 a readable is cancelled, with its reason, when the read it had begun has ended", async () => {
  await simulate(function* ({ loop }) {
    const stream = new Stream(new PieceSocket());
    const reader = stream.readable.getReader();
    const reading = reader.read();
    const cancelled = until(async () => {
      await platformTurn();
      const task = [...loop.tasks].find((task) => task.name === `readable of ${stream}`)!;
      while (!task.op) await platformTurn(); // It waits.
      await reader.cancel("enough");
      assert(task.done);
      await task;
    });
    assertEquals(((yield* thrown(TaskError, cancelled)).cause as Cancelled).reason, "enough");
    assert((yield* until(reading)).done);
  });
});

Deno.test("C7 a readable that is cancelled as bytes arrive has read all of them or none", async () => {
  for (let turns = 0; turns < 8; turns++) {
    await run(function* () {
      const sock = new PieceSocket();
      const stream = new Stream(sock);
      const reader = stream.readable.getReader();
      const reading = reader.read();
      yield* until(platformTurn()); // It waits.
      sock.feed("abc");
      for (let i = 0; i < turns; i++) yield* checkpoint();
      const cancelling = reader.cancel();
      const read = (yield* until(reading)).value;
      yield* until(cancelling);
      sock.feed("def");
      sock.end();
      assertEquals(text(read ?? bytes("")) + text(yield* stream.readAll()), "abcdef", `${turns} turns`);
    });
  }
});

Deno.test("N3 a readable that was refused, as another task was reading, is not refused for ever", async () => {
  await simulate(function* ({ loop }) {
    const sock = new PieceSocket();
    const stream = new Stream(sock);
    const line = loop.createTask(stream.readLine());
    yield* checkpoint();
    const reader = stream.readable.getReader();
    yield* thrown(BusyError, until(reader.read()));
    sock.feed("line\nrest").end();
    assertEquals(yield* line.join(), "line");
    const { value } = yield* until(stream.readable.getReader().read());
    assertEquals(text(value!), "rest");
  });
});

Deno.test("C7 what arrives after the reader of a readable was released is nobody's yet", async () => {
  await simulate(function* () {
    const sock = new PieceSocket();
    const stream = new Stream(sock);
    const reader = stream.readable.getReader();
    const reading = reader.read().catch((error) => error);
    yield* until(platformTurn()); // By then it has begun.
    reader.releaseLock();
    assertInstanceOf(yield* until(reading), TypeError);
    sock.feed("one\ntwo\n");
    yield* sleep(1);
    assertEquals(yield* stream.readLine(), "one");
    const { value } = yield* until(stream.readable.getReader().read());
    assertEquals(text(value!), "two\n");
  });
});

Deno.test("C7 a reader that follows a released one gets what that had asked for", async () => {
  await simulate(function* () {
    const sock = new PieceSocket();
    const { readable } = new Stream(sock);
    const first = readable.getReader();
    const abandoned = first.read().catch(() => "abandoned");
    yield* until(platformTurn());
    first.releaseLock();
    const reading = readable.getReader().read();
    sock.feed("one").end();
    assertEquals(text((yield* until(reading)).value!), "one");
    assertEquals(yield* until(abandoned), "abandoned");
  });
});

Deno.test("N3 a writable that was refused, as another task was writing, or given no bytes, is not refused for ever", async () => {
  await simulate(function* ({ loop }) {
    const sock = new PieceSocket();
    sock.ready &= ~EVENT_WRITE;
    const stream = new Stream(sock);
    const first = loop.createTask(stream.write("first "));
    yield* checkpoint();
    yield* thrown(BusyError, until(stream.writable.getWriter().write("refused")));
    sock.ready |= EVENT_WRITE;
    yield* first.join();
    yield* thrown(TypeError, until(stream.writable.getWriter().write(7 as never)));
    yield* until(stream.writable.getWriter().write("last"));
    assertEquals(sock.written.map(text).join(""), "first last");
  });
});

Deno.test("C7 a writable that failed in the middle of a chunk stays so: nothing may follow half of it", async () => {
  await simulate(function* ({ loop }) {
    const [left, right] = socketPair();
    const stream = new Stream(left);
    const writing = stream.writable.getWriter().write(new Uint8Array(500_000)).catch((error) => error);
    yield* sleep(1);
    for (const task of loop.tasks) if (task.name.startsWith("writable")) task.cancel();
    yield* until(writing);
    yield* thrown(TypeError, until(async () => await stream.writable.getWriter().write("next"))); // It is locked for good.
    left.abort();
    right.abort();
  });
  await run(function* () {
    const sock = new PieceSocket();
    sock.room = 2;
    const stream = new Stream(sock);
    const chunk = new Uint8Array(6);
    const writing = stream.writable.getWriter().write(chunk).catch((error) => error);
    while (sock.written.length === 0) yield* checkpoint();
    structuredClone(chunk, { transfer: [chunk.buffer] });
    assertInstanceOf(yield* until(writing), TypeError);
    yield* thrown(TypeError, until(async () => await stream.writable.getWriter().write("next")));
    assertEquals(sock.written, [new Uint8Array(2)]);
  });
});

Deno.test("N15 a web stream that fails, or outlives its loop, leaves no unhandled rejection", async () => {
  let late!: ReadableStream<Uint8Array>;
  await run(function* () {
    const broken = new Stream(new PieceSocket().breakWith(new Error("reset by the peer")));
    const error = yield* thrown(Error, until(new Response(broken.readable).text()) as Coroutine<unknown>);
    assertEquals(error.message, "reset by the peer");
    const sock = new PieceSocket();
    sock.closeWrite = function* () {
      throw error;
    };
    assertEquals(yield* thrown(Error, until(new Stream(sock).writable.getWriter().close())), error);
    late = new Stream(new PieceSocket()).readable;
    late.getReader().read().catch(() => {});
    yield* until(platformTurn());
  });
  await platformTurn();
});

Deno.test("a web stream is asked for inside a task", () => {
  assertThrows(() => new Stream(new PieceSocket()).readable, Error, "not called by a task");
  assertThrows(() => new Stream(new PieceSocket()).writable, Error, "not called by a task");
});

// ---- Real sockets --------------------------------------------------------------------------------------------------

battery("ST1 ST2 ST5 a stream: lines, a megabyte, half-close", function* (scene) {
  const data = new Uint8Array(1 << 20).map((_, i) => i * 7);

  function* serve(stream: Stream): Coroutine {
    assertEquals(yield* stream.readLine(), "grüß 中文 🙂");
    const length = Number(yield* stream.readLine());
    const body = yield* stream.readExactly(length);
    assertEquals(yield* stream.readLine(), null);
    yield* stream.write("done\r\n");
    yield* stream.write(body);
    yield* stream.closeWrite();
  }

  function* ask(stream: Stream): Coroutine<Uint8Array> {
    yield* stream.write("grüß 中文 🙂\n");
    yield* stream.write(`${data.length}\r\n`);
    yield* stream.write(data);
    yield* stream.closeWrite();
    assertEquals(yield* stream.readLine(), "done");
    return yield* stream.readAll();
  }

  const [_, back] = yield* all([serve(new Stream(scene.server)), ask(new Stream(scene.client))]);
  assert(back.every((byte, i) => byte === data[i]) && back.length === data.length);
});

battery("ST2 N3 a read whose bytes another task takes from the socket waits on", function* ({ loop, client, server }) {
  const stream = new Stream(server);
  const line = loop.createTask(stream.readLine());
  yield* checkpoint();
  yield* loop.sockSendall(client, bytes("not for the stream"));
  for (let taken = 0; taken === 0;) {
    try {
      taken = server.recv(100).length;
    } catch (error) {
      assertInstanceOf(error, WouldBlock);
      yield* checkpoint();
    }
  }
  yield* loop.sockSendall(client, bytes("a line\n"));
  assertEquals(yield* line.join(), "a line");
});

battery("ST2 C7 a read that timed out leaves the bytes, all of them, to the next", function* ({ client, server }) {
  const [from, to] = [new Stream(client), new Stream(server)];
  for (const piece of ["ab", "cd", "ef"]) {
    yield* from.write(piece);
    assertEquals(yield* moveOnAfter(2, to.readExactly(7)), undefined);
  }
  yield* from.write("g");
  assertEquals(text(yield* to.readExactly(7)), "abcdefg");
});

battery("ST3 ST4 lines, records and the rest, cut anywhere and sent in one piece, are the same", function* (scene) {
  const whole = new TextEncoder().encode("first\r\n--a--b\r\nc-->last grüße\nand the rest");
  const [from, to] = [new Stream(scene.client), new Stream(scene.server)];
  const read = function* (): Coroutine {
    for (let round = 0; round <= whole.length; round++) {
      assertEquals(yield* to.readLine(), "first");
      assertEquals(text(yield* to.readUntil("-->")), "--a--b\r\nc-->");
      assertEquals(yield* to.readLine(), "last grüße");
      assertEquals(text(yield* to.readExactly(8)), "and the ");
      if (round < whole.length) assertEquals(text(yield* to.readExactly(4)), "rest");
    }
    assertEquals(text(yield* to.readAll()), "rest");
  };
  const write = function* (): Coroutine {
    for (let cut = 0; cut <= whole.length; cut++) {
      yield* from.write(whole.subarray(0, cut));
      yield* checkpoint();
      yield* from.write(whole.subarray(cut));
    }
    yield* from.closeWrite();
  };
  yield* all([read(), write()]);
});

battery("gzip over a stream, by pipeTo on both sides", function* ({ client, server }) {
  const line = "a line of text that is said again and again\n";
  const source = new Blob([line.repeat(10_000)]).stream().pipeThrough(new CompressionStream("gzip"));
  const { writable } = new Stream(client);
  const received = new Stream(server).readable.pipeThrough(new DecompressionStream("gzip"));
  const [_, data] = yield* all([until(source.pipeTo(writable)), until(new Response(received).text())]);
  assertEquals(data, line.repeat(10_000));
});

battery("C7 readable after a readable that was cancelled goes on where that one ended", function* (scene) {
  const { loop, client, server } = scene;
  const stream = new Stream(client);
  const parts: string[] = [];
  const sink = () => new WritableStream<Uint8Array>({ write: (chunk) => void parts.push(text(chunk)) });
  yield* loop.sockSendall(server, bytes("one, "));
  const first = stream.readable;
  assertEquals(yield* moveOnAfter(20, until((signal) => first.pipeTo(sink(), { signal }))), undefined);
  yield* until(platformTurn()); // The pipe takes notice.
  const reader = stream.readable.getReader();
  const waiting = reader.read();
  yield* until(reader.cancel());
  assertEquals((yield* until(waiting)).done, true);
  assert(stream.readable !== first);
  server.send(bytes("two"));
  server.close();
  yield* until(stream.readable.pipeTo(sink()));
  assertEquals(parts.join(""), "one, two");
});

battery("C7 a readable asked for while the one before is being cancelled stays the one there is", function* (scene) {
  const stream = new Stream(scene.client);
  const reader = stream.readable.getReader();
  const waiting = reader.read();
  yield* until(platformTurn()); // It is under way.
  const cancelling = reader.cancel();
  const second = stream.readable;
  yield* until(cancelling);
  yield* until(waiting);
  yield* until(platformTurn());
  assert(stream.readable === second);
});

battery("N7 a web stream aborted in the middle of a write to who does not read ends at once", function* ({ client }) {
  const writer = new Stream(client).writable.getWriter();
  const writing = writer.write(new Uint8Array(2 ** 26)).catch((error) => error);
  yield* sleep(10);
  yield* failAfter(1000, until(writer.abort()));
  assertInstanceOf(yield* until(writing), ClosedError);
  assert(client.closed);
});

battery("N7 a pipe whose stream is closed in the middle of a write ends at once", function* ({ client }) {
  const stream = new Stream(client);
  const endless = new ReadableStream<Uint8Array>({ pull: (controller) => controller.enqueue(new Uint8Array(65536)) });
  const piping = endless.pipeTo(stream.writable).catch((error) => error);
  yield* sleep(10);
  stream.close();
  assertInstanceOf(yield* failAfter(1000, until(piping)), ClosedError);
  client.abort(); // To close is to deliver what it had taken, to who does not read.
});

Deno.test("ST2 N6 a reset in the middle of a record is the platform's error", needs({ net: true }), async () => {
  const loop = new Loop();
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  await assertRejects(() =>
    loop.run(function* (): Coroutine {
      const client = new Stream(yield* connect({ hostname: "127.0.0.1", port }));
      using stream = new Stream((yield* loop.sockAccept(listener))[0]);
      yield* client.write("ab");
      yield* stream.write("unread");
      yield* moveOnAfter(5, client.readExactly(100)); // it has arrived
      client.sock.abort!();
      yield* stream.readExactly(5);
    }()), Error);
});
