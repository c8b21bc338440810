/**
 * stream.ts: lines, records and whole servers on top of sockets.
 *
 * A socket gives bytes in the pieces in which the network brought them. A {@linkcode Stream} puts a buffer in between, so
 * that a program can ask for a line, for n bytes, or for all up to a delimiter. {@linkcode serve} is the rest of a server:
 * it accepts, runs a handler for each connection, and ends in good order.
 *
 * The rules of a stream:
 *
 * - What is read depends on the bytes alone, never (but for `read`) on where the network cut them.
 * - Bytes leave the buffer only when a read returns them, or throws what tells where they went. A read that is cancelled,
 *   or times out, did not happen.
 * - Bytes are handed out as views of the buffer and not copied; the buffer is only ever extended behind them.
 * - What it gathers has a limit. A read that goes beyond throws {@linkcode LimitError}, and the stream goes on behind it.
 * - Each read and write is an op, even if all is there: a cancellation point, and a turn for others.
 *
 * The rules of `serve`:
 *
 * - What goes wrong on one connection concerns that connection: it is closed, the error is reported, the others go on.
 * - When `accept` fails, that is reported and it is tried again; only mistakes of the program end the server.
 * - It leaves nothing behind: when it returns the listener is closed, and so is every socket it has accepted.
 *
 * @module
 */

import {
  type Addr,
  BusyError,
  callHook,
  type CancelScope,
  cancelScope,
  checkCount,
  checkDuration,
  checkFunctions,
  checkpoint,
  checkRunnable,
  checkSignal,
  ClosedError,
  type Coroutine,
  currentTask,
  hush,
  kind,
  type ListenerLike,
  type Loop,
  park,
  ParkingLot,
  runningLoop,
  type SocketLike,
  type Task,
  TaskError,
  writeWait,
} from "./loop.ts";
import { moveOnAfter, race, shield } from "./scope.ts";

/** How many bytes a line may have by default: a hostile peer's would fill the memory. */
const LIMIT = 65536;
/** How many bytes are taken from the socket at once. */
const READ_MAX = 65536;
/** The smallest buffer that is made to put pieces together in. */
const BUFFER_MIN = 1024;

const EMPTY = new Uint8Array(0);
const CR = "\r".charCodeAt(0);
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const NEWLINE = encoder.encode("\n");

// -------------------------------------
// Errors
// -------------------------------------

/** Thrown by `readExactly` and `readUntil` when the stream ends before they have what they were to read. */
export class IncompleteReadError extends Error {
  /** The name of the class. */
  override name = "IncompleteReadError";
  /** What came before the end. It is no longer in the stream. */
  readonly partial: Uint8Array;
  /** How many bytes were asked for; null if it was a delimiter. */
  readonly expected: number | null;

  /** Made by {@linkcode Stream}; programs catch it. */
  constructor(partial: Uint8Array, expected: number | null) {
    const missing = expected === null ? "the delimiter" : `all of ${expected} bytes`;
    super(`Cannot read ${missing}: the stream ended after ${partial.length} bytes`);
    this.partial = partial;
    this.expected = expected;
  }
}

/** Thrown by a read that finds more bytes than the stream's `limit` allows. */
export class LimitError extends Error {
  /** The name of the class. */
  override name = "LimitError";
  /** The limit, in bytes. */
  readonly limit: number;

  /** Made by {@linkcode Stream}; programs catch it. */
  constructor(what: string, limit: number) {
    super(`Cannot read ${what}: it is longer than the limit of ${limit} bytes`);
    this.limit = limit;
  }
}

// -------------------------------------
// Streams
// -------------------------------------

/** What a {@linkcode Stream} needs of a socket. `Socket` has it. */
export interface StreamSocket extends SocketLike {
  /** Closes it; what `send` had taken is still delivered. */
  close(): void;
  /** Closes it and drops what has not left yet. Without it `close` must do. */
  abort?(): void;
  /** Ends our side of it. Without it the peer sees no end before `close`. */
  closeWrite?(): Coroutine<void>;
}

/** Options of {@linkcode Stream}. */
export interface StreamOptions {
  /**
   * How many bytes `readLine` and `readUntil` may gather, the line's end or the delimiter not counted. If given, it holds
   * for `readAll` too. Default: 65536.
   */
  limit?: number | undefined;
}

