/**
 * net.ts: the readiness shim.
 *
 * The loop of the article asks a selector which sockets are *ready*: a `recv` on a readable one returns at once.
 * Deno has no such question; it has promises that *complete*. This file is the bridge, and the only one that knows
 * Deno's sockets.
 *
 * What "ready" means when all there is are promises:
 *
 * - *Readable*: a `read()` that was started has completed, and what it brought has not all been taken; or the stream
 *   has ended, or failed, or the socket was closed. `recv` then takes it without waiting.
 * - *Writable*: there is room for at least one byte in what the socket may hold unsent. `send` copies into that room.
 * - *Acceptable* (readable, of a listener): an `accept()` that was started has brought a connection.
 *
 * To *arm* is to start the `read()` or `accept()` whose completion makes a socket ready. A selector arms what it watches
 * when it looks, not when it is registered, and there is never more than one read, one write and one accept under way.
 *
 * What is held per socket: at most {@linkcode READ_MAX} bytes that have arrived and were not yet taken, and twice
 * {@linkcode SEND_MAX} bytes that were sent and have not left. An idle socket pins one small buffer: read sizes
 * start at {@linkcode READ_MIN} and follow the traffic, so one that fell silent after bulk pins a larger one. (So that a
 * message is not cut in two by what a small read had room for, one that was filled is followed by a larger one at once; one
 * into the rest of 64 KiB is not. Nor on a TCP socket that `connect` has made, as `startTls` can take its connection only
 * with no read under way: there sizes start at {@linkcode READ_MIN_PLAIN}.) A datagram socket holds one datagram each way,
 * and a buffer of 64 KiB. All sockets together keep 2 MiB of free write buffers.
 *
 * A read or accept cannot be taken back. So when a wait is cancelled it stays armed, and what it brings is kept for whoever
 * reads or accepts next. Nothing is lost. It does not keep the program from ending (except an accept of TLS: Deno
 * has it so).
 *
 * Each promise gets its handlers the moment it is made; no rejection goes unheard.
 *
 * @module
 */

import {
  type Addr,
  BusyError,
  Cancelled,
  checkBuffer,
  checkBytes,
  checkCount,
  checkpoint,
  checkRunnable,
  ClosedError,
  type Coroutine,
  type DatagramLike,
  defaultWorld,
  EVENT_READ,
  EVENT_WRITE,
  hush,
  kind,
  type ListenerLike,
  type Network,
  runningLoopOrNull,
  type Selectable,
  type Selector,
  type SelectorKey,
  setDefaultWorld,
  type SocketLike,
  until,
  WouldBlock,
} from "./loop.ts";

/** The size of a socket's first read, in bytes; what an idle connection costs follows from it. */
const READ_MIN = 512;
/** The same where `startTls` may take the connection, and so nothing is read ahead: most first answers in one piece. */
const READ_MIN_PLAIN = 16384;
/** The largest buffer that many small reads share, in bytes; larger ones share twice their size. */
const SLAB_MAX = 4096;
/** The largest read, in bytes. */
const READ_MAX = 65536;
/** A read that finds something in the system is over after two rounds of microtasks; it is given twice as many. */
const AHEAD_ROUNDS = 4;
/** After so many reads in a row that use less than a sixteenth of it, the read size shrinks. */
const SMALL_READS = 8;
/** How many bytes one write takes; as many again may wait behind it. */
const SEND_MAX = 65536;
/** The largest datagram there is, rounded up, in bytes. */
const DATAGRAM_MAX = 65536;
/** How many bytes one direction of a {@linkcode socketPair} holds, besides those in its two sockets. */
const PIPE_SIZE = 16384;
/** How often, in milliseconds, a loop that never rests makes Deno ask the system for input and output. */
const SYSTEM_INTERVAL = 5;
/** How many of Deno's turns it takes until it does. */
const SYSTEM_TURNS = 64;
/** In a wait that is not over after this many rounds of microtasks Deno rests, and asks the system. */
const REST_ROUNDS = 32;
/** How long a closed socket may go on delivering what was sent, in milliseconds, before the rest is dropped. */
const LINGER = 10_000;
/**
 * How many bytes a closed socket goes on to read and drop once its own have left: more than most peers send before they
 * read our answer, and an end to those that never read it.
 */
const LINGER_MAX = 1 << 24;
/** After this many reads in a row, a closed socket lets others go first. */
const LINGER_READS = 8;

// -------------------------------------
// The selector
// -------------------------------------

let nextId = 1;

/** What can keep the program from ending while something is under way on it, as `Deno.Conn` and `Deno.Listener` do. */
interface Holder {
  /** Keeps it from ending. */
  ref?(): void;
  /** Lets it end. */
  unref?(): void;
}

/** What {@linkcode DefaultSelector} can watch: it says whether it is ready, can be armed, and signals a change. */
export abstract class Pollable implements Selectable, Disposable {
  /** A number no other socket of this program has. */
  readonly id: number = nextId++;
  /** @ignore Who watches the read side, and the write side. */
  _readKey: Key | null = null;
  /** @ignore */
  _writeKey: Key | null = null;

  /** @ignore Whether it, being open, is ready for `event` now. */
  abstract _ready(event: number): boolean;
  /** @ignore Starts whatever makes it ready for `event`. */
  abstract _arm(event: number): void;
  /** @ignore What a read or accept is under way on; null if none is. */
  abstract get _underWay(): Holder | null;
  /** Closes it. Whoever waits on it gets {@linkcode ClosedError}. Closing twice is fine. */
  abstract close(): void;
  /** What it is called in messages. */
  abstract toString(): string;

  #released: Holder | null = null;
  #closed = false;

