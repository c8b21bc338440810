/**
 * net.ts: the readiness shim.
 *
 * The loop of the article asks a selector which sockets are *ready*: a `recv` on a readable one returns at once.
 * Deno has no such question; it has promises that *complete*. This file is the bridge, and the only one that
 * knows Deno.
 *
 * What "ready" means over promises that complete:
 *
 * - *Readable*: a `read()` that was started has completed, and what it brought has not all been taken; or the stream
 *   has ended, or failed, or the socket was closed. `recv` then takes it without waiting.
 * - *Writable*: there is room for at least one byte in what the socket may hold unsent. `send` copies into that room.
 * - *Acceptable* (readable, of a listener): an `accept()` that was started has brought a connection.
 *
 * To *arm* is to start the `read()` or `accept()` whose completion makes a socket ready. It is armed when a selector
 * begins to watch it, not before, and there is never more than one read, one write and one accept under way.
 *
 * What is held per socket: at most {@linkcode READ_MAX} bytes that have arrived and were not yet taken, and twice
 * {@linkcode SEND_MAX} bytes that were sent and have not left. An idle socket pins one small buffer: read sizes
 * start at {@linkcode READ_MIN} and follow the traffic.
 *
 * What a cancelled wait leaves behind: a read or accept cannot be taken back, so it stays armed, and what it brings is
 * kept for whoever reads or accepts next. Nothing is lost.
 *
 * Each promise gets its handlers the moment it is made; no rejection goes unheard.
 *
 * @module
 */