/**
 * A buffered stream over a socket. One task reads at a time, and one writes; they may be two. After asyncio's
 * `StreamReader` and `StreamWriter` in one.
 *
 * The arrays it returns are views into larger buffers: `slice()` one to keep only a part, or to transfer it.
 *
 * @example Lines
 * ```ts
 * import { all, connect, type Coroutine, listen, Loop, Stream } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const loop = new Loop();
 * const listener = listen({ hostname: "127.0.0.1", port: 0 });
 *
 * function* server(): Coroutine {
 *   using stream = new Stream((yield* loop.sockAccept(listener))[0]);
 *   const name = yield* stream.readLine();
 *   yield* stream.write(`Hello ${name}\n`);
 * }
 *
 * function* client(): Coroutine<string | null> {
 *   using stream = new Stream(yield* connect(listener.addr));
 *   yield* stream.write("Ann\n");
 *   return yield* stream.readLine();
 * }
 *
 * const [_, answer] = await loop.run(all([server(), client()]));
 * assertEquals(answer, "Hello Ann");
 * listener.close();
 * ```
 *
 * @example A deadline for a line is one line
 * ```ts
 * import { type Coroutine, failAfter, type Stream } from "@yieldloop/yieldloop";
 *
 * function* greeting(stream: Stream): Coroutine<string | null> {
 *   return yield* failAfter(5000, stream.readLine()); // what had arrived by then is still there for the next read
 * }
 * ```
 */
export class Stream<S extends StreamSocket = StreamSocket> implements Disposable {
  /** The socket below. What is read from it directly is missing here. */
  readonly sock: S;
  /** How many bytes `readLine` and `readUntil` may gather. */
  readonly limit: number;
  readonly #limitOfAll: number;

  // Bytes from #from to #to of the buffer have arrived and were not read. The buffer is what the socket gave, all of it; or,
  // where pieces had to be put together, one of our own, which has room for more behind #to.
  #buffer: Uint8Array<ArrayBuffer> = EMPTY;
  #from = 0;
  #to = 0;

  #eof = false;
  #closed = false;
  /** The delimiter up to which the rest of something too long is still to be dropped. */
  #skipping: Uint8Array | null = null;
  #reading = false;
  readonly #endReading: Disposable = { [Symbol.dispose]: () => void (this.#reading = false) };
  /** Web streams over it, one for each loop that asked. */
  #readables: WeakMap<Loop, ReadableStream<Uint8Array<ArrayBuffer>>> | null = null;
  #writables: WeakMap<Loop, WritableStream<Uint8Array | string>> | null = null;

  /**
   * Makes a stream over `sock`, which is the stream's from now on.
   *
   * @throws {TypeError} If `sock` is not a socket.
   * @throws {RangeError} If `limit` is not a number from 1 up.
   */
  constructor(sock: S, options: StreamOptions = {}) {
    const { limit = LIMIT } = options;
    if (typeof sock?.recv !== "function") {
      hush(sock); // Perhaps the promise of one: its own error must not end the program.
      throw new TypeError(`Cannot make a stream over ${kind(sock)}: it is not a socket`);
    }
    if (typeof limit !== "number" || !(limit >= 1)) {
      throw new RangeError(`Cannot limit a stream to ${kind(limit)} bytes: the limit must be a number from 1 up`);
    }
    this.sock = sock;
    this.limit = limit;
    this.#limitOfAll = options.limit ?? Infinity;
  }

  // ---- Reading ----------------------

  /** How many bytes are at hand. At 0 the next read may have to wait for the peer: the time to send what was put off. */
  get buffered(): number {
    return this.#skipping ? 0 : this.#length; // No read will return what is to be dropped.
  }