  /** Whether it has been closed. */
  get closed(): boolean {
    return this.#closed;
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @ignore From here on nobody can use it, and whoever waits is told so. */
  _shut(): void {
    this.#closed = true;
    this._signal(EVENT_READ);
    this._signal(EVENT_WRITE);
  }

  /** @ignore Throws if it is closed. */
  _check(what: string): void {
    if (this.#closed) throw new ClosedError(`Cannot ${what} ${this}: it is closed`);
  }

  /** @ignore Somebody waits: what is under way keeps the program going. */
  _hold(): void {
    this.#released?.ref?.();
    this.#released = null;
  }

  /** @ignore Nobody waits: it does not, until somebody does again. (What is under way on a closed one ends by itself.) */
  _release(): void {
    if (this.#released) return; // It was let go already, and stays so until somebody waits.
    this.#released = this.#closed ? null : this._underWay;
    this.#released?.unref?.();
  }

  /** @ignore To be called when it may have become ready for `event`. */
  _signal(event: number): void {
    const key = event === EVENT_READ ? this._readKey : this._writeKey;
    if (key) key.selector!._signalled(key);
  }

  /** What `console.log` shows of it: the same words. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }

  /** What `JSON.stringify` makes of it: the same words. */
  toJSON(): string {
    return this.toString();
  }
}

/** A registration. */
class Key implements SelectorKey {
  /** Whether it is in the list of keys to look at, and which comes after it there. */
  queued = false;
  next: Key | null = null;
  constructor(
    readonly fileobj: Pollable,
    public events: number,
    readonly data: any,
    public selector: DefaultSelector | null,
  ) {}
}

/**
 * A selector over promises. It is level-triggered, as the article's is: what is registered and ready is reported by
 * every `select` until it is unregistered or no longer ready.
 *
 * @example By hand, with no loop
 * ```ts
 * import { DefaultSelector, EVENT_READ, listen } from "@yieldloop/yieldloop";
 *
 * const selector = new DefaultSelector();
 * using listener = listen({ hostname: "127.0.0.1", port: 0 });
 * selector.register(listener, EVENT_READ, "a client is here");
 * for (const [key] of await selector.select(10)) console.log(key.data);
 * selector.close();
 * ```
 */
export class DefaultSelector implements Selector {
  /** @ignore Whether it has been closed, and watches nothing any more. */
  _closed = false;
  /** Keys that may be ready, linked: those that signalled, and those that were ready when last looked at. */
  #first: Key | null = null;
  #last: Key | null = null;
  #resolve: (() => void) | null = null;
  /** When the `select` under way returns at the latest. */
  #due = Infinity;
  /** When Deno last had a reason to ask the system what has arrived, and whether it had one since. */
  #askedAt = 0;
  #rested = false;
  // Discussion: to set and clear a timer of the platform's costs more than the rest of a turn. So for a loop, which will
  // select again, it is left running when `select` returns, and serves the next one; if it comes too early it is set again.
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerDue = Infinity;
  #keepsTimer = false;
  readonly #onTimer = () => {
    this.#timerDue = Infinity;
    if (!this.#resolve) return;
    const now = performance.now();
    if (now >= this.#due) this.wakeup();
    else this.#setTimer(now);
  };

  /**
   * Watches `fileobj` for `events`. Both sides of one socket can be watched under two keys.
   *
   * @throws {TypeError} If `fileobj` is nothing this selector can watch, or `events` names no event.
   * @throws {BusyError} If one of `events` is watched already.
   * @throws {ClosedError} If `fileobj` is closed, or the selector is.
   */
  register(fileobj: Selectable, events: number, data?: unknown): SelectorKey {
    if (!(fileobj instanceof Pollable)) {
      hush(fileobj); // Perhaps the promise of one.
      throw new TypeError(
        `Cannot wait for ${kind(fileobj)}: it is not a socket or listener of listen(), connect() and the like`,
      );
    }
    if (events !== EVENT_READ && events !== EVENT_WRITE && events !== (EVENT_READ | EVENT_WRITE)) {
      throw new TypeError(
        `Cannot wait for events ${kind(events)}: use EVENT_READ, EVENT_WRITE, or both or-ed together`,
      );
    }
    if (this._closed) throw new ClosedError(`Cannot wait for ${fileobj}: the selector is closed`);
    if (fileobj.closed) throw new ClosedError(`Cannot wait for ${fileobj}: it is closed`);
    if ((events & EVENT_READ) && isWatched(fileobj._readKey)) throw busy(fileobj, "recv on", "read");
    if ((events & EVENT_WRITE) && isWatched(fileobj._writeKey)) throw busy(fileobj, "send on", "write");
    const key = new Key(fileobj, events, data, this);
    if (events & EVENT_READ) {
      fileobj._readKey = key;
      fileobj._hold();
    }
    if (events & EVENT_WRITE) fileobj._writeKey = key;
    this._signalled(key);
    return key;
  }

  /** Ends the watch for `events`, by default for both. What arrives is kept for the next who watches. */
  unregister(fileobj: Selectable, events: number = EVENT_READ | EVENT_WRITE): void {
    if (!(fileobj instanceof Pollable)) return;
    if (events & EVENT_READ && fileobj._readKey?.selector === this) {
      this.#drop(fileobj._readKey, EVENT_READ);
      fileobj._readKey = null;
      fileobj._release();
    }
    if (events & EVENT_WRITE && fileobj._writeKey?.selector === this) {
      this.#drop(fileobj._writeKey, EVENT_WRITE);
      fileobj._writeKey = null;
    }
  }

  #drop(key: Key, event: number): void {
    if (key.events === event) key.selector = null; // It keeps its last event, for whoever still holds the key.
    else key.events &= ~event;
  }

  /**
   * Waits for something to be ready, `timeout` milliseconds at most, and says what; `select(0)` waits for one or more turns
   * of Deno's event loop, `select(Infinity)` for ever, with a timer that keeps the program going. It may return early with
   * nothing, for instance if something was registered meanwhile. A second `select` makes one under way return. With `again`
   * a timer may be left behind for the next: `wakeup` or `close` clears it.
   *
   * @throws {RangeError} If `timeout` is not a number.
   * @throws {ClosedError} If the selector is closed.
   */
  select(timeout?: number, again: boolean = false): Promise<[SelectorKey, number][]> {
    if (timeout !== undefined && (typeof timeout !== "number" || Number.isNaN(timeout))) {
      return Promise.reject(new RangeError(`Cannot select for ${kind(timeout)} ms: the time must be a number`));
    }
    if (this._closed) return Promise.reject(new ClosedError("Cannot select: the selector is closed"));
    if (this.#resolve) this.wakeup();
    if (timeout !== undefined && timeout <= 0) return this.#platformTurn();
    const events = this.poll();
    if (events.length > 0) return Promise.resolve(again ? events : this.#pollByHand());
    this.#keepsTimer = again;
    this.#due = Infinity;
    if (timeout !== undefined) this.#setDue(timeout);
    return new Promise<void>((resolve) => {
      this.#resolve = resolve;
      if (!this.#rested) this.#noteRest(resolve);
    }).then(again ? this.#poll : this.#pollByHand); // What completes at the same time as the socket is seen there too.
  }

  readonly #poll = () => this.poll();
  // A loop sees to it that Deno turns. By hand, what is ready at once each time would keep everything else waiting.
  readonly #pollByHand = () => this.#hasAsked(performance.now()) ? this.poll() : this.#platformTurn();

  #hasAsked(now: number): boolean {
    return isRecent(this.#askedAt, now) || isRecent(systemAskedAt, now);
  }

  /**
   * Discussion: Deno asks the system what has arrived when it has nothing else to do; kept busy, only in each 61st turn.
   * With a turn at a time, tasks that never rest would see their input after tens of thousands of steps. So if Deno was last
   * at rest long ago it gets all these turns at once: about 0.3 ms of them in each 5.
   */
  #platformTurn(): Promise<[SelectorKey, number][]> {
    const now = performance.now();
    if (this.#rested) this.#askedAt = now;
    this.#rested = false;
    this.poll(); // What was registered since the last look is armed by this, and may be ready after the turn.
    return (asking ?? (this.#hasAsked(now) ? platformTurns(1) : askSystem())).then(this.#poll);
  }

  /** Notes if this wait lasts. Many do not: a read or write that the system does at once is over in a few microtasks. */
  async #noteRest(wait: () => void): Promise<void> {
    for (let round = 0; round < REST_ROUNDS; round++) {
      await null;
      if (this.#resolve !== wait) return;
    }
    this.#rested = true;
  }

  #setDue(timeout: number): void {
    const now = performance.now();
    this.#due = Math.min(now + timeout, Number.MAX_VALUE); // At Infinity too there is a timer, set again and again.
    this.#setTimer(now);
  }

  #setTimer(now: number): void {
    // (One that should have come is not trusted: it may have been made by a fake of the platform's timers.)
    if (this.#due >= this.#timerDue && this.#timerDue > now) return;
    clearTimeout(this.#timer);
    this.#timerDue = this.#due;
    // A longer delay would silently become the shortest.
    const delay = Math.min(Math.ceil(this.#due - now), 2 ** 31 - 1);
    this.#timer = setTimeout(this.#onTimer, delay);
  }

  /** What is ready now. */
  poll(): [SelectorKey, number][] {
    let events: [SelectorKey, number][] = [];
    let key = this.#first;
    this.#first = this.#last = null;
    while (key) {
      const { next }: Key = key;
      key.queued = false;
      key.next = null;
      const ready = key.selector === this ? this.#look(key, EVENT_READ) | this.#look(key, EVENT_WRITE) : 0;
      if (ready) {
        // Mostly there is one, and the first push() would make room for seventeen.
        if (events.length === 0) events = [[key, ready]];
        else events.push([key, ready]);
        this._signalled(key); // Level-triggered: it is looked at again as long as it is registered.
      }
      key = next;
    }
    return events;
  }

  /** Whether `fileobj` is open, ready for `event`, and watched by nobody for that. */
  isReady(fileobj: Selectable, event: number): boolean {
    if (!(fileobj instanceof Pollable) || fileobj.closed) return false;
    return !isWatched(event === EVENT_READ ? fileobj._readKey : fileobj._writeKey) && fileobj._ready(event);
  }

  #look(key: Key, event: number): number {
    if (!(key.events & event)) return 0;
    if (key.fileobj.closed || key.fileobj._ready(event)) return event;
    key.fileobj._arm(event);
    return 0;
  }

  /** @ignore `key` may be ready. */
  _signalled(key: Key): void {
    this._queue(key);
    if (this.#resolve) this.wakeup();
  }

  /** @ignore `key` is to be looked at, but a `select` under way need not return for that. */
  _queue(key: Key): void {
    if (this._closed || key.queued) return;
    key.queued = true;
    if (this.#last) this.#last.next = key;
    else this.#first = key;
    this.#last = key;
  }

  /** Makes a `select` under way return; with none under way, lets go of the timer that waits for the next one. */
  wakeup(): void {
    const resolve = this.#resolve;
    this.#resolve = null;
    resolve?.();
    if (resolve && this.#keepsTimer) return;
    clearTimeout(this.#timer);
    this.#timerDue = Infinity;
  }

  /**
   * Ends every watch and a `select` under way. What was watched may still keep the program from ending, until it is
   * unregistered or closed itself. Closing twice is fine.
   */
  close(): void {
    this._closed = true;
    this.#first = this.#last = null;
    this.#keepsTimer = false;
    this.wakeup();
  }
}

/** When Deno was last made to ask the system, and the turns under way for that. */
let systemAskedAt = 0;
let asking: Promise<void> | null = null;

/** Once for all loops: if each of some hundred took its own turns, all would be due again when these are over. */
function askSystem(): Promise<void> {
  return asking = platformTurns(SYSTEM_TURNS).then(() => {
    asking = null;
    systemAskedAt = performance.now();
  });
}

function isRecent(time: number, now: number): boolean {
  return time <= now && now - time < SYSTEM_INTERVAL; // (A fake of the platform's clock may have been ahead.)
}

/**
 * The one there is when it is first needed: all loops wait for the same turns, and a test's fake might never call back.
 * (Not when this module is loaded: Deno then loads much that it has for Node, and every start would wait for that.)
 */
let inNextTurn: typeof setImmediate | undefined;

function platformTurns(turns: number): Promise<void> {
  const schedule = inNextTurn ??= setImmediate;
  return new Promise((resolve) => {
    const next = () => --turns > 0 ? void schedule(next) : resolve();
    schedule(next);
  });
}

function isWatched(key: Key | null): boolean {
  return key !== null && !key.selector!._closed; // Who drops a key takes it from its socket.
}

function busy(fileobj: Pollable, what: string, verb: string): BusyError {
  if (fileobj instanceof Listener) what = verb = "accept from";
  return new BusyError(`Cannot ${what} ${fileobj}: another task is already waiting to ${verb} it`);
}

// -------------------------------------
// Sockets
// -------------------------------------

/** Buffers for bytes on their way out, kept for the next write: fresh memory costs more than the copy into it. */
class BufferPool {
  static readonly #SIZES = [1024, 4096, 16384, SEND_MAX];
  /** How many free buffers of each size are kept: 2 MiB in all. */
  static readonly #KEPT = [256, 64, 32, 16];
  readonly #free: Uint8Array<ArrayBuffer>[][] = [[], [], [], []];
  // Discussion: many connections with much to send use more at once. What they give back is dropped, but until the garbage
  // collector takes it, it can serve again. With that an echo of 100 KiB over 1000 connections, through `sockRecvInto`,
  // costs 0.56 of what it did (two servers measured in turn).
  readonly #dropped: (WeakRef<Uint8Array<ArrayBuffer>[]> | undefined)[] = [];

  /** A buffer of at least `size` bytes, `SEND_MAX` at most. */
  take(size: number): Uint8Array<ArrayBuffer> {
    let i = 0;
    while (BufferPool.#SIZES[i] < size) i++;
    return this.#free[i].pop() ?? this.#dropped[i]?.deref()?.pop() ?? new Uint8Array(BufferPool.#SIZES[i]);
  }

  /** Gives a buffer back. */
  give(buffer: Uint8Array<ArrayBuffer>): void {
    const i = BufferPool.#SIZES.indexOf(buffer.length);
    const free = this.#free[i].length < BufferPool.#KEPT[i] ? this.#free[i] : this.#dropped[i]?.deref();
    if (free) free.push(buffer);
    else this.#dropped[i] = new WeakRef([buffer]);
  }
}

const pool = new BufferPool();

/**
 * What a {@linkcode Socket} needs of the connection below it. `Deno.TcpConn`, `Deno.TlsConn` and `Deno.UnixConn` have it.
 * What returns a promise must not throw, and rejects with an `Error`.
 */
export interface Connection {
  /** Our address. */
  readonly localAddr: Addr;
  /** The peer's address. */
  readonly remoteAddr: Addr;
  /** Resolves to the number of bytes it has put into `buffer`; null at end of stream. */
  read(buffer: Uint8Array): Promise<number | null>;
  /** Resolves to the number of bytes of `data` it has taken: at least one. */
  write(data: Uint8Array): Promise<number>;
  /** Ends our side of the stream. */
  closeWrite(): Promise<void>;
  /** Closes both sides; what is pending rejects. */
  close(): void;
  /** For TCP. */
  setNoDelay?(on?: boolean): void;
  /** For TCP. */
  setKeepAlive?(on?: boolean): void;
  /** For TLS: resolves when both sides have agreed. */
  handshake?(): Promise<TlsHandshakeInfo>;
  /** A read under way keeps the program from ending, as it does from the beginning... */
  ref?(): void;
  /** ...or does not: nobody waits for what it brings. */
  unref?(): void;
}

/** What the two sides of a TLS connection have agreed on. */
export interface TlsHandshakeInfo {
  /** The one of `alpnProtocols` that both name; null if a side names none. (With none in common they do not agree at all.) */
  alpnProtocol: string | null;
}

function isReset(error: unknown): boolean {
  return error instanceof Deno.errors.ConnectionReset;
}

const NO_SLAB = new ArrayBuffer(0);

/** Where input that nobody will ever look at goes; all sockets share it. */
let scrap: Uint8Array | null = null;

/**
 * A connected socket, between addresses of kind `A`. `recv`, `recvInto` and `send` never block: what cannot be done now
 * throws {@linkcode WouldBlock}. To wait, a task uses `loop.sockRecv` and `loop.sockSendall`, or `readWait` and `writeWait`.
 */
export class Socket<A extends Addr = Addr> extends Pollable implements SocketLike {
  readonly #conn: Connection;
  /** Whether a task is in `sockSendall` (set by the loop), or waits in `closeWrite` or `startTls`: no other may begin to. */
  sending = false;

  // The read side: bytes from #from to #to of the slab have arrived and were not taken; a read is started only when none
  // are left, and fills what is behind them (or, to read ahead, a slab of its own). Bytes are handed out as views of the
  // slab, never copied, so what lies before #given is never written again.
  #slab = NO_SLAB;
  #given = 0;
  #from = 0;
  #to = 0;
  /** Where a read ahead puts its bytes. */
  #ahead: Uint8Array<ArrayBuffer> | null = null;
  #readMin = READ_MIN;
  #readSize = READ_MIN;
  #slabSize = READ_MIN;
  #reading = false;
  /** How many bytes the last read has brought, with those that it was to add to. */
  #lastRead = 0;
  /** How many reads in a row were nearly empty. */
  #smallReads = 0;
  #eof = false;
  #readError: unknown = null;

  // The write side: the bytes of one write under way, and what was sent since. Buffers are the pool's.
  #leaving: Uint8Array<ArrayBuffer> | null = null;
  #leavingFrom = 0;
  /** Stays when the write has ended: 0 says that nothing was ever sent. */
  #leavingTo = 0;
  #waiting: Uint8Array<ArrayBuffer> | null = null;
  #waitingLength = 0;
  /** The end of our side, under way or done. */
  #writeEnd: Promise<void> | null = null;
  #writeError: unknown = null;
  /** How many tasks are in `#flush`, and those of them that wait. */
  #flushing = 0;
  #flushers: Waiters<void> | null = null;
  /** Who waits in `#until`. */
  #waiters: Waiters<any> | null = null;
  #handshake: Promise<TlsHandshakeInfo> | null = null;
  /** Settings that wait for the end of a write, by name. */
  #settings: Map<string, () => void> | null = null;
  #lingerTimer: ReturnType<typeof setTimeout> | undefined;
  /** Since it was closed: how many reads have ended, and how many bytes came after all of ours had left. */
  #lingerReads = 0;
  #lingerBytes = 0;
  /** Whether the connection was let go. */
  #ended = false;

  /** Makes a socket over `conn`, which is the socket's from now on. */
  constructor(conn: Connection) {
    super();
    this.#conn = conn;
  }

  /** What it is called in messages. */
  toString(): string {
    return `socket ${this.id}`;
  }
  /** Our address. */
  get localAddr(): A {
    return this.#conn.localAddr as A;
  }
  /** The peer's address. */
  get remoteAddr(): A {
    return this.#conn.remoteAddr as A;
  }

  /** @ignore */
  _ready(event: number): boolean {
    if (event === EVENT_READ) return this.#to > this.#from || this.#eof || this.#readError !== null;
    return this.#waitingLength < SEND_MAX || this.#writeError !== null;
  }

  /** @ignore */
  _arm(event: number): void {
    if (event !== EVENT_READ) return;
    this._hold(); // What was read ahead was let go.
    if (!this.#reading) this.#read();
  }

  /** @ignore */
  get _underWay(): Connection | null {
    return this.#reading ? this.#conn : null;
  }

  // ---- Reading ----------------------

  /** @ignore `startTls` may take its connection: a read under way, which cannot be taken back, would be in the way. */
  _mayStartTls(): void {
    this.#readMin = this.#readSize = READ_MIN_PLAIN;
  }

  /**
   * Takes at most `maxBytes` of what has arrived; an empty array at end of stream, again and again. The array is a view
   * into a larger buffer whose other parts are not yours; `slice()` it to keep only a part, or to transfer it. (But
   * for what is read ahead, nothing arrives here before somebody waits: whether an idle connection was closed shows in a
   * short `readWait`.)
   *
   * @throws {WouldBlock} If nothing has arrived.
   * @throws {RangeError} If `maxBytes` is not a whole number from 1 up.
   * @throws {TypeError} If what was returned before was transferred, and with it what has arrived.
   * @throws {ClosedError} If the socket is closed.
   * @throws What Deno says of a connection that has failed.
   */
  recv(maxBytes: number): Uint8Array<ArrayBuffer> {
    this._check("recv on");
    checkCount("recv", maxBytes, 1);
    const from = this.#from;
    if (this.#to === from) return this.#nothing();
    if (this.#to > this.#slab.byteLength) this.#lost();
    this.#from = this.#given = Math.min(this.#to, from + maxBytes);
    return new Uint8Array(this.#slab, from, this.#from - from);
  }

  /**
   * Moves what has arrived into `buffer` and returns how many bytes that was; 0 at end of stream.
   *
   * @throws {WouldBlock} If nothing has arrived.
   * @throws {TypeError} If `buffer` is not a `Uint8Array`, or is empty, or what has arrived is lost as for `recv`.
   * @throws {ClosedError} If the socket is closed.
   * @throws What Deno says of a connection that has failed.
   */
  recvInto(buffer: Uint8Array): number {
    this._check("recv on");
    checkBuffer(buffer);
    if (this.#to === this.#from) return this.#nothing().length;
    if (this.#to > this.#slab.byteLength) this.#lost();
    const length = Math.min(this.#to - this.#from, buffer.length);
    buffer.set(new Uint8Array(this.#slab, this.#from, length));
    this.#from += length;
    // Once all is taken, the place of what was copied out is free again; that of what was handed out is not.
    if (this.#from === this.#to) this.#from = this.#to = this.#given;
    return length;
  }

  /** What is returned, or thrown, when nothing that has arrived is left. */
  #nothing(): Uint8Array<ArrayBuffer> {
    if (!this._ready(EVENT_READ)) throw new WouldBlock(`Cannot recv on ${this}: nothing has arrived`);
    this.#forgetInput();
    if (this.#readError !== null) throw this.#readError;
    // If a write has had the report of a reset, reads see only the end of a stream.
    if (isReset(this.#writeError)) throw this.#writeError;
    return new Uint8Array(0);
  }

  /** Somebody transferred what `recv` had returned, and with it what has arrived behind that. */
  #lost(): never {
    const length = this.#to - this.#from;
    this.#forgetInput();
    throw new TypeError(
      `Cannot recv on ${this}: its last ${length} bytes are lost, for what it returned before was transferred; slice() it first`,
    );
  }

  /**
   * Discussion: a read that is too small for what comes cuts a message in two; its echo leaves in two writes, and the
   * system holds back the second until the first is acknowledged, up to 40 ms later. So the rest of a slab is used only if
   * it has room for more than the last read brought.
   */
  #read(): void {
    const rest = this.#slab.byteLength - this.#to;
    const full = this.#to > 0 && rest <= Math.max(this.#lastRead, this.#readSize >> 2);
    // A slab that is full is followed by a larger one, which more reads share: fresh memory is what costs most in them.
    if (full) this.#slabSize = Math.min(this.#slabSize * 2, Math.max(2 * this.#readSize, SLAB_MAX), READ_MAX);
    this.#slabSize = Math.max(this.#slabSize, this.#readSize);
    if (full || this.#slab.byteLength !== this.#slabSize) {
      this.#slab = new ArrayBuffer(this.#slabSize);
      this.#given = this.#from = this.#to = 0;
    }
    this.#readInto(new Uint8Array(this.#slab, this.#to));
  }

  #readInto(target: Uint8Array): void {
    this.#reading = true;
    const settled = (result: unknown) => this.#onRead(result); // One for both: an idle connection holds it.
    this.#conn.read(target).then(settled, settled);
  }

  /** A read has ended: with a number of bytes, null at end of stream, or an error. */
  #onRead(result: unknown): void {
    this.#reading = false;
    if (typeof result !== "number") {
      if (result === null) this.#eof = true;
      else this.#readError = result;
      this.#ahead = null;
      // The system reports a reset once: the next write would seem to succeed.
      if (isReset(result)) this.#writeError ??= result;
    } else if (!this.closed) {
      if (this.#ahead) this.#joinAhead(this.#ahead);
      this.#to += result;
      this.#adapt(this.#to - this.#from);
      const { byteLength } = this.#slab;
      const filled = this.#to === byteLength && byteLength < READ_MAX;
      const mayReadAhead = this.#readMin !== READ_MIN_PLAIN && isWatched(this._readKey);
      if (filled && mayReadAhead) return void this.#readAhead(this._readKey!);
    }
    if (this.closed) return this.#onLingerRead(typeof result === "number" ? result : 0);
    this._signal(EVENT_READ);
    if (this.#writeError === null) return;
    this._signal(EVENT_WRITE);
    this.#wakeFlushed();
  }

  /**
   * Discussion: a read that was filled may have left something in the system, and `recv` is to return what has arrived, not
   * what a small read had room for: the first message would be cut in two. So another is started, into a larger slab that has
   * room for the first in front. If there was more it is over at once. If not it stays under way, as one that was armed early,
   * and what has arrived is told of without it.
   */
  async #readAhead(key: Key): Promise<void> {
    key.selector!._queue(key); // Whoever polls of its own accord hears of it.
    const arrived = this.#to - this.#from;
    this.#slabSize = Math.min(Math.max(this.#readSize, 4 * arrived), READ_MAX);
    const ahead = this.#ahead = new Uint8Array(new ArrayBuffer(this.#slabSize), arrived);
    this.#readInto(ahead);
    for (let round = 0; round < AHEAD_ROUNDS; round++) {
      await null;
      if (this.#ahead !== ahead) return; // Who has ended the read has told, or reads on.
    }
    if (!this._ready(EVENT_READ)) return; // All of it was taken meanwhile.
    this._release();
    this._signal(EVENT_READ);
  }

  /** What was read ahead comes behind what is left of that before it, which moves to the slab of the new. */
  #joinAhead(ahead: Uint8Array<ArrayBuffer>): void {
    this.#ahead = null;
    const left = this.#to - this.#from;
    const from = ahead.byteOffset - left;
    if (left > 0) {
      if (this.#to > this.#slab.byteLength) return; // It was transferred: so all of this is lost, as `recv` will say.
      new Uint8Array(ahead.buffer, from).set(new Uint8Array(this.#slab, this.#from, left));
    }
    this.#slab = ahead.buffer;
    this.#given = this.#from = from;
    this.#to = ahead.byteOffset;
  }

  /** A read that was filled makes the next one larger; several in a row that were nearly empty make it smaller. */
  #adapt(n: number): void {
    this.#lastRead = n;
    if (n < this.#readSize >> 4) {
      if (++this.#smallReads < SMALL_READS) return;
      this.#readSize = Math.max(this.#readSize >> 2, this.#readMin);
      this.#slabSize = this.#readSize;
    } else if (this.#to === this.#slab.byteLength) {
      this.#readSize = Math.min(this.#readSize * 4, READ_MAX);
    }
    this.#smallReads = 0;
  }

  #forgetInput(): void {
    this.#slab = NO_SLAB;
    this.#given = this.#from = this.#to = 0;
  }

  // ---- Writing ----------------------

  /**
   * Takes what fits of `data` and returns how many bytes that is. They are copied: `data` may be changed at once.
   *
   * @throws {WouldBlock} If there is no room.
   * @throws {TypeError} If `data` is not a `Uint8Array`.
   * @throws {ClosedError} If the socket is closed.
   * @throws {Deno.errors.BrokenPipe} After `closeWrite`, or if the peer is gone.
   * @throws What an earlier write has failed with.
   */
  send(data: Uint8Array): number {
    this._check("send on");
    checkBytes("send", data);
    if (this.#writeError !== null) throw this.#writeError;
    if (this.#writeEnd) throw new Deno.errors.BrokenPipe(`Cannot send on ${this}: its write side was closed`);
    if (data.length === 0) return 0;
    const room = SEND_MAX - this.#waitingLength;
    if (room === 0) throw new WouldBlock(`Cannot send on ${this}: it holds ${SEND_MAX} bytes that have not left yet`);
    const taken = data.length > room ? data.subarray(0, room) : data;
    this.#append(taken);
    if (this.#leaving === null) this.#write();
    return taken.length;
  }

  #append(data: Uint8Array): void {
    const length = this.#waitingLength + data.length;
    const old = this.#waiting;
    if (old === null) {
      this.#waiting = pool.take(length);
    } else if (length > old.length) {
      this.#waiting = pool.take(length);
      this.#waiting.set(old.subarray(0, this.#waitingLength));
      pool.give(old);
    }
    this.#waiting!.set(data, this.#waitingLength);
    this.#waitingLength = length;
  }

  /** What is waiting starts to leave. */
  #write(): void {
    this.#leaving = this.#waiting;
    this.#leavingFrom = 0;
    this.#leavingTo = this.#waitingLength;
    this.#waiting = null;
    this.#waitingLength = 0;
    this.#writeRest();
  }

  #writeRest(): void {
    const rest = this.#leaving!.subarray(this.#leavingFrom, this.#leavingTo);
    const settled = (result: unknown) => this.#onWritten(result);
    this.#conn.write(rest).then(settled, settled);
  }

  /** A write has ended: with the number of bytes it took, or an error. */
  #onWritten(result: unknown): void {
    if (typeof result === "number") {
      this.#leavingFrom += result;
      if (this.#leavingFrom < this.#leavingTo) return this.#writeRest();
      pool.give(this.#leaving!);
      this.#leaving = null;
      if (this.#settings) this.#applyLate(this.#settings);
    } else {
      this.#leaving = null; // Not given back to the pool: the platform may still read it.
      this.#writeError = result;
      this.#forgetOutput();
    }
    if (this.#waiting) this.#write();
    else this.#wakeFlushed();
    if (this.closed) this.#linger();
    else this._signal(EVENT_WRITE);
  }

  #forgetOutput(): void {
    if (this.#waiting) pool.give(this.#waiting);
    this.#waiting = null;
    this.#waitingLength = 0;
  }

  #wakeFlushed(): void {
    this.#flushers?.forEach((waiter) => waiter.resolve());
  }

  /** Waits until nothing that was sent is still here. Meanwhile no other task may send. */
  *#flush(what: string): Coroutine<void> {
    this._check(what);
    if (this.sending && this.#flushing === 0) {
      throw new BusyError(`Cannot ${what} ${this}: another task is still sending on it`);
    }
    this.sending = true;
    this.#flushing++;
    try {
      while (true) {
        if (this.#writeError !== null) throw this.#writeError;
        if (this.#leaving === null) return;
        yield* waitAmong(this.#flushers ??= new Set());
        this._check(what);
      }
    } finally {
      this.sending = --this.#flushing > 0;
    }
  }

  /**
   * Waits until everything sent has left, then ends our side of the stream: the peer sees its end, and can still send. While
   * it waits, the `sockSendall` of another task is refused. Cancelled, it may have ended our side, or may not.
   *
   * @throws {BusyError} If another task is still in `sockSendall`.
   * @throws {ClosedError} If the socket is closed, or gets closed meanwhile.
   * @throws What an earlier write has failed with, or what Deno says of a connection that has failed.
   */
  *closeWrite(): Coroutine<void> {
    this._check("close the write side of");
    if (!this.#writeEnd) yield* this.#flush("close the write side of");
    yield* this.#until("close the write side of", () => this.#writeEnd ??= this.#conn.closeWrite());
  }

  // ---- Settings ---------------------

  /**
   * Makes small writes leave at once (`TCP_NODELAY`); with `false`, as a socket begins, the system may hold them back. No
   * effect on Unix sockets and TLS.
   *
   * @throws {ClosedError} If the socket is closed.
   */
  setNoDelay(on = true): void {
    this.#set("noDelay", () => this.#conn.setNoDelay?.(on));
  }

  /**
   * Makes the system probe an idle connection (`SO_KEEPALIVE`); with `false`, as a socket begins, it does not. No effect on
   * Unix sockets and TLS.
   *
   * @throws {ClosedError} If the socket is closed.
   */
  setKeepAlive(on = true): void {
    this.#set("keepAlive", () => this.#conn.setKeepAlive?.(on));
  }

  /** Deno refuses settings while a write is under way, so they wait for its end. */
  #set(name: string, setting: () => void): void {
    this._check("set an option of");
    if (this.#leaving === null) setting();
    else (this.#settings ??= new Map()).set(name, setting);
  }

  #applyLate(settings: Map<string, () => void>): void {
    this.#settings = null;
    for (const setting of settings.values()) {
      try {
        setting();
      } catch {
        // Whoever asked has gone on. A connection that refuses a setting is broken, and its next use says so.
      }
    }
  }

  /**
   * Completes the TLS handshake and says what was agreed. It happens by itself with the first bytes; a server uses this
   * to learn the protocol first, or to give a slow client a deadline. Without TLS there is nothing to agree. Cancelled, it
   * goes on, and keeps the program going, until it is over or the socket is closed: Deno cannot let go of it.
   *
   * @throws {ClosedError} If the socket is closed, or gets closed meanwhile.
   * @throws What Deno says of a handshake that has failed: `InvalidData` or `UnexpectedEof`.
   */
  *handshake(): Coroutine<TlsHandshakeInfo> {
    this._check("shake hands on");
    if (!this.#conn.handshake) {
      yield* checkpoint();
      this._check("shake hands on");
      return { alpnProtocol: null };
    }
    const { alpnProtocol } = yield* this.#until("shake hands on", () => this.#handshake ??= this.#conn.handshake!());
    return { alpnProtocol };
  }

  /**
   * Begins something that the platform does to the connection, and waits for it, or for the socket to be closed. If it is
   * cancelled first, nothing has begun.
   */
  *#until<T>(what: string, begin: () => Promise<T>): Coroutine<T> {
    try {
      return yield* waitAmong<T>(this.#waiters ??= new Set(), ({ resolve, reject }) => begin().then(resolve, reject));
    } catch (error) {
      if (!(error instanceof Cancelled)) this._check(what);
      throw error;
    }
  }

  // ---- The end ----------------------

  /**
   * Closes the socket. Whoever waits on it gets {@linkcode ClosedError}; what `send` had taken is still delivered, for ten
   * seconds at most. What the peer sends meanwhile is read and dropped, at most 16 MiB once all of ours has left; then the
   * connection is cut. To leave in the middle of something long, use {@linkcode abort}. (If nothing was unsent or unread
   * here, TCP answers what the peer still sends with a reset, which may cost it our last bytes. If they must not be lost,
   * use {@linkcode closeWrite}, and close when the peer has ended its own side.) Closing twice is fine.
   */
  close(): void {
    if (this.closed) return;
    const unread = this.#to > this.#from;
    this._shut();
    if (this.#leavingTo === 0 && !this.#writeEnd) return this.#end(); // Nothing was ever sent, not even an end.
    if (this.#leaving === null && !unread) return this.#endIfSilent();
    this.#lingerTimer = setTimeout(() => this.#end(), LINGER);
    this.#writeEnd?.catch(() => this.#end()); // The peer would not hear of it.
    this.#linger();
  }

  /**
   * Closes the socket, even one that was closed and is still delivering, and drops what has not left this program. The peer
   * sees the end of the stream or, if something of its own lay unread, a reset; soon its writes fail. (With TLS Deno goes on
   * delivering what it has taken, and over TCP even a peer that is reset reads an end first.)
   */
  abort(): void {
    this._shut();
    this.#forgetOutput();
    this.#end();
  }

  /** @ignore */
  override _shut(): void {
    super._shut();
    this.#ahead = null;
    this.#forgetInput();
    this.#wakeFlushed();
    this.#waiters?.forEach((waiter) => waiter.reject(null)); // Whoever waits throws its own error.
  }

  /**
   * The next step of a closed socket that had something unsent or unread; called again whenever a read or write ends.
   *
   * Discussion: TCP answers bytes that arrive at, or lie unread in, a closed socket with a reset, and a reset throws away
   * what the peer has not read yet. So while we deliver we also read, and forget what comes; when all has left we end our
   * side; and only when the peer has ended its own do we let go. A peer that never does is cut off by the linger timer, one
   * that goes on sending after 16 MiB more.
   */
  #linger(): void {
    const broken = this.#readError !== null || this.#writeError !== null;
    if (broken || (this.#eof && this.#leaving === null)) return this.#end();
    if (!this.#eof && !this.#reading) this.#readInto(scrap ??= new Uint8Array(READ_MAX));
    if (this.#leaving !== null || this.#writeEnd) return;
    this.#writeEnd = this.#conn.closeWrite();
    this.#writeEnd.catch(() => this.#end());
  }

  /**
   * The end of a closed socket that has nothing to deliver any more, unless input lies unread in the system: then what was
   * sent may not have arrived, and letting go would be a reset. One read is given one turn to bring some. (Input that Deno
   * learns of later, or that is still on its way, is not waited for: that would keep every socket open that long.)
   */
  #endIfSilent(): void {
    if (this.#eof || this.#readError !== null || this.#writeError !== null) return this.#end();
    if (!this.#reading) this.#readInto(scrap ??= new Uint8Array(READ_MAX));
    setImmediate(() => {
      if (this.#eof) return; // It has ended meanwhile.
      if (this.#lingerReads === 0) this.#end();
      else this.#lingerTimer = setTimeout(() => this.#end(), LINGER);
    });
  }

  /**
   * A read of a closed socket has brought `n` bytes. Discussion: a read from a peer that sends without end completes at
   * once, in a microtask. If each started the next there, nothing else would ever run, the linger timer included. So now
   * and then there is a pause of one of Deno's turns, which counts as part of the read.
   */
  #onLingerRead(n: number): void {
    if (this.#leaving === null && (this.#lingerBytes += n) > LINGER_MAX) return this.#end();
    if (++this.#lingerReads % LINGER_READS !== 0) return this.#linger();
    this.#reading = true;
    setImmediate(() => {
      this.#reading = false;
      this.#linger();
    });
  }

  #end(): void {
    if (this.#ended) return; // What was under way ends by this, and comes here again.
    this.#ended = true;
    clearTimeout(this.#lingerTimer);
    this.#eof = true; // So a read under way starts no other when it ends.
    closeQuietly(this.#conn);
  }

  /** @ignore For `startTls`: the connection, when all that was sent has left. Who takes it has to `_shut` the socket. */
  *_surrender(): Coroutine<Connection> {
    const what = "start TLS on";
    if (this.#conn.handshake) throw new TypeError(`Cannot ${what} ${this}: it has TLS already`);
    if (this.remoteAddr.transport !== "tcp") throw new TypeError(`Cannot ${what} ${this}: it is not a TCP socket`);
    yield* this.#flush(what);
    if (this.#writeEnd) throw new Deno.errors.BrokenPipe(`Cannot ${what} ${this}: its write side was closed`);
    if (this.#eof) throw new Deno.errors.UnexpectedEof(`Cannot ${what} ${this}: its stream has ended`);
    if (isWatched(this._readKey) || isWatched(this._writeKey)) {
      throw new BusyError(`Cannot ${what} ${this}: a task is waiting on it`);
    }
    if (this.#reading) throw new BusyError(`Cannot ${what} ${this}: a read is under way`);
    if (this.#to > this.#from) {
      throw new BusyError(`Cannot ${what} ${this}: ${this.#to - this.#from} bytes have arrived and were not read`);
    }
    if (this.#readError !== null) throw this.#readError;
    return this.#conn;
  }
}

/**
 * Tasks that wait for something of a socket, each for a promise of its own: one that is cancelled leaves nothing here. (It
 * does with what the platform has begun, until that ends.)
 */
type Waiters<T> = Set<PromiseWithResolvers<T>>;

/** Waits as one of `waiters`; `begin` begins what it waits for. */
function* waitAmong<T>(waiters: Waiters<T>, begin?: (waiter: PromiseWithResolvers<T>) => void): Coroutine<T> {
  const waiter = Promise.withResolvers<T>();
  try {
    return yield* until(() => {
      waiters.add(waiter);
      begin?.(waiter);
      return waiter.promise;
    });
  } finally {
    waiters.delete(waiter);
  }
}

/** Closes what may be closed already. */
function closeQuietly(resource: { close(): void }): void {
  try {
    resource.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}

// -------------------------------------
// Listeners
// -------------------------------------

/**
 * What a {@linkcode Listener} needs of the listener below it. `Deno.TcpListener` has it, and those like it. What returns a
 * promise must not throw, and rejects with an `Error`.
 */
export interface ConnectionListener<A extends Addr = Addr> {
  /** The address it listens on. */
  readonly addr: A;
  /** Resolves to the next connection. */
  accept(): Promise<Connection>;
  /** Ends it; a pending accept rejects. */
  close(): void;
  /** An accept under way keeps the program from ending, as it does from the beginning... */
  ref?(): void;
  /** ...or does not: nobody waits for what it brings. */
  unref?(): void;
}

/** A listening socket, at an address of kind `A`. To wait for a connection, a task uses `loop.sockAccept`. */
export class Listener<A extends Addr = Addr> extends Pollable implements ListenerLike<Socket<A>, A> {
  readonly #listener: ConnectionListener<A>;
  #accepting = false;
  #accepted: Connection | null = null;
  #error: unknown = null;
  /** Who waits in `waitClosed`. */
  readonly #waiters: Waiters<void> = new Set();

  /** Makes a listener over `listener`, which is its own from now on. */
  constructor(listener: ConnectionListener<A>) {
    super();
    this.#listener = listener;
  }

  /** What it is called in messages. */
  toString(): string {
    return `listener ${this.id}`;
  }
  /** The address it listens on; `addr.port` is the real one if port 0 was asked for. */
  get addr(): A {
    return this.#listener.addr;
  }

  /** @ignore */
  _ready(event: number): boolean {
    return event === EVENT_READ && (this.#accepted !== null || this.#error !== null);
  }

  /** @ignore */
  _arm(event: number): void {
    if (event !== EVENT_READ || this.#accepting) return;
    this.#accepting = true;
    this.#listener.accept().then((conn) => this.#onAccept(conn), (error) => this.#onAcceptError(error));
  }

  /** @ignore */
  get _underWay(): ConnectionListener<A> | null {
    return this.#accepting ? this.#listener : null;
  }

  #onAccept(conn: Connection): void {
    this.#accepting = false;
    if (this.closed) {
      closeQuietly(conn);
      return this.#tellReleased();
    }
    this.#accepted = conn;
    this._signal(EVENT_READ);
  }

  #onAcceptError(error: unknown): void {
    this.#accepting = false;
    if (this.closed) return this.#tellReleased();
    // A client that left before it was accepted is no error of the listener's: the next look arms it again.
    const gone = error instanceof Deno.errors.NotConnected || error instanceof Deno.errors.ConnectionAborted ||
      error instanceof Deno.errors.ConnectionReset;
    if (!gone) this.#error = error;
    this._signal(EVENT_READ);
  }

  /**
   * Takes the connection that has arrived.
   *
   * What went wrong below (too many open files, say) is thrown once, here; the listener goes on, and whoever accepts in a
   * loop should pause first, since it may go wrong again.
   *
   * @throws {WouldBlock} If none has.
   * @throws {ClosedError} If the listener is closed.
   */
  accept(): [Socket<A>, A] {
    this._check("accept from");
    const error = this.#error;
    this.#error = null;
    if (error !== null) throw error;
    const conn = this.#accepted;
    if (!conn) throw new WouldBlock(`Cannot accept from ${this}: no connection has arrived`);
    this.#accepted = null;
    return [new Socket<A>(conn), conn.remoteAddr as A];
  }

  /**
   * Stops listening. Whoever waits on it gets {@linkcode ClosedError}. Its address is free for another listener a little
   * later: see {@linkcode waitClosed}. Closing twice is fine.
   */
  close(): void {
    if (this.closed) return;
    this._shut();
    this._hold(); // For `waitClosed`: an accept under way ends now.
    if (this.#accepted) closeQuietly(this.#accepted);
    this.#accepted = null;
    closeQuietly(this.#listener);
    this.#tellReleased();
  }

  /**
   * Waits until it is closed and its address is free again: an `accept` under way holds that until Deno has taken it back.
   * After asyncio's `Server.wait_closed`, but connections are not waited for.
   */
  *waitClosed(): Coroutine<void> {
    yield* this.#isReleased ? checkpoint() : waitAmong(this.#waiters);
  }

  get #isReleased(): boolean {
    return this.closed && !this.#accepting;
  }

  #tellReleased(): void {
    if (this.#isReleased) { for (const waiter of this.#waiters) waiter.resolve(); }
  }
}

// -------------------------------------
// Datagrams
// -------------------------------------

/**
 * What a {@linkcode DatagramSocket} needs of the one below it. `Deno.DatagramConn` has it. What returns a promise must not
 * throw, and rejects with an `Error`.
 */
export interface DatagramConnection<A extends Addr = Addr> {
  /** Our address. */
  readonly addr: A;
  /** Resolves to the next datagram, of which no more than fits is put into `buffer`, and its sender. */
  receive(buffer: Uint8Array): Promise<[Uint8Array, A]>;
  /** Resolves to the number of bytes sent. */
  send(data: Uint8Array, addr: A): Promise<number>;
  /** Ends it; what is pending rejects. */
  close(): void;
  /** What is under way keeps the program from ending, as it does from the beginning... */
  ref?(): void;
  /** ...or does not: nobody waits for what it brings. */
  unref?(): void;
}

/**
 * A socket for datagrams, between addresses of kind `A`. It holds one that has arrived and one that is leaving; the system
 * queues, and drops, the others. To wait, a task uses `loop.sockRecvfrom` and `loop.sockSendto`.
 */
export class DatagramSocket<A extends Addr = Addr> extends Pollable implements DatagramLike<A> {
  readonly #conn: DatagramConnection<A>;
  /** Whether a task is in `sockSendto`: set by the loop. */
  sending = false;
  #buffer: Uint8Array | null = null;
  #receiving = false;
  #received: [Uint8Array, A] | null = null;
  #receiveError: unknown = null;
  #leaving: Uint8Array<ArrayBuffer> | null = null;
  #sent = 0;
  #sendError: unknown = null;

  /** Makes a socket over `conn`, which is the socket's from now on. */
  constructor(conn: DatagramConnection<A>);
  /** Makes a socket over one of Deno's, which is the socket's from now on; for multicast, let it join the group first. */
  constructor(conn: Deno.DatagramConn);
  constructor(conn: DatagramConnection<A> | Deno.DatagramConn) {
    super();
    this.#conn = conn as DatagramConnection<A>; // Deno's type allows vsock addresses, which no datagram socket has.
  }

  /** Our address; `addr.port` is the real one if port 0 was asked for. */
  get addr(): A {
    return this.#conn.addr;
  }
  /** What it is called in messages. */
  toString(): string {
    return `datagram socket ${this.id}`;
  }

  /** @ignore */
  _ready(event: number): boolean {
    return event === EVENT_READ ? this.#received !== null || this.#receiveError !== null : this.#leaving === null;
  }

  /** @ignore */
  _arm(event: number): void {
    if (event !== EVENT_READ || this.#receiving) return;
    this.#receiving = true;
    this.#conn.receive(this.#buffer ??= new Uint8Array(DATAGRAM_MAX)).then(
      ([data, addr]) => this.#onReceived([data.slice(), addr], null),
      (error) => this.#onReceived(null, error),
    );
  }

  /** @ignore */
  get _underWay(): DatagramConnection<A> | null {
    return this.#receiving ? this.#conn : null;
  }

  #onReceived(received: [Uint8Array, A] | null, error: unknown): void {
    this.#receiving = false;
    if (this.closed) return;
    this.#received = received;
    this.#receiveError = error;
    this._signal(EVENT_READ);
  }

  /**
   * Takes the datagram that has arrived, and its sender's address. What is beyond `maxBytes` is lost.
   *
   * @throws {WouldBlock} If none has.
   * @throws {RangeError} If `maxBytes` is not a whole number from 1 up.
   * @throws {ClosedError} If the socket is closed.
   */
  recvfrom(maxBytes: number): [Uint8Array, A] {
    this._check("recv on");
    checkCount("recv", maxBytes, 1);
    const error = this.#receiveError;
    this.#receiveError = null;
    if (error !== null) throw error;
    if (!this.#received) throw new WouldBlock(`Cannot recv on ${this}: nothing has arrived`);
    const [data, addr] = this.#received;
    this.#received = null;
    return [data.subarray(0, maxBytes), addr];
  }

  /**
   * Sends one datagram to `addr` and returns its length. It is copied: `data` may be changed at once. What became of it,
   * {@linkcode sent} tells.
   *
   * @throws {WouldBlock} If the one before has not left yet.
   * @throws {TypeError} If `data` is not a `Uint8Array`, or `addr` not an address.
   * @throws {RangeError} If `data` is longer than 65536 bytes, or the port of `addr` is not one from 1 to 65535. (What the
   * system finds too long, {@linkcode sent} tells.)
   * @throws {ClosedError} If the socket is closed.
   */
  sendto(data: Uint8Array, addr: A): number {
    this._check("send on");
    checkBytes("send", data);
    checkReceiver(addr, this.addr);
    if (data.length > DATAGRAM_MAX) {
      throw new RangeError(`Cannot send ${data.length} bytes on ${this}: a datagram has ${DATAGRAM_MAX} at most`);
    }
    if (this.#leaving) throw new WouldBlock(`Cannot send on ${this}: a datagram has not left yet`);
    const leaving = pool.take(data.length);
    leaving.set(data);
    this.#leaving = leaving;
    this.#conn.send(leaving.subarray(0, data.length), addr).then(
      (n) => this.#onSent(n, null),
      (error) => this.#onSent(0, error),
    );
    return data.length;
  }

  #onSent(n: number, error: unknown): void {
    if (error === null) pool.give(this.#leaving!);
    this.#leaving = null;
    this.#sent = n;
    this.#sendError = error;
    this._signal(EVENT_WRITE);
  }

  /**
   * What became of the last `sendto`: returns how many bytes have left, or throws what went wrong.
   *
   * @throws {WouldBlock} If it is still under way.
   * @throws {ClosedError} If the socket is closed.
   */
  sent(): number {
    this._check("send on");
    if (this.#leaving) throw new WouldBlock(`Cannot tell what ${this} has sent: it is still sending`);
    if (this.#sendError !== null) throw this.#sendError;
    return this.#sent;
  }

  /** Closes the socket. Whoever waits on it gets {@linkcode ClosedError}. Closing twice is fine. */
  close(): void {
    if (this.closed) return;
    this._shut();
    this.#received = this.#buffer = null;
    closeQuietly(this.#conn);
  }
}

// -------------------------------------
// A pair in memory
// -------------------------------------

/** One direction of a pair: what was written and not yet read, and who waits for that to change. */
class Pipe {
  #buffer = new Uint8Array(PIPE_SIZE);
  #from = 0;
  #to = 0;
  #reader: { buffer: Uint8Array; length: number; resolve(n: number | null): void; reject(error: Error): void } | null =
    null;
  #writer: { data: Uint8Array; resolve(n: number): void; reject(error: Error): void } | null = null;
  /** What reads, and what writes, fail with from now on: then nothing more will come. */
  #readError: Error | null = null;
  #writeError: Error | null = null;

  read(buffer: Uint8Array): Promise<number | null> {
    return new Promise((resolve, reject) => {
      this.#reader = { buffer, length: buffer.length, resolve, reject };
      this.#move();
    });
  }

  write(data: Uint8Array): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#writer = { data, resolve, reject };
      this.#move();
    });
  }

  /** The writer has written its last; what is here can still be read. */
  end(): void {
    this.#writeError ??= new Deno.errors.BrokenPipe("Broken pipe");
    this.#move();
  }

  /** The reader is gone. Returns whether it left something unread. */
  abandon(): boolean {
    const unread = this.#to > this.#from;
    this.#from = this.#to = 0;
    this.#buffer = new Uint8Array(0); // Somebody may keep the socket.
    this.#readError ??= new Deno.errors.Interrupted("The connection was closed");
    this.#writeError ??= new Deno.errors.BrokenPipe("Broken pipe");
    this.#move();
    return unread;
  }

  /** The writer is gone without a farewell; what is here can still be read. */
  reset(): void {
    this.#readError ??= new Deno.errors.ConnectionReset("Connection reset by peer");
    this.end();
  }

  #move(): void {
    this.#takeFromWriter();
    this.#giveToReader();
    this.#takeFromWriter(); // There may be room now.
  }

  #takeFromWriter(): void {
    const writer = this.#writer;
    if (!writer) return;
    const n = Math.min(writer.data.length, PIPE_SIZE - this.#to);
    if (n === 0 && !this.#writeError) return;
    this.#writer = null;
    if (this.#writeError) return writer.reject(this.#writeError);
    this.#buffer.set(writer.data.subarray(0, n), this.#to);
    this.#to += n;
    writer.resolve(n);
  }

  #giveToReader(): void {
    const reader = this.#reader;
    if (!reader || (this.#from === this.#to && !this.#writeError)) return;
    this.#reader = null;
    if (this.#from === this.#to) return this.#readError ? reader.reject(this.#readError) : reader.resolve(null);
    const n = Math.min(reader.length, this.#to - this.#from);
    // A buffer that was transferred meanwhile takes the bytes with it, as it does on Deno's connections.
    if (reader.buffer.length > 0) reader.buffer.set(this.#buffer.subarray(this.#from, this.#from + n));
    this.#from += n;
    if (this.#from === this.#to) this.#from = this.#to = 0;
    reader.resolve(n);
  }
}

/** One end of a pair. Closed with input unread it resets the other, as TCP does. */
class PairConnection implements Connection {
  readonly localAddr: Addr = { transport: "unix", path: "" };
  readonly remoteAddr: Addr = { transport: "unix", path: "" };
  readonly #incoming: Pipe;
  readonly #outgoing: Pipe;

  constructor(incoming: Pipe, outgoing: Pipe) {
    this.#incoming = incoming;
    this.#outgoing = outgoing;
  }

  read(buffer: Uint8Array): Promise<number | null> {
    return this.#incoming.read(buffer);
  }
  write(data: Uint8Array): Promise<number> {
    return this.#outgoing.write(data);
  }
  closeWrite(): Promise<void> {
    this.#outgoing.end();
    return Promise.resolve();
  }
  close(): void {
    if (this.#incoming.abandon()) this.#outgoing.reset();
    else this.#outgoing.end();
  }
}

/**
 * Makes two sockets that are connected in memory: for tests, and between tasks. They need no permission, and behave as
 * those on a Unix path do, end of stream, back-pressure and resets included.
 *
 * @example
 * ```ts
 * import { Loop, socketPair } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const loop = new Loop();
 * function* main() {
 *   const [left, right] = socketPair();
 *   yield* loop.sockSendall(left, new TextEncoder().encode("hello"));
 *   left.close();
 *   const data = yield* loop.sockRecv(right, 100);
 *   right.close();
 *   return new TextDecoder().decode(data);
 * }
 * assertEquals(await loop.run(main()), "hello");
 * ```
 */
export function socketPair(): [Socket, Socket] {
  const there = new Pipe();
  const back = new Pipe();
  return [new Socket(new PairConnection(back, there)), new Socket(new PairConnection(there, back))];
}

// -------------------------------------
// Deno's network
// -------------------------------------

/** Options of {@linkcode listen}: those of `Deno.listen`. */
export type ListenOptions =
  | Omit<Deno.TcpListenOptions, "hostname" | "port" | "reusePort"> & {
    /** TCP, if it is left out. */
    transport?: "tcp" | undefined;
    /** The port; 0 for any free one. */
    port: number;
    /** The address to listen at. Default: all of them, `"0.0.0.0"`. */
    hostname?: string | undefined;
    /** Whether several sockets may listen there and share what arrives; Deno needs `--unstable-net` for it. */
    reusePort?: boolean | undefined;
  }
  | Deno.UnixListenOptions & { transport: "unix" };

/** Options of {@linkcode listenTls}: those of `Deno.listenTls`. */
export type ListenTlsOptions =
  & Omit<Deno.ListenTlsOptions, "hostname" | "port" | "reusePort" | "alpnProtocols">
  & Deno.TlsCertifiedKeyPem
  & {
    /** As for {@linkcode listen}. */
    port: number;
    /** As for {@linkcode listen}. */
    hostname?: string | undefined;
    /** As for {@linkcode listen}. */
    reusePort?: boolean | undefined;
    /** The protocols to agree on one of, the preferred first. */
    alpnProtocols?: string[] | undefined;
  };

/** Options of {@linkcode connect}: those of `Deno.connect`. */
export type ConnectOptions =
  | Omit<Deno.ConnectOptions, "hostname" | "signal" | "transport"> & {
    /** TCP, if it is left out. */
    transport?: "tcp" | undefined;
    /** Where to connect to. Default: `"127.0.0.1"`. */
    hostname?: string | undefined;
    /** Ends the attempt when it aborts. */
    signal?: AbortSignal | undefined;
  }
  | Deno.UnixConnectOptions & { transport: "unix" };

/** Options of {@linkcode connectTls}: those of `Deno.connectTls`. */
export type ConnectTlsOptions =
  & Omit<Deno.ConnectTlsOptions, keyof StartTlsOptions>
  & StartTlsOptions
  & Partial<Deno.TlsCertifiedKeyPem>;

/** Options of {@linkcode startTls}: those of `Deno.startTls`. */
export interface StartTlsOptions {
  /** The host, whose name the peer's certificate has to be for. Default: `"127.0.0.1"`. */
  hostname?: string | undefined;
  /** Certificates, in PEM, that are trusted besides those that Deno trusts. */
  caCerts?: string[] | undefined;
  /** The protocols to agree on one of; the server chooses. */
  alpnProtocols?: string[] | undefined;
  /** Trust a certificate that is for another host. */
  unsafelyDisableHostnameVerification?: boolean | undefined;
}

/** Options of {@linkcode datagram}: those of `Deno.listenDatagram`. */
export interface DatagramOptions {
  /** UDP, if it is left out. */
  transport?: "udp" | undefined;
  /** The port; 0 for any free one. */
  port: number;
  /** The address to receive at. Default: all of them, `"0.0.0.0"`. */
  hostname?: string | undefined;
  /** Whether several sockets may receive at one address; for multicast. */
  reuseAddress?: boolean | undefined;
  /** Whether what is sent to a multicast group comes back. Default: false, unlike the system's. */
  loopback?: boolean | undefined;
}

/** What Deno has only with `--unstable-net`. */
const unstable = Deno as unknown as { listenDatagram?(options: unknown): DatagramConnection };

const denoNetwork: Network = {
  listen(options: ListenOptions): Listener {
    checkListen(options);
    return open("listen on", options, () => {
      return new Listener(Deno.listen(options as Deno.TcpListenOptions) as ConnectionListener);
    });
  },

  listenTls(options: ListenTlsOptions): Listener {
    checkListen(options);
    return open("listen on", options, () => {
      return new Listener(Deno.listenTls(options as Parameters<typeof Deno.listenTls>[0]) as ConnectionListener);
    });
  },

  *connect(options: ConnectOptions): Coroutine<Socket> {
    checkAddress("connect to", options, 1);
    const theirs = options.transport === "unix" ? undefined : options.signal;
    const sock = yield* attempt(`connect to ${place(options, "127.0.0.1")}`, theirs, function connect(ours) {
      return dial(options as Deno.ConnectOptions, ours, theirs);
    });
    if (options.transport !== "unix") sock._mayStartTls();
    return sock;
  },

  *connectTls(options: ConnectTlsOptions): Coroutine<Socket> {
    checkOptions("connect to", options);
    checkPort("connect to", options.port, 1);
    checkTlsOptions(options);
    return yield* attempt(`connect to ${place(options, "127.0.0.1")}`, undefined, function connectTls(signal) {
      return shakeHands(dialTls(options, signal), signal);
    });
  },

  datagram(options: DatagramOptions): DatagramSocket {
    checkOptions("receive on", options);
    const { transport = "udp", port } = options;
    if (transport !== "udp") throw new TypeError(`Cannot receive on transport ${kind(transport)}: it must be "udp"`);
    checkPort("receive on", port, 0);
    if (!unstable.listenDatagram) {
      throw new Deno.errors.NotSupported("Cannot open a datagram socket: Deno needs the flag --unstable-net for it");
    }
    return open("receive on", options, () => {
      return new DatagramSocket(unstable.listenDatagram!(Object.create(options, { transport: { value: "udp" } })));
    });
  },
};

function checkOptions(what: string, options: unknown): void {
  if (typeof options === "object" && options !== null) return;
  throw new TypeError(
    `Cannot ${what} ${kind(options)}: it takes options such as { hostname: "127.0.0.1", port: 25000 }`,
  );
}

function checkListen(options: ListenOptions | ListenTlsOptions): void {
  checkAddress("listen on", options, 0);
  // Deno itself would end the process here.
  if (options.transport !== "unix" && options.reusePort && !unstable.listenDatagram) {
    throw new Deno.errors.NotSupported("Cannot listen with reusePort: Deno needs the flag --unstable-net for it");
  }
}

/** For some transports Deno would throw a confusing error, or end the process. */
function checkAddress(what: string, options: any, leastPort: number): void {
  checkOptions(what, options);
  const { transport = "tcp", path, port } = options;
  if (transport === "tcp") checkPort(what, port, leastPort);
  else if (transport !== "unix") {
    throw new TypeError(`Cannot ${what} transport ${kind(transport)}: it must be "tcp" or "unix"`);
  } else if (typeof path !== "string") {
    throw new TypeError(`Cannot ${what} path ${kind(path)}: it must be a string`);
  }
}

/** Checks where to send a datagram. Some things that are no address Deno would take for one. */
function checkReceiver(addr: Addr, from: Addr): void {
  if (typeof addr !== "object" || addr === null) {
    throw new TypeError(
      `Cannot send to ${kind(addr)}: it takes an address, as { transport: "udp", hostname: "127.0.0.1", port: 25000 }`,
    );
  }
  if ("path" in addr) {
    if ("path" in from) return;
    throw new TypeError(`Cannot send to path ${kind(addr.path)}: the socket sends over UDP, to a host and port`);
  }
  const { hostname, port } = addr;
  if (typeof hostname !== "string") throw new TypeError(`Cannot send to host ${kind(hostname)}: it must be a string`);
  checkPort("send to", port, 1);
}

/** Checked here because `Deno.startTls` closes the connection when it refuses its options. */
function checkTlsOptions(options: StartTlsOptions): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(`Cannot start TLS with ${kind(options)}: it takes options such as { hostname: "localhost" }`);
  }
  const { hostname, caCerts, alpnProtocols } = options;
  if (hostname !== undefined && typeof hostname !== "string") {
    throw new TypeError(`Cannot start TLS with the host ${kind(hostname)}: it must be a string`);
  }
  for (const [name, list] of Object.entries({ caCerts, alpnProtocols })) {
    if (list !== undefined && !(Array.isArray(list) && list.every((one) => typeof one === "string"))) {
      throw new TypeError(`Cannot start TLS with the ${name} ${kind(list)}: they must be an array of strings`);
    }
  }
}

function checkPort(what: string, port: unknown, least: number): void {
  if (!Number.isInteger(port) || (port as number) < least || (port as number) > 65535) {
    throw new RangeError(`Cannot ${what} port ${kind(port)}: it must be a whole number from ${least} to 65535`);
  }
}

/** An address, or options that have one, in words. */
function place(options: object, anyHost: string): string {
  const { transport, path, hostname = anyHost, port } = options as Partial<Record<string, unknown>>;
  return transport === "unix" ? String(path) : `${hostname} port ${port}`;
}

/** Opens what listens at `options`. An error of Deno's does not say where that is. */
function open<L>(what: string, options: object, begin: () => L): L {
  try {
    return begin();
  } catch (error) {
    if (error instanceof Error) error.message = `Cannot ${what} ${place(options, "0.0.0.0")}: ${error.message}`;
    throw error;
  }
}

/** The classes of what Deno throws when it cannot connect: one host is unknown, another is no host, a path is too long. */
const DENO_ERRORS = new Set<unknown>([Error, URIError, TypeError, ...Object.values(Deno.errors)]);

/**
 * Waits for the connection that `begin` begins. An error of Deno's says neither where to, nor is a line of the program on
 * its stack: so one of the same class says it, with Deno's as its cause. What a `signal` was aborted with stays as it is.
 */
function* attempt<A extends Addr>(
  what: string,
  signal: AbortSignal | undefined,
  begin: (signal: AbortSignal) => Promise<Deno.Conn>,
): Coroutine<Socket<A>> {
  try {
    return new Socket<A>((yield* until(begin)) as Connection);
  } catch (error) {
    if (!(error instanceof Error) || !DENO_ERRORS.has(error.constructor) || signal?.aborted) throw error;
    const explained = new (error.constructor as ErrorConstructor)(`Cannot ${what}: ${error.message}`, { cause: error });
    throw "code" in error ? Object.assign(explained, { code: error.code }) : explained;
  }
}

/** Closes a connection that is made after all though nobody waits for it any more. */
function closeOnAbort<C extends { close(): void }>(conn: C, signal: AbortSignal): C {
  if (signal.aborted) closeQuietly(conn);
  else signal.addEventListener("abort", () => closeQuietly(conn));
  return conn;
}

/**
 * Connects, unless `ours` aborts, or the caller's signal `theirs`.
 *
 * Discussion: at its end `Deno.connect` asks its signal to `throwIfAborted`. If that aborts just as the connection is made,
 * the connection is thrown away, and stays open for as long as the program runs. So Deno's signal does not throw: either
 * Deno could still give up, or the connection comes, and is closed here.
 */
async function dial(options: Deno.ConnectOptions, ours: AbortSignal, theirs?: AbortSignal): Promise<Deno.Conn> {
  const signal = AbortSignal.any(theirs ? [ours, theirs] : [ours]);
  signal.throwIfAborted();
  signal.throwIfAborted = () => {};
  let conn: Deno.Conn;
  try {
    // (Not a copy of them: options may be inherited.)
    conn = await Deno.connect(Object.create(options, { signal: { value: signal } }));
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  }
  if (theirs?.aborted) {
    closeQuietly(conn);
    throw theirs.reason;
  }
  return closeOnAbort(conn, ours);
}

/** In two steps: `Deno.connectTls` would go on with an attempt that nobody wants any more, perhaps for minutes. */
async function dialTls(options: ConnectTlsOptions, signal: AbortSignal): Promise<Deno.TlsConn> {
  const { cert, key } = options;
  // The other way has no place for them. (An empty one, too, is Deno's to refuse: the server would not know us.)
  if (cert !== undefined || key !== undefined) return Deno.connectTls(options as Deno.ConnectTlsOptions);
  const conn = await dial(Object.create(options, { transport: { value: "tcp" } }), signal) as Deno.TcpConn;
  try {
    return await Deno.startTls(conn, options as Deno.StartTlsOptions);
  } catch (error) {
    closeQuietly(conn);
    throw error;
  }
}

/** So that errors of the handshake belong to connecting, not to the first read. */
async function shakeHands(connecting: Promise<Deno.TlsConn>, signal: AbortSignal): Promise<Deno.TlsConn> {
  const conn = closeOnAbort(await connecting, signal);
  try {
    await conn.handshake();
  } catch (error) {
    closeQuietly(conn);
    throw error;
  }
  // Deno.startTls leaves the transport out of these addresses.
  for (const addr of [conn.localAddr, conn.remoteAddr]) Object.assign(addr, { transport: "tcp" });
  return conn;
}

// -------------------------------------
// What programs call
// -------------------------------------

/** The network of the loop that runs the current task; outside of tasks the default one. */
function network(): Network {
  return (runningLoopOrNull() ?? defaultWorld()).network;
}

/** A function that not every network has. */
function optional<K extends "listenTls" | "connectTls" | "datagram">(what: K): NonNullable<Network[K]> {
  const net = network();
  const found = net[what];
  if (!found) throw new TypeError(`Cannot use ${what}: the network of this loop does not have it`);
  return found.bind(net) as NonNullable<Network[K]>;
}

/**
 * Opens a listening socket on TCP or a Unix path. Options are `Deno.listen`'s. An error of Deno's says where, too.
 *
 * @throws {RangeError} If the port is not one from 0 to 65535.
 * @throws {Deno.errors.AddrInUse} If another socket listens there.
 * @throws {Deno.errors.NotCapable} If the program has no permission (`--allow-net`).
 * @throws {Deno.errors.NotSupported} If `reusePort` is asked for and Deno runs without `--unstable-net`.
 *
 * @example
 * ```ts
 * import { listen } from "@yieldloop/yieldloop";
 *
 * using listener = listen({ hostname: "127.0.0.1", port: 0 });
 * console.log("listening on port", listener.addr.port);
 * ```
 */
export function listen(
  options: ListenOptions & { transport?: "tcp" | undefined },
): Listener<Extract<Addr, { transport: "tcp" }>>;
/**
 * Opens a listening socket on a Unix path. That needs the permissions to read and write it, too. `close` removes the path; a
 * program that was killed leaves it, and then it has to be removed before the next can listen there.
 */
export function listen(options: ListenOptions & { transport: "unix" }): Listener<Extract<Addr, { transport: "unix" }>>;
/** Opens a listening socket on TCP or a Unix path, whichever `options` name at run time. */
export function listen(options: ListenOptions): Listener;
export function listen(options: ListenOptions): Listener {
  return network().listen(options) as Listener;
}

/**
 * Opens a listening socket for TLS. Options are `Deno.listenTls`'s. A connection is accepted before its handshake, so that
 * a client which is slow with it, or fails it, holds up nobody; the handshake happens with the first bytes, or in
 * {@linkcode Socket.handshake}, and its errors come there.
 *
 * A connection that is closed, or aborted, before its handshake is done, or while the peer does not read, stays open
 * inside Deno until the peer goes on or goes away: reckon with that where peers are not trusted.
 *
 * @throws {RangeError} If the port is not one from 0 to 65535.
 * @throws {Deno.errors.AddrInUse} If another socket listens there.
 * @throws {Deno.errors.NotCapable} If the program has no permission (`--allow-net`).
 * @throws {Deno.errors.InvalidData} If the certificate or key is invalid.
 * @throws {Error} If the key is not that of the certificate.
 */
export function listenTls(options: ListenTlsOptions): Listener<Extract<Addr, { transport: "tcp" }>> {
  return optional("listenTls")(options) as Listener<Extract<Addr, { transport: "tcp" }>>;
}

/**
 * Connects to a TCP address or a Unix path. Options are `Deno.connect`'s, or the address of a listener or socket. Cancelled,
 * it leaves no connection behind. (In `race` or `all` a socket that has come in the turn in which another ends is dropped, and
 * stays open: keep it where the program can close it.) It has no deadline of its own: put it in `failAfter`. When Deno cannot
 * connect, the error is of Deno's class, says where to, and has Deno's own as its `cause`.
 *
 * @throws {RangeError} If the port is not one from 1 to 65535.
 * @throws {TypeError} If the transport is neither TCP nor a Unix path.
 * @throws {Deno.errors.ConnectionRefused} If nobody listens there; `NotFound` if there is no such path, an `Error` if no such
 * host.
 * @throws {Deno.errors.NotCapable} If the program has no permission (`--allow-net`; for a path to read and write it, too).
 * @throws {Deno.errors.WouldBlock} If the backlog of the listener on that Unix path is full.
 *
 * @example
 * ```ts
 * import { connect, type Coroutine, failAfter, listen, Loop } from "@yieldloop/yieldloop";
 *
 * function* main(): Coroutine {
 *   using listener = listen({ hostname: "127.0.0.1", port: 0 });
 *   using sock = yield* failAfter(1000, connect(listener.addr));
 *   console.log("connected to", sock.remoteAddr);
 * }
 * await new Loop().run(main());
 * ```
 */
export function connect(
  options: ConnectOptions & { transport?: "tcp" | undefined } | Extract<Addr, { transport: "tcp" }>,
): Coroutine<Socket<Extract<Addr, { transport: "tcp" }>>>;
/** Connects to a Unix path. Cancelled, it leaves no connection behind. */
export function connect(
  options: ConnectOptions & { transport: "unix" },
): Coroutine<Socket<Extract<Addr, { transport: "unix" }>>>;
/** Connects to whichever address `options` name at run time. Cancelled, it leaves no connection behind. */
export function connect(options: ConnectOptions | Addr): Coroutine<Socket>;
export function* connect(options: ConnectOptions | Addr): Coroutine<Socket> {
  return (yield* checkRunnable(network().connect(options))) as Socket;
}

/**
 * Connects with TLS: the socket is there when both sides have agreed. Options are `Deno.connectTls`'s. Cancelled, it
 * leaves no connection behind, with two exceptions: in the middle of the handshake Deno keeps it open until the peer goes
 * on or goes away; and with a certificate of our own (`cert`) Deno goes on trying to connect until the system gives up.
 *
 * @throws {RangeError} If the port is not one from 1 to 65535.
 * @throws {TypeError} If an option is one that Deno does not take.
 * @throws {Deno.errors.ConnectionRefused} If nobody listens there.
 * @throws {Deno.errors.NotCapable} If the program has no permission (`--allow-net`).
 * @throws {Deno.errors.InvalidData} If the peer's certificate is not trusted, or the sides do not agree.
 * @throws {Deno.errors.UnexpectedEof} If the peer leaves in the middle of the handshake.
 */
export function* connectTls(options: ConnectTlsOptions): Coroutine<Socket<Extract<Addr, { transport: "tcp" }>>> {
  return (yield* checkRunnable(optional("connectTls")(options))) as Socket<Extract<Addr, { transport: "tcp" }>>;
}

/**
 * Switches a connection that began without TLS to it, as the client; Deno has no way to do that as the server. Waits until
 * what was sent has left; after that `sock` is closed and the socket that is returned takes its place. Refused, or cancelled
 * before that, it leaves `sock` as it was; if it is cancelled later, the sides do not agree, or Deno takes neither the host's
 * name nor a connection that is not its own, the connection is closed (or kept by Deno, as {@linkcode connectTls} says).
 *
 * A `Stream` over `sock` may hold bytes that came before TLS, which anybody may have written: go on only if its
 * `buffered` is 0, and with a new stream.
 *
 * @throws {TypeError} If `sock` is not a TCP socket of Deno's, or `options` are not right.
 * @throws {BusyError} If a task waits on `sock`, it holds bytes that were not read, or a read is under way: a wait for input
 * that was cancelled has left one, or (not on a socket that {@linkcode connect} has made) it looks for more behind a read that
 * was filled to the byte.
 * @throws {ClosedError} If `sock` is closed. (In the handshake it is: only a cancellation ends that.)
 * @throws {Deno.errors.InvalidData} If the peer's certificate is not trusted, or the sides do not agree.
 * @throws {Deno.errors.UnexpectedEof} If the peer has ended its side, or leaves in the middle of the handshake.
 * @throws {Deno.errors.BrokenPipe} After `closeWrite`.
 */
export function* startTls(
  sock: Socket,
  options: StartTlsOptions = {},
): Coroutine<Socket<Extract<Addr, { transport: "tcp" }>>> {
  if (!(sock instanceof Socket)) {
    hush(sock); // Perhaps the promise of one.
    throw new TypeError(`Cannot start TLS on ${kind(sock)}: it is not a Socket`);
  }
  checkTlsOptions(options);
  const plain = yield* sock._surrender();
  let taken = false;
  try {
    return yield* attempt(`start TLS on ${sock}`, undefined, function startTls(signal) {
      sock._check("start TLS on"); // What is called as an op begins may have closed it.
      sock._shut(); // Here, so that nothing has begun if it is cancelled first.
      taken = true;
      return shakeHands(Deno.startTls(plain as unknown as Deno.TcpConn, options as Deno.StartTlsOptions), signal);
    });
  } catch (error) {
    if (taken) closeQuietly(plain); // Deno has taken it by now, unless it refused the options.
    throw error;
  }
}

/**
 * Opens a socket for UDP datagrams. Options are `Deno.listenDatagram`'s; Deno must run with `--unstable-net`.
 *
 * @throws {RangeError} If the port is not one from 0 to 65535.
 * @throws {Deno.errors.AddrInUse} If another socket receives there.
 * @throws {Deno.errors.NotSupported} If Deno runs without `--unstable-net`.
 */
export function datagram(options: DatagramOptions): DatagramSocket<Extract<Addr, { transport: "udp" }>> {
  return optional("datagram")(options) as DatagramSocket<Extract<Addr, { transport: "udp" }>>;
}

setDefaultWorld({
  selector: () => new DefaultSelector(),
  clock: { now: () => performance.now() },
  network: denoNetwork,
});
