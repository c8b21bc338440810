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
    this.wakeup();
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
    // A longer delay than this would silently become the shortest.
    const delay = Math.min(Math.ceil(this.#until - performance.now()), 2 ** 31 - 1);
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