  /**
   * Reads what there is, `max` bytes at most (by default 65536); waits if there is nothing. An empty array at end of
   * stream, again and again.
   *
   * @throws {RangeError} If `max` is not a whole number from 1 up.
   * @throws {BusyError} If another task is reading.
   * @throws {ClosedError} If the stream is closed, or gets closed meanwhile. So does every method that reads.
   * @throws What the platform says of a connection that has failed: `ConnectionReset`, say. So does every method that reads.
   */
  *read(max: number = READ_MAX): Coroutine<Uint8Array<ArrayBuffer>> {
    checkCount("read", max, 1);
    using _reading = this.#beginReading();
    yield* this.#begin();
    if (this.#length === 0) yield* this.#fill(max);
    return this.#take(Math.min(max, this.#length));
  }

  /**
   * Reads a line, up to `\n` or `\r\n`, and decodes it as UTF-8, without its end; null at end of stream. A last line
   * without an end is a line too. What is not UTF-8 becomes U+FFFD; a byte order mark stays.
   *
   * @throws {LimitError} If the line is longer than `limit`. Its rest is dropped: the next read begins behind it.
   */
  *readLine(): Coroutine<string | null> {
    using _reading = this.#beginReading();
    yield* this.#begin();
    const at = yield* this.#find(NEWLINE, "a line");
    if (at < 0) return this.#length === 0 ? null : decoder.decode(this.#take(this.#length));
    const line = this.#take(at + 1);
    return decoder.decode(line.subarray(0, lineEnd(line, at)));
  }

  /**
   * Reads `n` bytes.
   *
   * @throws {IncompleteReadError} If the stream ends before; its `partial` is what was left.
   * @throws {RangeError} If `n` is not a whole number from 0 up.
   */
  *readExactly(n: number): Coroutine<Uint8Array<ArrayBuffer>> {
    checkCount("read", n, 0);
    using _reading = this.#beginReading();
    yield* this.#begin();
    if (n === 0 && this.#length === 0) {
      yield* checkpoint();
      this.#check("read from");
    }
    while (this.#length < n) {
      if (!(yield* this.#fill())) throw new IncompleteReadError(this.#take(this.#length), n);
    }
    return this.#take(n);
  }

  /**
   * Reads up to and with `delimiter`.
   *
   * @throws {LimitError} If more than `limit` bytes stand before it. All that is dropped: the next read begins behind it.
   * @throws {IncompleteReadError} If the stream ends before; its `partial` is what was left.
   * @throws {TypeError} If `delimiter` is empty, or neither a string nor a `Uint8Array`.
   */
  *readUntil(delimiter: string | Uint8Array): Coroutine<Uint8Array<ArrayBuffer>> {
    // The caller's may change while this waits. (The `slice` of a Node `Buffer` is no copy.)
    const bytes = new Uint8Array(toBytes("read until", delimiter));
    if (bytes.length === 0) throw new TypeError("Cannot read until an empty delimiter: it would be found everywhere");
    using _reading = this.#beginReading();
    yield* this.#begin();
    const at = yield* this.#find(bytes, "up to the delimiter");
    if (at < 0) throw new IncompleteReadError(this.#take(this.#length), null);
    return this.#take(at + bytes.length);
  }

  /**
   * Reads everything up to the end of the stream.
   *
   * @param limit How many bytes that may be. Default: the stream's `limit` if one was given, else any number.
   * @throws {LimitError} If there are more than `limit`; what has arrived of them can still be read.
   * @throws {RangeError} If `limit` is not a number from 0 up.
   */
  *readAll(limit: number = this.#limitOfAll): Coroutine<Uint8Array<ArrayBuffer>> {
    if (typeof limit !== "number" || !(limit >= 0)) {
      throw new RangeError(`Cannot read all up to ${kind(limit)} bytes: the limit must be a number from 0 up`);
    }
    using _reading = this.#beginReading();
    yield* this.#begin();
    do {
      if (this.#length > limit) throw new LimitError("all of the stream", limit);
    } while (yield* this.#fill());
    return this.#take(this.#length);
  }

  #beginReading(): Disposable {
    this.#check("read from");
    if (this.#reading) throw new BusyError(`Cannot read from ${this}: another task is already reading it`);
    this.#reading = true;
    return this.#endReading;
  }

  /** What every read begins with. With nothing at hand the read goes on to `#fill`, which is an op itself. */
  *#begin(): Coroutine<void> {
    this.#checkKept();
    if (this.#skipping) yield* this.#skip();
    if (this.#length === 0) return;
    yield* checkpoint();
    this.#check("read from");
    this.#checkKept();
  }

  /** Waits for bytes from the socket; false at end of stream. */
  *#fill(max: number = READ_MAX): Coroutine<boolean> {
    let bytes = EMPTY;
    if (this.#eof) yield* checkpoint();
    else bytes = (yield* runningLoop().sockRecv(this.sock, max)) as typeof bytes; // No socket reads into shared memory.
    if (bytes.length === 0) this.#eof = true;
    this.#check("read from"); // Closed, it keeps nothing.
    this.#checkKept(bytes);
    if (!this.#eof) this.#append(bytes);
    return !this.#eof;
  }

  /** Waits until `delimiter` is in the buffer, and says where; -1 if the stream ends first. */
  *#find(delimiter: Uint8Array, what: string): Coroutine<number> {
    const search = new Search(delimiter);
    for (let ended = false;;) {
      const bytes = this.#buffer.subarray(this.#from, this.#to);
      const at = search.next(bytes);
      let length = at >= 0 ? at : bytes.length;
      if (at < 0 && !ended) length -= search.begun; // Its rest may still come.
      if (delimiter === NEWLINE && !ended) length = lineEnd(bytes, length);
      if (length > this.limit) {
        this.#skipping = delimiter;
        this.#drop();
        throw new LimitError(what, this.limit);
      }
      if (at >= 0) return at;
      if (ended) return -1;
      ended = !(yield* this.#fill());
    }
  }

  /** Drops what was too long. If it is cancelled, the next read goes on with it. */
  *#skip(): Coroutine<void> {
    while (!this.#drop()) {
      if (!(yield* this.#fill())) return void this.#take(this.#length);
    }
  }

  /** Drops as much of that as is at hand, and says whether that was all. */
  #drop(): boolean {
    const bytes = this.#buffer.subarray(this.#from, this.#to);
    const search = new Search(this.#skipping!);
    const at = search.next(bytes);
    this.#take(at >= 0 ? at + this.#skipping!.length : bytes.length - search.begun);
    if (at >= 0) this.#skipping = null;
    return at >= 0;
  }

  // ---- The buffer -------------------

  get #length(): number {
    return this.#to - this.#from;
  }

  #take(n: number): Uint8Array<ArrayBuffer> {
    if (n === 0) return new Uint8Array(0); // A view could be transferred, and with it EMPTY, which is every stream's.
    const bytes = this.#buffer.subarray(this.#from, this.#from + n);
    this.#from += n;
    if (this.#from === this.#to) this.#forget(); // An idle stream holds no memory.
    return bytes;
  }

  #append(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#length === 0) {
      this.#buffer = bytes;
      this.#to = bytes.length;
      return;
    }
    if (this.#buffer.length - this.#to < bytes.length) this.#grow(this.#length + bytes.length);
    this.#buffer.set(bytes, this.#to);
    this.#to += bytes.length;
  }

  /** Moves to a buffer with room to spare: each byte is copied twice on average, however long it gets. */
  #grow(length: number): void {
    const larger = new Uint8Array(Math.max(2 * length, BUFFER_MIN));
    larger.set(this.#buffer.subarray(this.#from, this.#to));
    this.#to -= this.#from;
    this.#from = 0;
    this.#buffer = larger;
  }

  /**
   * Throws if somebody transferred what a read had returned, and with it what is behind that in the same buffer. What has
   * come since is kept in its place.
   */
  #checkKept(since = EMPTY): void {
    if (this.#to <= this.#buffer.length) return;
    const length = this.#length;
    this.#forget();
    this.#append(since);
    throw new TypeError(
      `Cannot read from ${this}: its last ${length} bytes are lost, for what it returned before was transferred; slice() it first`,
    );
  }

  #forget(): void {
    this.#buffer = EMPTY;
    this.#from = this.#to = 0;
  }

  // ---- Writing and the end ----------

  /**
   * Writes all of `data`; a string as UTF-8. When it returns the socket has taken the bytes, and `data` may be changed.
   * If it is cancelled, the error's `bytesSent` says how many it took.
   *
   * @throws {TypeError} If `data` is neither a string nor a `Uint8Array`.
   * @throws {BusyError} If another task is writing.
   * @throws {ClosedError} If the stream is closed, or gets closed meanwhile.
   * @throws What the platform says of a connection that takes nothing any more: `BrokenPipe` or `ConnectionReset`.
   */
  *write(data: Uint8Array | string): Coroutine<void> {
    const bytes = toBytes("write", data);
    this.#check("write to");
    yield* runningLoop().sockSendall(this.sock, bytes);
  }

  /**
   * Ends our side of the stream: the peer sees its end, and can still send. No effect on a socket that cannot.
   * Cancelled, it may have ended our side, or may not.
   *
   * @throws {BusyError} If another task is writing.
   * @throws {ClosedError} If the stream is closed, or gets closed meanwhile.
   * @throws What an earlier write has failed with.
   */
  *closeWrite(): Coroutine<void> {
    this.#check("close the write side of");
    if (this.sock.closeWrite) return yield* this.sock.closeWrite();
    yield* checkpoint();
    this.#check("close the write side of");
  }

  /** Closes the socket; what was written is still delivered, what was not read is dropped. Closing twice is fine. */
  close(): void {
    this.#closed = true;
    this.#forget();
    this.sock.close();
  }

  /** Closes the socket and drops what has not left yet, if the socket can do that. */
  abort(): void {
    this.sock.abort?.();
    this.close();
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #check(what: string): void {
    if (this.#closed) throw new ClosedError(`Cannot ${what} ${this}: it is closed`);
  }

  /** What it is called in messages. */
  toString(): string {
    return `the stream of socket ${this.sock.id}`;
  }

  // ---- Web streams ------------------

  /**
   * The read side as a web stream, for `pipeTo`, `CompressionStream` and the like. It reads from this stream only when it is
   * read itself, so a program may read some lines first and pipe the rest. Its chunks are copies. Once it was cancelled, or
   * has failed, there is a new one here, which goes on where it ended. Get it inside a task: its reads are tasks of that
   * loop, and each loop has its own. While that loop does not run they wait: what makes use of it must end before the run.
   *
   * @throws {Error} If no task is running here.
   *
   * @example
   * ```ts
   * import { type Coroutine, type Stream, until } from "@yieldloop/yieldloop";
   *
   * function* unzip(stream: Stream): Coroutine<string> {
   *   const plain = stream.readable.pipeThrough(new DecompressionStream("gzip"));
   *   return yield* until(new Response(plain).text());
   * }
   * ```
   */
  get readable(): ReadableStream<Uint8Array<ArrayBuffer>> {
    const loop = runningLoop();
    const readables = this.#readables ??= new WeakMap();
    const known = readables.get(loop);
    if (known) return known;
    let task: Task<void> | null = null;
    let cancelled = false;
    const isWanted = () => !cancelled && readable.locked; // A reader that was released takes nothing any more.
    const pull = (controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>) => {
      task = loop.createTask(this.#readTo(controller, isWanted), { name: `readable of ${this}` });
      return task.then(() => {}, (error) => {
        forget(); // It is of no use any more; a new one may have better luck.
        throw error;
      });
    };
    const cancel = async (reason: unknown) => {
      cancelled = true;
      forget();
      task?.cancel(reason);
      await task?.then(() => {}, () => {}); // After that others can read.
    };
    // With a high-water mark of 0 nothing is read ahead, so it never holds bytes that nobody asked for.
    const readable = new ReadableStream({ pull, cancel }, { highWaterMark: 0 });
    const forget = () => {
      if (readables.get(loop) === readable) readables.delete(loop); // By now another may be there.
    };
    readables.set(loop, readable);
    return readable;
  }

  /** Bytes leave the buffer in the same step in which they are handed over: a cancellation comes before or after it. */
  *#readTo(
    controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>,
    isWanted: () => boolean,
  ): Coroutine<void> {
    if (!isWanted()) return; // Cancelled before this task's first step, perhaps while the loop did not run.
    using _reading = this.#beginReading();
    yield* this.#begin();
    if (this.#length === 0) yield* this.#fill();
    if (!isWanted()) return;
    if (this.#length > 0) controller.enqueue(new Uint8Array(this.#take(Math.min(this.#length, READ_MAX))));
    else controller.close();
  }

  /**
   * The write side as a web stream. Closing it ends our side of the connection. Aborting it drops the connection at once,
   * even in the middle of a write, with all that has not left; the peer sees the end of the stream, and cannot tell that
   * something is missing. A `pipeTo` whose signal aborts waits for the write under way first, as pipes do everywhere;
   * closing this stream ends that too. Once a write was refused, say as another task was writing, there is a new one here.
   * Get it inside a task: its writes are tasks of that loop, and each loop has its own. While that loop does not run they
   * wait.
   *
   * @throws {Error} If no task is running here.
   */
  get writable(): WritableStream<Uint8Array | string> {
    const loop = runningLoop();
    const writables = this.#writables ??= new WeakMap();
    const known = writables.get(loop);
    if (known) return known;
    const run = async (coro: Coroutine<void>, isData = true) => {
      try {
        await loop.createTask(coro, { name: `writable of ${this}` });
      } catch (error) {
        // Refused, it has sent nothing; after half a chunk there must be no next one.
        if (error instanceof BusyError || !isData) writables.delete(loop);
        throw error;
      }
    };
    const writable = new WritableStream({
      // A web stream calls `abort` only after the write under way; one to a peer that does not read never ends.
      start: ({ signal }) => signal.addEventListener("abort", () => this.abort()),
      write: (chunk) => run(this.write(chunk), typeof chunk === "string" || chunk instanceof Uint8Array),
      close: () => run(this.closeWrite()),
    });
    writables.set(loop, writable);
    return writable;
  }
}

function toBytes(what: string, data: Uint8Array | string): Uint8Array {
  if (typeof data === "string") return encoder.encode(data);
  if (data instanceof Uint8Array) return data;
  hush(data); // Perhaps the promise of some.
  throw new TypeError(`Cannot ${what} ${kind(data)}: it must be a string or a Uint8Array`);
}

/** Where the line that ends before `end` really ends: a carriage return belongs to the newline behind it. */
function lineEnd(bytes: Uint8Array, end: number): number {
  return end > 0 && bytes[end - 1] === CR ? end - 1 : end;
}

/** What {@linkcode Search} knows of a delimiter at first: no beginning of one byte ends with a shorter one. */
const NO_BORDERS: number[] = [0, 0];

/**
 * Looks for a delimiter in bytes that grow, and at each of them once, whatever the peer sends: after Knuth, Morris and Pratt.
 */
class Search {
  readonly #wanted: Uint8Array;
  #searched = 0;
  /** How many bytes at the end of what was searched may be the beginning of what is wanted. */
  begun = 0;
  /** Of the first n bytes of the delimiter, with how many of its first (fewer than n) they end. Made as far as needed. */
  #borders = NO_BORDERS;

  constructor(wanted: Uint8Array) {
    this.#wanted = wanted;
  }

  /** Where in `bytes`, which begin with those of the call before, the delimiter begins; -1 if nowhere. */
  next(bytes: Uint8Array): number {
    const wanted = this.#wanted;
    for (let i = this.#searched; i < bytes.length; i++) {
      if (this.begun === 0) {
        i = bytes.indexOf(wanted[0], i);
        if (i < 0) break;
      }
      while (this.begun > 0 && wanted[this.begun] !== bytes[i]) this.begun = this.#border(this.begun);
      if (wanted[this.begun] === bytes[i]) this.begun++;
      if (this.begun === wanted.length) return i + 1 - wanted.length;
    }
    this.#searched = bytes.length;
    return -1;
  }

  #border(n: number): number {
    const wanted = this.#wanted;
    if (n > 1 && this.#borders === NO_BORDERS) this.#borders = [...NO_BORDERS];
    for (let m = this.#borders.length; m <= n; m++) {
      let k = this.#borders[m - 1];
      while (k > 0 && wanted[k] !== wanted[m - 1]) k = this.#borders[k];
      this.#borders.push(wanted[k] === wanted[m - 1] ? k + 1 : 0);
    }
    return this.#borders[n];
  }
}

// -------------------------------------
// serve
// -------------------------------------

/** How long `accept` is left alone after it has failed, in milliseconds: what it lacks must be given back first. */
const ACCEPT_BACKOFF = 100;
/** Long enough to finish what is under way, short enough for nobody to think that the program hangs. */
const DRAIN_TIMEOUT = 1000;

// Discussion: the platform's error classes are none of this file's business, so errors of `accept` are told apart by name.
// What is in neither list is taken for a passing shortage, such as EMFILE: a server that goes on for no good reason says
// so ten times a second, one that gives up for no good reason is down.

/** The server was asked to end, or the program is wrong: trying again would not help. */
const FATAL = new Set([
  "Cancelled",
  "ClosedError",
  "BusyError",
  "BadResource",
  "TypeError",
  "RangeError",
  "ReferenceError",
]);
/** The client was gone before it was accepted, which concerns nobody. */
const GONE = new Set(["ConnectionReset", "ConnectionAborted", "NotConnected"]);
/** Shortages whose report must not need a file itself. */
const NO_FILE_LEFT = new Set<unknown>(["EMFILE", "ENFILE"]);

/**
 * What {@linkcode serve} needs of a listening socket, at an address of kind `A`. `Listener` has it. Errors of its `accept`
 * are told apart by their `name`: `ConnectionReset`, `ConnectionAborted` and `NotConnected` are a client that was gone
 * before it was accepted; `ClosedError`, `BusyError`, `BadResource`, `TypeError`, `RangeError` and `ReferenceError` end
 * the server; all others are reported, and it tries again after 100 milliseconds.
 */
export interface ServeListener<S extends StreamSocket = StreamSocket, A extends Addr = Addr>
  extends ListenerLike<S, A> {
  /** The address it listens on. */
  readonly addr: A;
  /** Stops listening; whoever waits on it gets `ClosedError`. */
  close(): void;
  /** Waits until it is closed and its address is free again. Without it `serve` may return a little earlier. */
  waitClosed?(): Coroutine<void>;
}

/** Options of {@linkcode serve}. */
export interface ServeOptions<A extends Addr = Addr> {
  /**
   * How many handlers run at once; other connections wait in the system's backlog. A socket that goes on delivering after
   * its handler has ended is not counted. Default: no limit.
   */
  maxConnections?: number | undefined;
  /**
   * How long handlers may go on, in milliseconds, after the server was asked to end; then they are cancelled. Another
   * cancellation does not cut that short: for this, run each in `cancelScope(() => handler(sock), { signal })`. Default: 1000.
   */
  drainTimeout?: number | undefined;
  /**
   * Told of each error of a handler, with its client's address; and, with no address, of those of `accept` and of an
   * async `onListen`. Default: the loop's `onError`, which is told in any case of a handler that had to be given up.
   */
  onError?: ((error: unknown, addr?: A) => void) | undefined;
  /**
   * Ends the server when it aborts; `serve` then returns. A handler that waits for its client's next request should heed
   * it too: `yield* cancelScope(() => stream.readLine(), { signal })` is then undefined.
   */
  signal?: AbortSignal | undefined;
  /** Called once, with the listener's address, when the server is about to accept. What it throws ends the server. */
  onListen?: ((addr: A) => void) | undefined;
}

/**
 * Accepts connections and runs `handler` for each, in a task named after the client. The socket is closed when its handler
 * ends, whichever way. The listener is the server's from now on.
 *
 * The server ends when it is cancelled, when `signal` aborts, or when the listener is closed: it stops accepting, lets the
 * handlers finish for `drainTimeout`, cancels those that have not, and waits for their cleanup.
 *
 * @throws {RangeError} If `maxConnections` or `drainTimeout` is out of range.
 * @throws {TypeError} If `listener` is not a listener, `handler` not a function, or `signal` not an `AbortSignal`.
 * @throws {ClosedError} If `listener` is closed already.
 * @throws {BusyError} If another task accepts from `listener`, or it has a server (also one of a loop that was stopped). It
 * then stays open.
 *
 * @example
 * ```ts
 * import { type Coroutine, listen, Loop, serve, type Socket, Stream } from "@yieldloop/yieldloop";
 *
 * function* shout(sock: Socket): Coroutine {
 *   const stream = new Stream(sock);
 *   for (let line; (line = yield* stream.readLine()) !== null;) yield* stream.write(`${line.toUpperCase()}\n`);
 * }
 *
 * const stop = new AbortController();
 * const listener = listen({ hostname: "127.0.0.1", port: 0 });
 * await new Loop().run(serve(listener, shout, {
 *   maxConnections: 100,
 *   signal: stop.signal,
 *   onListen: (addr) => {
 *     console.log("listening on", addr);
 *     stop.abort(); // This example has seen enough.
 *   },
 * }));
 * ```
 */
export function serve<S extends StreamSocket, A extends Addr>(
  listener: ServeListener<S, A>,
  handler: (sock: S, addr: A) => Coroutine<unknown>,
  options: ServeOptions<A> = {},
): Coroutine<void> {
  const { maxConnections = Infinity, drainTimeout = DRAIN_TIMEOUT, signal, onError, onListen } = options;
  if (typeof handler !== "function") {
    hush(handler); // Perhaps the promise of one.
    throw new TypeError(`Cannot serve with ${kind(handler)}: it takes serve(listener, function* (sock, addr) { ... })`);
  }
  checkSignal("serve", signal);
  checkFunctions("serve", { onError, onListen });
  if (maxConnections !== Infinity && !(Number.isSafeInteger(maxConnections) && maxConnections >= 1)) {
    throw new RangeError(`Cannot serve ${kind(maxConnections)} connections: the number must be a whole one from 1 up`);
  }
  checkDuration("drain", drainTimeout);
  if (typeof listener?.accept !== "function") {
    hush(listener); // Perhaps the promise of one.
    throw new TypeError(
      `Cannot serve on ${kind(listener)}: it takes a listener, as in serve(listen({ port }), handler)`,
    );
  }
  // Closing it later ends the server; closed before, the server would end at once and say nothing.
  if (listener.closed) throw new ClosedError(`Cannot serve on ${listener}: it is closed`);
  return new Server(listener, handler, { maxConnections, drainTimeout, signal, onError, onListen }).run();
}

/** Options, with the defaults filled in. */
type Settings<A extends Addr> = ServeOptions<A> & { maxConnections: number; drainTimeout: number };

class Server<S extends StreamSocket, A extends Addr> {
  readonly #listener: ServeListener<S, A>;
  readonly #handler: (sock: S, addr: A) => Coroutine<unknown>;
  readonly #options: Settings<A>;
  readonly #connections = new Map<Task, [sock: S, addr: A]>();
  readonly #room = new ParkingLot("a connection to end");

  constructor(
    listener: ServeListener<S, A>,
    handler: (sock: S, addr: A) => Coroutine<unknown>,
    options: Settings<A>,
  ) {
    this.#listener = listener;
    this.#handler = handler;
    this.#options = options;
  }

  /**
   * Discussion: a cancellation from outside has to reach the acceptor at once, the handlers only after a while. So the
   * handlers live in a shielded scope, in which this task waits too, and the acceptor is a task outside it.
   */
  *run(): Coroutine<void> {
    const loop = runningLoop();
    yield* cancelScope(
      (outside) => cancelScope((handlers) => this.#serve(loop, outside, handlers), { shield: true }),
      { signal: this.#options.signal },
    );
    yield* checkpoint(); // If this task was cancelled, it hears of it here.
  }

  *#serve(loop: Loop, outside: CancelScope, handlers: CancelScope): Coroutine<void> {
    using _claim = this.#listener.closed ? null : claim(this.#listener); // Closed, it may have one that drains.
    let acceptor: Task<void> | undefined;
    try {
      if (!this.#listener.closed && !outside._cancelledBy) this.#tellListening();
      acceptor = loop.createTask(this.#accept(loop, handlers), { name: "serve", scope: outside });
      yield* untilAskedToEnd(acceptor);
    } finally {
      const isOurs = !(acceptor?.error instanceof BusyError); // If busy, it belongs to whoever accepts from it.
      try {
        if (isOurs) this.#listener.close();
      } finally {
        yield* this.#drain(handlers);
      }
      if (isOurs && this.#listener.waitClosed) yield* shield(this.#listener.waitClosed());
    }
  }

  #tellListening(): void {
    const task = currentTask();
    const told: unknown = this.#options.onListen?.(this.#listener.addr);
    if (told instanceof Promise) told.catch((error) => this.#report(error, task));
  }

  *#drain(handlers: CancelScope): Coroutine<void> {
    yield* moveOnAfter(this.#options.drainTimeout, this.#untilAllEnded());
    handlers.cancel("the server is shutting down");
    yield* shield(this.#untilAllEnded());
  }

  *#untilAllEnded(): Coroutine<void> {
    for (const task of this.#connections.keys()) yield* task.wait();
  }

  *#accept(loop: Loop, handlers: CancelScope): Coroutine<void> {
    for (;;) {
      // A listener is never writable, so `writeWait` ends when it is closed, and leaves its connections alone.
      while (this.#isFull) yield* race([this.#someRoom(), writeWait(this.#listener)]);
      try {
        const [sock, addr] = yield* loop.sockAccept(this.#listener);
        const task = loop.createTask(this.#handle(sock, addr), { name: nameOf(addr), scope: handlers });
        this.#connections.set(task, [sock, addr]);
        task.addDoneCallback(this.#release);
        if (!this.#options.onError) loop._unwatch(task); // Its error is the loop's to report.
      } catch (error) {
        const name = error instanceof Error ? error.name : "";
        if (FATAL.has(name)) throw error;
        if (GONE.has(name)) continue;
        withoutStack(error);
        this.#report(error, currentTask());
        yield* moveOnAfter(ACCEPT_BACKOFF, writeWait(this.#listener)); // Closed meanwhile, it ends the server at once.
      }
    }
  }

  get #isFull(): boolean {
    return this.#connections.size >= this.#options.maxConnections;
  }

  /** Checks again in the very step in which it parks: in a race that is later than the call. */
  *#someRoom(): Coroutine<void> {
    if (this.#isFull) yield* park(this.#room);
  }

  *#handle(sock: S, addr: A): Coroutine<void> {
    yield* checkRunnable(this.#handler(sock, addr));
  }

  /** Not in a `finally` of `#handle`: when the loop gives a handler up, its task ends, but perhaps not its coroutine. */
  readonly #release = (task: Task): void => {
    const [sock, addr] = this.#connections.get(task)!;
    this.#connections.delete(task);
    this.#room.unpark();
    try {
      sock.close();
    } finally {
      if (this.#options.onError && task.error !== undefined && !task._reported) this.#report(task.error, task, addr);
    }
  };

  /** Tells `onError`, or the loop's, of what went wrong in `task`. */
  #report(error: unknown, task: Task, addr?: A): void {
    const failed = (error: unknown) => task.loop._report(error, task);
    if (this.#options.onError) callHook(() => this.#options.onError?.(error, addr), failed);
    else failed(error);
  }
}

/** The listeners that have a server. One that is full waits for no connection, so nothing else would show that. */
const SERVED = new WeakSet<ServeListener>();

/** Keeps `listener` for one server. */
function claim(listener: ServeListener): Disposable {
  if (SERVED.has(listener)) throw new BusyError(`Cannot serve on ${listener}: another server accepts from it`);
  SERVED.add(listener);
  return { [Symbol.dispose]: () => void SERVED.delete(listener) };
}

/** Waits for the acceptor's end. If it was cancelled, or the listener closed, the server was asked to end. */
function* untilAskedToEnd(acceptor: Task<void>): Coroutine<void> {
  try {
    yield* acceptor.join();
  } catch (error) {
    if (!(error instanceof TaskError || error instanceof ClosedError)) throw error;
  }
}

/**
 * Discussion: to show where in a TypeScript file an error was made, Deno opens a file. With no file left to open, that ends
 * the whole program (seen in 2.9.6): the server would die of its report of the shortage. Such a stack shows nothing but
 * `accept` anyway; its first line is kept.
 */
function withoutStack(error: unknown): void {
  if (error instanceof Error && "code" in error && NO_FILE_LEFT.has(error.code)) error.stack = String(error);
}

/** What the task of a client is called; undefined for one that has no address, as on a Unix path. */
function nameOf(addr: Addr): string | undefined {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : undefined;
}