import {
  type Addr,
  BusyError,
  ClosedError,
  type Coroutine,
  EVENT_READ,
  EVENT_WRITE,
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
const READ_MIN = 1024;
/** The largest read, in bytes. */
const READ_MAX = 65536;
/** How many bytes one write takes; as many again may wait behind it. */
const SEND_MAX = 65536;
/** How long a closed socket may go on delivering what it had accepted, in milliseconds, before the rest is dropped. */
const LINGER = 10_000;

// ----------------------------------------------------------------------------------------------------------------
// The selector
// ----------------------------------------------------------------------------------------------------------------

let nextId = 1;

/** What {@linkcode DefaultSelector} can watch: it says whether it is ready, can be armed, and tells when that changes. */
export abstract class Pollable implements Selectable {
  /** A number no other socket of this program has. */
  readonly id: number = nextId++;
  /** Who watches the read side, and the write side. @internal */
  _readKey: Key | null = null;
  /** @internal */
  _writeKey: Key | null = null;

  /** Whether it is ready for `event` now. @internal */
  abstract _ready(event: number): boolean;
  /** Starts whatever makes it ready for `event`. @internal */
  abstract _arm(event: number): void;
  /** Whether it has been closed. @internal */
  abstract readonly _closed: boolean;

  /** To be called when it may have become ready for `event`. @internal */
  _signal(event: number): void {
    const key = event === EVENT_READ ? this._readKey : this._writeKey;
    if (key) key.selector!._signalled(key);
  }

  /** What it is called in messages. */
  toString(): string {
    return `${this.constructor.name.toLowerCase()} ${this.id}`;
  }
}

/** A registration. */
class Key implements SelectorKey {
  /** Whether it stands in the list of keys to look at. */
  queued = false;
  constructor(
    readonly fileobj: Pollable,
    readonly events: number,
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
  readonly #keys = new Set<Key>();
  /** Keys that may be ready: those that signalled, and those that were ready when last looked at. */
  #queue: Key[] = [];
  #spare: Key[] = [];
  #resolve: (() => void) | null = null;
  #until = Infinity;
  // Discussion: to set and clear a timer of the platform's costs more than the rest of a turn. So a timer is left
  // running when `select` returns, and serves the next one if it is early enough; one that comes too early is set again.
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerDue = Infinity;
  readonly #onTimer = () => {
    this.#timer = undefined;
    this.#timerDue = Infinity;
    if (!this.#resolve) return;
    if (performance.now() >= this.#until) this.wakeup();
    else this.#setTimer();
  };

  /**
   * Watches `fileobj` for `events`. Both sides of one socket can be watched under two keys.
   *
   * @throws {TypeError} If `fileobj` is nothing this selector can watch, or `events` names no event.
   * @throws {BusyError} If one of `events` is watched already.
   * @throws {ClosedError} If `fileobj` is closed.
   */
  register(fileobj: Selectable, events: number, data?: unknown): SelectorKey {
    if (!(fileobj instanceof Pollable)) {
      throw new TypeError(`Cannot wait for ${Deno.inspect(fileobj, { depth: 0 })}: it is no socket or listener`);
    }
    if (events !== EVENT_READ && events !== EVENT_WRITE && events !== (EVENT_READ | EVENT_WRITE)) {
      throw new TypeError(`Cannot wait for events ${events}: use EVENT_READ, EVENT_WRITE, or both or-ed together`);
    }
    if (fileobj._closed) throw new ClosedError(`Cannot wait for ${fileobj}: it is closed`);
    if ((events & EVENT_READ) && fileobj._readKey) throw busy(fileobj, "read");
    if ((events & EVENT_WRITE) && fileobj._writeKey) throw busy(fileobj, "write");
    const key = new Key(fileobj, events, data, this);
    this.#keys.add(key);
    if (events & EVENT_READ) fileobj._readKey = key;
    if (events & EVENT_WRITE) fileobj._writeKey = key;
    this._signalled(key);
    return key;
  }

  /** Ends the watch for `events`, by default for both. What was armed stays armed; see the opening of this file. */
  unregister(fileobj: Selectable, events: number = EVENT_READ | EVENT_WRITE): void {
    if (!(fileobj instanceof Pollable)) return;
    if (events & EVENT_READ) this.#drop(fileobj._readKey);
    if (events & EVENT_WRITE) this.#drop(fileobj._writeKey);
  }

  #drop(key: Key | null): void {
    if (key?.selector !== this) return;
    this.#keys.delete(key);
    key.selector = null;
    if (key.fileobj._readKey === key) key.fileobj._readKey = null;
    if (key.fileobj._writeKey === key) key.fileobj._writeKey = null;
  }

  /** Waits for something to be ready, `timeout` milliseconds at most; `select(0)` for one turn of Deno's event loop. */
  async select(timeout: number = Infinity): Promise<[SelectorKey, number][]> {
    if (this.#resolve) this.wakeup();
    if (timeout <= 0) {
      await new Promise((resolve) => setImmediate(resolve));
      return this.poll();
    }
    const events = this.poll();
    if (events.length > 0) return events;
    const woken = new Promise<void>((resolve) => this.#resolve = resolve);
    this.#until = timeout === Infinity ? Infinity : performance.now() + timeout;
    this.#setTimer();
    await woken;
    return this.poll();
  }

  #setTimer(): void {
    if (this.#until >= this.#timerDue) return;
    clearTimeout(this.#timer);
    this.#timerDue = this.#until;
    // A longer delay than this would silently become the shortest; a negative one (it was a slow start) is warned of.
    const delay = Math.min(Math.max(Math.ceil(this.#until - performance.now()), 0), 2 ** 31 - 1);
    this.#timer = setTimeout(this.#onTimer, delay);
  }

  /** What is ready now. */
  poll(): [SelectorKey, number][] {
    const events: [SelectorKey, number][] = [];
    if (this.#queue.length === 0) return events;
    const queue = this.#queue;
    this.#queue = this.#spare;
    for (const key of queue) {
      key.queued = false;
      if (key.selector !== this) continue;
      const ready = this.#look(key, EVENT_READ) | this.#look(key, EVENT_WRITE);
      if (!ready) continue;
      events.push([key, ready]);
      this._signalled(key); // Level-triggered: it is looked at again as long as it is registered.
    }
    queue.length = 0;
    this.#spare = queue;
    return events;
  }

  #look(key: Key, event: number): number {
    if (!(key.events & event)) return 0;
    if (key.fileobj._ready(event)) return event;
    key.fileobj._arm(event);
    return 0;
  }

  /** `key` may be ready. @internal */
  _signalled(key: Key): void {
    if (!key.queued) {
      key.queued = true;
      this.#queue.push(key);
    }
    if (this.#resolve) this.wakeup();
  }

  /** Makes a `select` under way return; with none under way, lets go of the timer that waits for the next one. */
  wakeup(): void {
    const resolve = this.#resolve;
    this.#resolve = null;
    if (resolve) return resolve();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerDue = Infinity;
  }

  /** Ends every watch and a `select` under way. */
  close(): void {
    for (const key of this.#keys) this.#drop(key);
    this.wakeup();
    this.wakeup();
  }
}

function busy(fileobj: Pollable, what: string): BusyError {
  const verb = fileobj instanceof Listener ? "accept from" : what;
  return new BusyError(`Cannot wait to ${verb} ${fileobj}: another task is already waiting to ${verb} it`);
}

// ----------------------------------------------------------------------------------------------------------------
// Sockets
// ----------------------------------------------------------------------------------------------------------------

/** Buffers for bytes on their way out, kept for the next write: fresh memory costs more than the copy into it. */
class BufferPool {
  static readonly #SIZES = [1024, 4096, 16384, SEND_MAX];
  /** How many free buffers of each size are kept. */
  static readonly #KEPT = [256, 64, 32, 16];
  readonly #free: Uint8Array<ArrayBuffer>[][] = [[], [], [], []];

  /** A buffer of at least `size` bytes, `SEND_MAX` at most. */
  take(size: number): Uint8Array<ArrayBuffer> {
    let i = 0;
    while (i < 3 && BufferPool.#SIZES[i] < size) i++;
    return this.#free[i].pop() ?? new Uint8Array(BufferPool.#SIZES[i]);
  }

  /** Gives a buffer back. */
  give(buffer: Uint8Array<ArrayBuffer>): void {
    const i = BufferPool.#SIZES.indexOf(buffer.length);
    if (this.#free[i].length < BufferPool.#KEPT[i]) this.#free[i].push(buffer);
  }
}

const pool = new BufferPool();

/** Bytes that were sent and wait for the write before them. */
class Outgoing {
  buffer: Uint8Array<ArrayBuffer>;
  length = 0;

  constructor(size: number) {
    this.buffer = pool.take(size);
  }

  get room(): number {
    return SEND_MAX - this.length;
  }

  append(data: Uint8Array): void {
    const length = this.length + data.length;
    if (length > this.buffer.length) {
      const larger = pool.take(length);
      larger.set(this.buffer.subarray(0, this.length));
      pool.give(this.buffer);
      this.buffer = larger;
    }
    this.buffer.set(data, this.length);
    this.length = length;
  }

  release(): void {
    pool.give(this.buffer);
  }
}

/** What a {@linkcode Socket} needs of the connection below it. `Deno.Conn` has it. */
export interface Connection {
  /** Our address. */
  readonly localAddr: Addr;
  /** The peer's address. */
  readonly remoteAddr: Addr;
  /** Resolves to the number of bytes it has put into `buffer`; null at end of stream. */
  read(buffer: Uint8Array): Promise<number | null>;
  /** Resolves to the number of bytes of `data` it has taken. */
  write(data: Uint8Array): Promise<number>;
  /** Ends our side of the stream. */
  closeWrite(): Promise<void>;
  /** Ends it all; what is pending rejects. */
  close(): void;
  /** For TCP. */
  setNoDelay?(on?: boolean): void;
  /** For TCP. */
  setKeepAlive?(on?: boolean): void;
}

const EMPTY = new Uint8Array(0);

/**
 * A connected socket. Its methods never block: what cannot be done now throws {@linkcode WouldBlock}. To wait, a task
 * uses `loop.sockRecv` and `loop.sockSendall`, or `readWait` and `writeWait`.
 */
export class Socket extends Pollable implements SocketLike {
  readonly #conn: Connection;
  #isClosed = false;

  // The read side: bytes from #from to #to of the slab have arrived and were not taken; a read under way fills what is
  // behind them. Bytes are handed out as views of the slab, never copied; the rest of it serves the reads to come.
  #slab: Uint8Array = EMPTY;
  #from = 0;
  #to = 0;
  #readSize = READ_MIN;
  #reading = false;
  #eof = false;
  #readError: unknown = null;

  // The write side: one write under way, and what was sent since.
  #writing = false;
  #waiting: Outgoing | null = null;
  #writeEnded = false;
  #writeError: unknown = null;
  #flushed: PromiseWithResolvers<void> | null = null;
  #linger: ReturnType<typeof setTimeout> | undefined;
  #settings: (() => void)[] = [];

  /** Makes a socket over `conn`, which is the socket's from now on. */
  constructor(conn: Connection) {
    super();
    this.#conn = conn;
  }

  /** Our address. */
  get localAddr(): Addr {
    return this.#conn.localAddr;
  }
  /** The peer's address. */
  get remoteAddr(): Addr {
    return this.#conn.remoteAddr;
  }
  /** @internal */
  get _closed(): boolean {
    return this.#isClosed;
  }

  /** @internal */
  _ready(event: number): boolean {
    if (this.#isClosed) return true;
    if (event === EVENT_READ) return this.#to > this.#from || this.#eof || this.#readError !== null;
    return !this.#writing || this.#writeError !== null || this.#waiting === null || this.#waiting.room > 0;
  }

  /** @internal */
  _arm(event: number): void {
    if (event === EVENT_READ && !this.#reading) this.#read();
  }

  #check(what: string): void {
    if (this.#isClosed) throw new ClosedError(`Cannot ${what} ${this}: it is closed`);
  }

  // ---- Reading -------------------------------------------------------------------------------------------------

  /**
   * Takes at most `maxBytes` of what has arrived; an empty array at end of stream, again and again. The array is a view
   * into a larger buffer whose other parts are not yours; `slice()` it to keep little of much, or to transfer it.
   *
   * @throws {WouldBlock} If nothing has arrived.
   * @throws {RangeError} If `maxBytes` is not a whole number from 1 up.
   * @throws {ClosedError} If the socket is closed.
   */
  recv(maxBytes: number): Uint8Array {
    this.#check("recv on");
    if (!Number.isSafeInteger(maxBytes) || maxBytes < 1) {
      throw new RangeError(`Cannot recv ${maxBytes} bytes: the number must be a whole one from 1 up`);
    }
    const from = this.#from;
    if (this.#to === from) return this.#nothing();
    this.#from = Math.min(this.#to, from + maxBytes);
    return this.#slab.subarray(from, this.#from);
  }

  /**
   * Moves what has arrived into `buffer` and says how many bytes that were; 0 at end of stream.
   *
   * @throws {WouldBlock} If nothing has arrived.
   * @throws {TypeError} If `buffer` is no `Uint8Array`, or an empty one.
   * @throws {ClosedError} If the socket is closed.
   */
  recvInto(buffer: Uint8Array): number {
    this.#check("recv on");
    checkBytes("recv into", buffer);
    if (buffer.length === 0) throw new TypeError("Cannot recv into an empty buffer");
    if (this.#to === this.#from) return this.#nothing().length;
    const length = Math.min(this.#to - this.#from, buffer.length);
    buffer.set(this.#slab.subarray(this.#from, this.#from + length));
    this.#from += length;
    // No view of these bytes was given away: once all are taken their place is free again.
    if (this.#from === this.#to && !this.#reading) this.#from = this.#to = this.#given;
    return length;
  }
  /** Up to here the slab has been handed out in views. */
  #given = 0;

  #nothing(): Uint8Array {
    if (this.#readError !== null) throw this.#readError;
    if (this.#eof) return new Uint8Array(0);
    throw new WouldBlock(`Cannot recv on ${this}: nothing has arrived`);
  }

  #read(): void {
    if (this.#slab.length - this.#to < this.#readSize >> 2) {
      this.#slab = new Uint8Array(this.#readSize);
      this.#from = this.#to = 0;
    }
    this.#reading = true;
    const target = this.#slab.subarray(this.#to);
    this.#conn.read(target).then((n) => this.#onRead(n, target.length), (error) => this.#onReadError(error));
  }

  #onRead(n: number | null, asked: number): void {
    this.#reading = false;
    if (n === null) {
      this.#eof = true;
      this.#slab = EMPTY;
      this.#from = this.#to = 0;
    } else {
      this.#to += n;
      if (n === asked) this.#readSize = Math.min(this.#readSize * 4, READ_MAX);
      else if (n < this.#readSize >> 4) this.#readSize = Math.max(this.#readSize >> 2, READ_MIN);
    }
    this._signal(EVENT_READ);
  }

  #onReadError(error: unknown): void {
    this.#reading = false;
    this.#readError = error;
    this._signal(EVENT_READ);
  }

  // ---- Writing -------------------------------------------------------------------------------------------------

  /**
   * Takes what fits of `data` and says how many bytes that are. They are copied: `data` may be changed at once.
   *
   * @throws {WouldBlock} If there is no room.
   * @throws {TypeError} If `data` is no `Uint8Array`.
   * @throws {ClosedError} If the socket is closed.
   * @throws {Deno.errors.BrokenPipe} After `closeWrite`, or if the peer is gone.
   */
  send(data: Uint8Array): number {
    this.#check("send on");
    checkBytes("send", data);
    if (this.#writeError !== null) throw this.#writeError;
    if (this.#writeEnded) throw new Deno.errors.BrokenPipe(`Cannot send on ${this}: its write side was closed`);
    const room = this.#waiting ? this.#waiting.room : SEND_MAX;
    if (room === 0) throw new WouldBlock(`Cannot send on ${this}: it holds ${SEND_MAX} bytes that have not left yet`);
    const taken = data.length > room ? data.subarray(0, room) : data;
    if (taken.length === 0) return 0;
    this.#waiting ??= new Outgoing(taken.length);
    this.#waiting.append(taken);
    if (!this.#writing) this.#write();
    return taken.length;
  }

  #write(): void {
    const out = this.#waiting!;
    this.#waiting = null;
    this.#writing = true;
    this.#writeRest(out, 0);
  }

  #writeRest(out: Outgoing, from: number): void {
    this.#conn.write(out.buffer.subarray(from, out.length)).then(
      (n) => from + n < out.length ? this.#writeRest(out, from + n) : this.#onWritten(out),
      (error) => this.#onWriteError(error),
    );
  }

  #onWritten(out: Outgoing): void {
    out.release();
    this.#writing = false;
    if (this.#settings.length > 0) this.#applySettings();
    if (this.#waiting) this.#write();
    else this.#flushed?.resolve();
    this._signal(EVENT_WRITE);
  }

  #onWriteError(error: unknown): void {
    // The buffer is not given back: the platform may still hold it.
    this.#writing = false;
    this.#waiting?.release();
    this.#waiting = null;
    this.#writeError = error;
    this.#flushed?.resolve();
    this._signal(EVENT_WRITE);
  }

  /** Resolves when nothing that was sent is still here. */
  #flush(): Promise<void> {
    if (!this.#writing) return Promise.resolve();
    return (this.#flushed ??= Promise.withResolvers<void>()).promise;
  }

  /**
   * Waits until everything sent has left, then ends our side of the stream: the peer sees its end, and can still send.
   *
   * @throws {ClosedError} If the socket is closed, or gets closed meanwhile.
   */
  *closeWrite(): Coroutine<void> {
    this.#check("close the write side of");
    if (this.#writeEnded) return;
    yield* until(this.#flush());
    this.#check("close the write side of");
    if (this.#writeError !== null) throw this.#writeError;
    this.#writeEnded = true;
    yield* until(this.#conn.closeWrite());
  }

  // ---- Settings and the end ------------------------------------------------------------------------------------

  /** Whether small writes leave at once instead of being gathered (`TCP_NODELAY`). No effect where there is no TCP. */
  setNoDelay(on = true): void {
    this.#set(() => this.#conn.setNoDelay?.(on));
  }

  /** Whether the system probes an idle connection (`SO_KEEPALIVE`). No effect where there is no TCP. */
  setKeepAlive(on = true): void {
    this.#set(() => this.#conn.setKeepAlive?.(on));
  }

  #set(setting: () => void): void {
    this.#check("set an option of");
    this.#settings.push(setting);
    if (!this.#writing) this.#applySettings();
  }

  /** Deno refuses settings while a write is under way, so they wait for its end. */
  #applySettings(): void {
    for (const setting of this.#settings.splice(0)) setting();
  }

  /**
   * Closes the socket. Who waits on it gets {@linkcode ClosedError}; what `send` had taken is still delivered, for
   * {@linkcode LINGER} milliseconds at most. Closing twice is fine.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const unread = this.#to > this.#from;
    this.#slab = EMPTY;
    this.#from = this.#to = 0;
    this._signal(EVENT_READ);
    this._signal(EVENT_WRITE);
    if (this.#writeError !== null || (!this.#writing && !unread)) return this.#conn.close();
    this.#linger = setTimeout(() => this.#conn.close(), LINGER);
    this.#deliver(unread).catch(() => {}).finally(() => {
      clearTimeout(this.#linger);
      close(this.#conn);
    });
  }

  /**
   * Discussion: TCP answers bytes that arrive at, or lie unread in, a closed socket with a reset, and a reset throws away
   * what the peer has not read yet. So where we know of unread input, we end our side, read what comes and forget it
   * until the peer has ended its side too.
   */
  async #deliver(unread: boolean): Promise<void> {
    await this.#flush();
    if (!unread && !this.#reading) return;
    if (!unread) return;
    await this.#conn.closeWrite();
    const scrap = new Uint8Array(READ_MAX);
    while (!this.#eof && !this.#reading && await this.#conn.read(scrap) !== null);
  }

  /** Closes the socket and drops what has not left yet. */
  abort(): void {
    this.close();
    clearTimeout(this.#linger);
    close(this.#conn);
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** Closes what may be closed already. */
function close(resource: { close(): void }): void {
  try {
    resource.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}

function checkBytes(what: string, data: unknown): void {
  if (!(data instanceof Uint8Array)) {
    throw new TypeError(`Cannot ${what} ${Deno.inspect(data, { depth: 0 })}: it must be a Uint8Array`);
  }
}

// ----------------------------------------------------------------------------------------------------------------
// Listeners
// ----------------------------------------------------------------------------------------------------------------

/** What a {@linkcode Listener} needs of the listener below it. `Deno.Listener` has it. */
export interface ConnectionListener {
  /** The address it listens on. */
  readonly addr: Addr;
  /** Resolves to the next connection. */
  accept(): Promise<Connection>;
  /** Ends it; a pending accept rejects. */
  close(): void;
}

/** A listening socket. To wait for a connection, a task uses `loop.sockAccept`. */
export class Listener extends Pollable implements ListenerLike<Socket> {
  readonly #listener: ConnectionListener;
  #accepting = false;
  #accepted: Connection | null = null;
  #error: unknown = null;
  #isClosed = false;

  /** Makes a listener over `listener`, which is its own from now on. */
  constructor(listener: ConnectionListener) {
    super();
    this.#listener = listener;
  }

  /** The address it listens on; `addr.port` is the real one if port 0 was asked for. */
  get addr(): Addr {
    return this.#listener.addr;
  }
  /** @internal */
  get _closed(): boolean {
    return this.#isClosed;
  }

  /** @internal */
  _ready(event: number): boolean {
    return this.#isClosed || (event === EVENT_READ && (this.#accepted !== null || this.#error !== null));
  }

  /** @internal */
  _arm(event: number): void {
    if (event !== EVENT_READ || this.#accepting) return;
    this.#accepting = true;
    this.#listener.accept().then((conn) => this.#onAccept(conn), (error) => this.#onAcceptError(error));
  }

  #onAccept(conn: Connection): void {
    this.#accepting = false;
    if (this.#isClosed) return close(conn);
    this.#accepted = conn;
    this._signal(EVENT_READ);
  }

  #onAcceptError(error: unknown): void {
    this.#accepting = false;
    if (this.#isClosed) return;
    // A client that was gone before it was accepted is no fault of the listener's: the next look arms it again.
    const gone = error instanceof Deno.errors.NotConnected || error instanceof Deno.errors.ConnectionAborted ||
      error instanceof Deno.errors.ConnectionReset;
    if (!gone) this.#error = error;
    this._signal(EVENT_READ);
  }

  /**
   * Takes the connection that has arrived.
   *
   * @throws {WouldBlock} If none has.
   * @throws {ClosedError} If the listener is closed.
   */
  accept(): [Socket, Addr] {
    if (this.#isClosed) throw new ClosedError(`Cannot accept from ${this}: it is closed`);
    const error = this.#error;
    this.#error = null;
    if (error !== null) throw error;
    const conn = this.#accepted;
    if (!conn) throw new WouldBlock(`Cannot accept from ${this}: no connection has arrived`);
    this.#accepted = null;
    return [new Socket(conn), conn.remoteAddr];
  }

  /**
   * Stops listening. Who waits on it gets {@linkcode ClosedError}. The port is free for another listener after one turn
   * of Deno's event loop. Closing twice is fine.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#accepted) close(this.#accepted);
    this.#accepted = null;
    this._signal(EVENT_READ);
    close(this.#listener);
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

// ----------------------------------------------------------------------------------------------------------------
// Deno's network
// ----------------------------------------------------------------------------------------------------------------

/** Options of {@linkcode listen}: those of `Deno.listen`. */
export type ListenOptions =
  | Deno.TcpListenOptions & { transport?: "tcp" }
  | Deno.UnixListenOptions & { transport: "unix" };

/** Options of {@linkcode connect}: those of `Deno.connect`. */
export type ConnectOptions =
  | Deno.ConnectOptions & { transport?: "tcp" }
  | Deno.UnixConnectOptions & { transport: "unix" };

const denoNetwork: Network = {
  listen(options: ListenOptions): Listener {
    if (options.transport !== "unix") checkPort("listen on", options.port, 0);
    return new Listener(Deno.listen(options as Deno.TcpListenOptions) as ConnectionListener);
  },

  *connect(options: ConnectOptions): Coroutine<Socket> {
    if (options.transport !== "unix") checkPort("connect to", options.port, 1);
    const conn = yield* until((signal) =>
      Deno.connect({ ...options, signal } as Deno.ConnectOptions).then((conn) => closeOnAbort(conn, signal))
    );
    return new Socket(conn as Connection);
  },
};

/** A connection that is made though nobody waits for it any more is closed. */
function closeOnAbort<C extends { close(): void }>(conn: C, signal: AbortSignal): C {
  if (signal.aborted) close(conn);
  else signal.addEventListener("abort", () => close(conn));
  return conn;
}

function checkPort(what: string, port: unknown, least: number): void {
  if (!Number.isInteger(port) || (port as number) < least || (port as number) > 65535) {
    throw new RangeError(`Cannot ${what} port ${port}: it must be a whole number from ${least} to 65535`);
  }
}

/** The network of the loop that is running; the platform's, outside of any. */
function network(): Network {
  return runningLoopOrNull()?.network ?? denoNetwork;
}

/**
 * Opens a listening socket on TCP or a Unix path. Options are `Deno.listen`'s.
 *
 * @throws {RangeError} If the port is none.
 * @throws {Deno.errors.AddrInUse} If another socket listens there.
 * @throws {Deno.errors.NotCapable} If the program may not.
 *
 * @example
 * ```ts
 * import { listen } from "@yieldloop/yieldloop";
 *
 * using listener = listen({ hostname: "127.0.0.1", port: 0 });
 * console.log(listener.addr);
 * ```
 */
export function listen(options: ListenOptions): Listener {
  return network().listen(options) as Listener;
}

/**
 * Connects to a TCP address or a Unix path. Options are `Deno.connect`'s. Cancelled, it leaves no connection behind.
 *
 * @throws {RangeError} If the port is none.
 * @throws {Deno.errors.ConnectionRefused} If nobody listens there.
 */
export function connect(options: ConnectOptions): Coroutine<Socket> {
  return network().connect(options) as Coroutine<Socket>;
}

setDefaultWorld({
  selector: () => new DefaultSelector(),
  clock: { now: () => performance.now() },
  network: denoNetwork,
});
