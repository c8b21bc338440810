/**
 * sync.ts: what the tasks of a loop use to wait for each other.
 *
 * Everything here is made of two ops, `park` and `checkpoint`. Between two ops of a task no other runs, so a primitive is a
 * few variables and a {@linkcode ParkingLot} for those who wait.
 *
 * The rules:
 *
 * - First come, first served. What is given back goes to whoever has waited longest, before anybody else can take it.
 * - A cancelled wait did not happen: no lock is held, no slot taken, no item gone.
 * - Each wait goes through `ready` once, even if there is nothing to wait for: a cancellation point, and a turn for others.
 * - What neither waits nor belongs to a task (`Event.set`, `Semaphore.release`, `putNowait`) may be called from outside the
 *   loop, and wakes it. A lock belongs to a task.
 * - What is free is taken first and given back if the checkpoint after it does not end well. (Written out each time: as a
 *   helper it would be one more generator, and cost half as much again.)
 *
 * @module
 */

import {
  checkFunctions,
  checkpoint,
  ClosedError,
  type Coroutine,
  currentTask,
  Deque,
  hush,
  kind,
  park,
  ParkingLot,
  type Task,
  WouldBlock,
} from "./loop.ts";
import { shield } from "./scope.ts";

// -------------------------------------
// Event
// -------------------------------------

/**
 * A flag that tasks can wait for. After asyncio's `Event`. In a file that needs the platform's `Event` too, import it under
 * another name: `import { Event as Flag }`.
 *
 * @example
 * ```ts
 * import { Event, Loop } from "@yieldloop/yieldloop";
 *
 * const event = new Event();
 * setTimeout(() => event.set(), 1); // from outside the loop
 * await new Loop().run(event.wait());
 * ```
 */
export class Event {
  #isSet = false;
  readonly #waiters = new ParkingLot("Event.wait");

  /** Whether it is set. */
  get isSet(): boolean {
    return this.#isSet;
  }

  /** Sets it, and wakes every task that waits. */
  set(): void {
    this.#isSet = true;
    this.#waiters.unparkAll();
  }

  /** Clears it: whoever waits from now on waits for the next `set`. */
  clear(): void {
    this.#isSet = false;
  }

  /** Waits until it is set. */
  *wait(): Coroutine<void> {
    // Checked when the wait begins: it may have been set since the coroutine was made.
    yield* this.#isSet ? checkpoint() : park(this.#waiters);
  }
}

// -------------------------------------
// Lock
// -------------------------------------

/**
 * A lock. It belongs to the task that acquired it; nobody else can release it, except with the guard. After trio's `Lock`.
 *
 * @example
 * ```ts
 * import { Lock, Loop, sleep } from "@yieldloop/yieldloop";
 *
 * const lock = new Lock();
 * function* main() {
 *   using _guard = yield* lock.acquire();
 *   yield* sleep(1);
 * } // released here, whichever way the block is left
 * await new Loop().run(main());
 * ```
 */
export class Lock {
  #owner: Task | null = null;
  readonly #waiters = new ParkingLot("Lock.acquire");
  /** @ignore The guard of the owner's acquisition; those of earlier ones release nothing. */
  _guard: Disposable | null = null;

  /** Whether a task holds it. */
  get locked(): boolean {
    return this.#owner !== null;
  }

  /** Whether the current task holds it. */
  get held(): boolean {
    return this.#owner !== null && this.#owner === this.#owner.loop.currentTask;
  }

  /**
   * Waits until the lock is free and takes it. The guard it returns releases it, once:
   * `using guard = yield* lock.acquire()`. (Without `yield*` that is a `TypeError`, of which no type warns.) Without `using`
   * it stays taken until {@linkcode release}, even when its task has ended.
   *
   * @throws {Error} If the task holds it already: it would wait for itself.
   */
  *acquire(): Coroutine<Disposable> {
    const task = currentTask();
    if (this.#owner === task) throw new Error(`Cannot acquire the lock: ${task} holds it already`);
    if (this.#owner) {
      task.loop._noteWait(this.#owner.loop);
      yield* park(this.#waiters); // release() has made this task the owner
    } else {
      this.#owner = task;
      let taken = false;
      try {
        yield* checkpoint();
        taken = true;
      } finally {
        if (!taken) this.#handOver();
      }
    }
    const guard = {
      [Symbol.dispose]: () => {
        if (this._guard === guard) this.#handOver();
      },
    };
    return this._guard = guard;
  }

  /**
   * Gives the lock to the task that has waited longest for it.
   *
   * @throws {Error} If the current task does not hold it.
   */
  release(): void {
    if (!this.held) throw new Error("Cannot release the lock: the current task does not hold it");
    this.#handOver();
  }

  #handOver(): void {
    this._guard = null;
    this.#owner = this.#waiters.unpark();
  }
}

// -------------------------------------
// Semaphore
// -------------------------------------

/** Options of {@linkcode Semaphore}. */
export interface SemaphoreOptions {
  /** The most that `value` can be: one release too many is an error. Default: the initial value; no limit if that is 0. */
  max?: number | undefined;
}

/**
 * A counter of free slots. After asyncio's `BoundedSemaphore`.
 *
 * @example
 * ```ts
 * import { all, Loop, Semaphore, sleep } from "@yieldloop/yieldloop";
 *
 * const atOnce = new Semaphore(2);
 * function* job() {
 *   using _slot = yield* atOnce.acquire();
 *   yield* sleep(1);
 * }
 * await new Loop().run(all([job(), job(), job()]));
 * ```
 */
export class Semaphore {
  #value: number;
  readonly #max: number;
  readonly #waiters = new ParkingLot("Semaphore.acquire");

  /**
   * Makes a semaphore with `value` free slots.
   *
   * @throws {RangeError} If `value` is not a whole number from 0 up, or larger than `max`; or `max` is neither a whole number
   * nor `Infinity`.
   */
  constructor(value: number, options: SemaphoreOptions = {}) {
    // One that starts at 0 is a signal: nobody holds a slot, so there is nothing to count releases against.
    const { max = value || Infinity } = options;
    if (!Number.isInteger(value) || value < 0) {
      throw new RangeError(`Cannot make a semaphore of ${kind(value)}: the value must be a whole number from 0 up`);
    }
    if (max !== Infinity && !Number.isInteger(max)) {
      throw new RangeError(`Cannot make a semaphore with the max ${kind(max)}: it must be a whole number`);
    }
    if (max < value) throw new RangeError(`Cannot make a semaphore of ${value}: that is more than its max, ${max}`);
    this.#value = value;
    this.#max = max;
  }

  /** How many slots are free. */
  get value(): number {
    return this.#value;
  }

  /**
   * Waits for a free slot and takes it. The guard it returns releases it, once: `using slot = yield* semaphore.acquire()`.
   * (Without `yield*` that is a `TypeError`, of which no type warns.)
   */
  *acquire(): Coroutine<Disposable> {
    if (this.#value === 0) {
      yield* park(this.#waiters); // release() has handed its slot over
    } else {
      this.#value--;
      let taken = false;
      try {
        yield* checkpoint();
        taken = true;
      } finally {
        if (!taken) this.#handOver();
      }
    }
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (held) this.release();
        held = false;
      },
    };
  }

  /**
   * Gives a slot back: to the task that has waited longest, if there is one. If a slot has a guard, leave that to the
   * guard: a second release would give back somebody else's.
   *
   * @throws {Error} If no slot is taken: `value` is at its `max`.
   */
  release(): void {
    if (this.#value >= this.#max) throw new Error("Cannot release the semaphore: no slot of it is taken");
    this.#handOver();
  }

  #handOver(): void {
    if (!this.#waiters.unpark()) this.#value++;
  }
}

// A generator has a `[Symbol.dispose]` of its own: so `using guard = lock.acquire()`, its `yield*` forgotten, would pass, and
// hold nothing.
for (const { acquire } of [Lock.prototype, Semaphore.prototype]) {
  Object.defineProperty(acquire.prototype, Symbol.dispose, {
    get(): never {
      throw new TypeError("Cannot use a coroutine as a guard: write `using guard = yield* lock.acquire()`");
    },
  });
}

// -------------------------------------
// Condition
// -------------------------------------

/**
 * A lock, and a way to wait, while holding it, for something that another task will change while holding it. After
 * asyncio's `Condition`.
 *
 * @example
 * ```ts
 * import { Condition, Loop } from "@yieldloop/yieldloop";
 *
 * const loop = new Loop();
 * const changed = new Condition();
 * let ready = false;
 * function* waiter() {
 *   using _guard = yield* changed.acquire();
 *   yield* changed.waitFor(() => ready);
 * }
 * function* main() {
 *   const task = loop.createTask(waiter());
 *   using guard = yield* changed.acquire();
 *   ready = true;
 *   changed.notifyAll();
 *   guard[Symbol.dispose]();
 *   yield* task.join();
 * }
 * await loop.run(main());
 * ```
 */
export class Condition {
  readonly #lock: Lock;
  readonly #waiters = new ParkingLot("Condition.wait");

  /**
   * Makes a condition on `lock`, by default on one of its own.
   *
   * @throws {TypeError} If `lock` is not a `Lock`.
   */
  constructor(lock: Lock = new Lock()) {
    if (!(lock instanceof Lock)) throw new TypeError(`Cannot make a condition on ${kind(lock)}: it is not a Lock`);
    this.#lock = lock;
  }

  /** Waits until the lock is free and takes it, as {@linkcode Lock.acquire} does. */
  acquire(): Coroutine<Disposable> {
    return this.#lock.acquire();
  }

  /**
   * Releases the lock.
   *
   * @throws {Error} If the current task does not hold it.
   */
  release(): void {
    this.#lock.release();
  }

  /** Whether a task holds the lock. */
  get locked(): boolean {
    return this.#lock.locked;
  }

  /**
   * Releases the lock, waits to be notified, and takes the lock again before it returns, or throws `Cancelled`.
   *
   * @throws {Error} If the current task does not hold the lock.
   */
  *wait(): Coroutine<void> {
    this.#check("wait for");
    const guard = this.#lock._guard;
    this.#lock.release();
    try {
      yield* park(this.#waiters);
    } finally {
      yield* shield(this.#lock.acquire());
      this.#lock._guard = guard; // The one its task has stays good.
    }
  }

  /**
   * Waits until `predicate()` holds, looking again each time it is notified.
   *
   * @throws {TypeError} If `predicate` is not a function, or returns a promise or a coroutine.
   * @throws {Error} If the current task does not hold the lock.
   */
  *waitFor(predicate: () => boolean): Coroutine<void> {
    this.#check("wait for");
    yield* checkpoint(); // Before the predicate, which may take what it finds.
    while (!holds(predicate)) yield* this.wait();
  }

  /**
   * Wakes the `n` tasks that have waited longest, by default one.
   *
   * @throws {RangeError} If `n` is not a whole number from 0 up.
   * @throws {Error} If the current task does not hold the lock.
   */
  notify(n: number = 1): void {
    if (!Number.isInteger(n) || n < 0) {
      throw new RangeError(`Cannot notify ${kind(n)} tasks: the number must be a whole one from 0 up`);
    }
    this.#check("notify");
    while (n-- > 0 && this.#waiters.unpark());
  }

  /**
   * Wakes all that wait.
   *
   * @throws {Error} If the current task does not hold the lock.
   */
  notifyAll(): void {
    this.notify(this.#waiters.length);
  }

  #check(what: string): void {
    if (!this.#lock.held) throw new Error(`Cannot ${what} the condition: the current task does not hold its lock`);
  }
}

function holds(predicate: () => unknown): boolean {
  if (typeof predicate !== "function") throw new TypeError(`Cannot wait for ${kind(predicate)}: it is not a function`);
  const result = predicate() as { then?: unknown; next?: unknown } | undefined;
  // A promise or a coroutine, which is always true, would end the wait at once.
  if (typeof (result?.then ?? result?.next) !== "function") return Boolean(result);
  hush(result);
  throw new TypeError("Cannot wait for a predicate that has to wait itself: it must return a boolean at once");
}

// -------------------------------------
// Queues
// -------------------------------------

/**
 * Where a queue keeps its items; it decides the order, and may drop one for another.
 *
 * @example A queue that drops its oldest item rather than let anybody wait
 * ```ts
 * import { Queue, type QueueItems } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * class Newest<T> implements QueueItems<T> {
 *   #items: T[] = [];
 *   constructor(readonly max: number) {}
 *   get length() {
 *     return this.#items.length;
 *   }
 *   append(item: T) {
 *     if (this.#items.push(item) > this.max) this.#items.shift();
 *   }
 *   popleft() {
 *     return this.#items.shift();
 *   }
 * }
 * const queue = new Queue(0, new Newest<string>(2));
 * for (const item of ["a", "b", "c"]) queue.putNowait(item);
 * assertEquals([queue.getNowait(), queue.getNowait()], ["b", "c"]);
 * ```
 */
export interface QueueItems<T> {
  /** How many there are. */
  readonly length: number;
  /** Adds one. It may drop another, which then counts as dealt with; but there must not be fewer than before. */
  append(item: T): void;
  /** Takes the next one. */
  popleft(): T | undefined;
}

/**
 * A queue between tasks: first in, first out. After asyncio's `Queue`.
 *
 * @example
 * ```ts
 * import { all, Loop, Queue } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const queue = new Queue<string>(10);
 * const [_, item] = await new Loop().run(all([queue.put("hello"), queue.get()]));
 * assertEquals(item, "hello");
 * ```
 */
export class Queue<T> {
  /** How many items it holds at most; `Infinity` for no limit. */
  readonly maxsize: number;
  readonly #items: QueueItems<T>;
  // Discussion: a task that found a slot or an item goes through `ready` before it uses it, and may be cancelled there. An
  // item taken before that would have to be put back, past what others have taken meanwhile. So what is spoken for is only
  // counted, and each item stays where it is until its taker runs.
  /** Slots spoken for by tasks that are about to put. */
  #promised = 0;
  /** Items spoken for by tasks that are about to get. */
  #claimed = 0;
  #unfinished = 0;
  #closed = false;
  readonly #getters = new ParkingLot<boolean>("Queue.get");
  readonly #putters = new ParkingLot<boolean>("Queue.put");
  readonly #joiners = new ParkingLot("Queue.join");

  /**
   * Makes a queue of at most `maxsize` items; 0, the default, means no limit. `items` keeps them, and decides their order.
   *
   * @throws {RangeError} If `maxsize` is neither a whole number from 0 up nor `Infinity`.
   */
  constructor(maxsize: number = 0, items: QueueItems<T> = new Deque<T>()) {
    if (maxsize !== Infinity && !(Number.isInteger(maxsize) && maxsize >= 0)) {
      throw new RangeError(`Cannot make a queue of ${kind(maxsize)} items: the number must be a whole one from 0 up`);
    }
    this.maxsize = maxsize === 0 ? Infinity : maxsize;
    this.#items = items;
  }

  /** How many items it holds. */
  get size(): number {
    return this.#items.length;
  }

  /** Whether it has been closed. */
  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Waits for room and adds `item`.
   *
   * @throws {ClosedError} If the queue is closed, or gets closed meanwhile; the item is not in it.
   */
  *put(item: T): Coroutine<void> {
    this.#checkOpen();
    const full = this.#full;
    if (full) {
      // Whoever takes an item promises its slot to the putter that has waited longest.
      if (!(yield* park(this.#putters))) throw closedError("put");
    } else this.#promised++;
    let added = false;
    try {
      if (!full) yield* checkpoint();
      this.#checkOpen();
      this.#add(item);
      added = true;
    } finally {
      this.#promised--;
      if (!added) this.#offerSlot();
    }
  }

  /**
   * Adds `item` if there is room that no waiting task is about to take: an empty queue may have none.
   *
   * @throws {WouldBlock} If there is none.
   * @throws {ClosedError} If the queue is closed.
   */
  putNowait(item: T): void {
    this.#checkOpen();
    if (this.#full) {
      const why = this.size < this.maxsize
        ? "all room in the queue goes to tasks that wait for it"
        : `the queue is full, its maxsize is ${this.maxsize}`;
      throw new WouldBlock(`Cannot put: ${why}`);
    }
    this.#add(item);
  }

  /**
   * Waits for an item and takes it.
   *
   * @throws {ClosedError} If the queue is closed and no item is left.
   */
  *get(): Coroutine<T> {
    const empty = this.#available === 0;
    if (empty) {
      this.#checkDrained();
      // Whoever adds an item claims it for the getter that has waited longest.
      if (!(yield* park(this.#getters))) throw closedError("get");
    } else this.#claimed++;
    let taken = false;
    try {
      if (!empty) yield* checkpoint();
      const item = this.#take();
      taken = true;
      return item;
    } finally {
      this.#claimed--;
      if (!taken) this.#offerItem(); // It was cancelled, or a comparison threw: the item is still there.
    }
  }

  /**
   * Takes an item if there is one that no waiting task is about to take: a full queue may have none.
   *
   * @throws {WouldBlock} If there is none.
   * @throws {ClosedError} If the queue is closed and no item is left.
   */
  getNowait(): T {
    if (this.#available === 0) {
      this.#checkDrained();
      const why = this.size === 0 ? "the queue is empty" : "all that is in the queue goes to tasks that wait for it";
      throw new WouldBlock(`Cannot get: ${why}`);
    }
    return this.#take();
  }

  /** Says that nothing will be put any more. Whoever waits to put fails; those who get, get what is left. */
  close(): void {
    this.#closed = true;
    this.#putters.unparkAll(false);
    this.#tellDrained();
  }

  /**
   * Says that an item that was taken has been dealt with.
   *
   * @throws {Error} If that has been said of every item already.
   */
  taskDone(): void {
    if (this.#unfinished === 0) {
      throw new Error("Cannot mark a task as done: taskDone was called for every item already");
    }
    if (--this.#unfinished === 0) this.#joiners.unparkAll();
  }

  /** Waits until `taskDone` was called for every item that was put. */
  *join(): Coroutine<void> {
    yield* this.#unfinished === 0 ? checkpoint() : park(this.#joiners);
  }

  get #full(): boolean {
    return this.#items.length + this.#promised >= this.maxsize;
  }

  /** How many items nobody has spoken for. */
  get #available(): number {
    return this.#items.length - this.#claimed;
  }

  #add(item: T): void {
    const before = this.#items.length;
    this.#items.append(item);
    this.#unfinished += this.#items.length - before;
    this.#offerItem();
  }

  #take(): T {
    const item = this.#items.popleft()!;
    this.#offerSlot();
    this.#tellDrained();
    return item;
  }

  /** Closed, with every item taken: one that is only claimed stays if its getter is cancelled. */
  get #drained(): boolean {
    return this.#closed && this.#items.length === 0;
  }

  #checkDrained(): void {
    if (this.#drained) throw closedError("get");
  }

  /** If it is drained, those who wait for an item wait in vain. */
  #tellDrained(): void {
    if (this.#drained) this.#getters.unparkAll(false);
  }

  /** If there is an item nobody has spoken for, it goes to the getter that has waited longest. */
  #offerItem(): void {
    if (this.#available > 0 && this.#getters.unpark(true)) this.#claimed++;
  }

  /** A slot that is free goes to the putter that has waited longest. */
  #offerSlot(): void {
    if (this.#putters.unpark(true)) this.#promised++;
  }

  #checkOpen(): void {
    if (this.#closed) throw closedError("put");
  }
}

function closedError(what: "get" | "put"): ClosedError {
  return new ClosedError(`Cannot ${what === "get" ? "get from" : "put into"} the queue: it is closed`);
}

/** A queue that gives the item that was put last. After asyncio's `LifoQueue`. */
export class LifoQueue<T> extends Queue<T> {
  /**
   * Makes a queue of at most `maxsize` items; 0, the default, means no limit.
   *
   * @throws {RangeError} If `maxsize` is neither a whole number from 0 up nor `Infinity`.
   */
  constructor(maxsize: number = 0) {
    super(maxsize, new Stack<T>());
  }
}

class Stack<T> implements QueueItems<T> {
  readonly #items: T[] = [];

  get length(): number {
    return this.#items.length;
  }

  append(item: T): void {
    this.#items.push(item);
  }

  popleft(): T | undefined {
    return this.#items.pop();
  }
}

/**
 * A queue that gives the smallest item first; among equal ones, the one put first. After asyncio's `PriorityQueue`.
 *
 * @example
 * ```ts
 * import { PriorityQueue } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const queue = new PriorityQueue<{ due: number }>(0, (a, b) => a.due - b.due);
 * queue.putNowait({ due: 2 });
 * queue.putNowait({ due: 1 });
 * assertEquals(queue.getNowait(), { due: 1 });
 * ```
 */
export class PriorityQueue<T> extends Queue<T> {
  /**
   * Makes a queue of at most `maxsize` items; `compare` is as for `Array.sort`. By default items are ordered by `<`, and
   * arrays such as `[priority, item]` by their first elements that differ; objects other than dates count as equal.
   *
   * @throws {RangeError} If `maxsize` is neither a whole number from 0 up nor `Infinity`.
   * @throws {TypeError} If `compare` is not a function.
   */
  constructor(maxsize: number = 0, compare: (a: T, b: T) => number = inOrder) {
    checkFunctions("make a queue", { compare });
    super(maxsize, new Heap<T>((a, b) => compare(a.item, b.item) || a.order - b.order));
  }
}

function inOrder(a: any, b: any): number {
  if (!Array.isArray(a) || !Array.isArray(b)) {
    if (!hasOrder(a) || !hasOrder(b)) return 0;
    return a < b ? -1 : Number(b < a);
  }
  for (let i = 0; i < a.length && i < b.length; i++) {
    const order = inOrder(a[i], b[i]);
    if (order !== 0) return order;
  }
  return a.length - b.length;
}

/** An object would be compared by whatever it turns into, or could not be at all. */
function hasOrder(value: unknown): boolean {
  return value instanceof Date || !["object", "function", "symbol"].includes(typeof value);
}

interface Entry<T> {
  item: T;
  order: number;
}

/**
 * A binary heap of items, each with the order in which it came. A place is found before anything moves, so that a
 * comparison that throws changes nothing.
 */
class Heap<T> implements QueueItems<T> {
  readonly #heap: Entry<T>[] = [];
  readonly #compare: (a: Entry<T>, b: Entry<T>) => number;
  #next = 0;

  constructor(compare: (a: Entry<T>, b: Entry<T>) => number) {
    this.#compare = compare;
  }

  get length(): number {
    return this.#heap.length;
  }

  append(item: T): void {
    const heap = this.#heap;
    const entry = { item, order: this.#next++ };
    let place = heap.length;
    while (place > 0 && this.#compare(entry, heap[above(place)]) < 0) place = above(place);
    for (let i = heap.length; i > place; i = above(i)) heap[i] = heap[above(i)];
    heap[place] = entry;
  }

  popleft(): T | undefined {
    const heap = this.#heap;
    if (heap.length <= 1) return heap.pop()?.item;
    let i = this.#placeOfLast();
    let entry = heap.pop()!;
    // From there to the top, each takes the place of the one above it; the top itself is left over.
    for (; i >= 0; i = above(i)) [entry, heap[i]] = [heap[i], entry];
    return entry.item;
  }

  /** Where the last entry belongs once the top is gone, and what is above that place has moved up. */
  #placeOfLast(): number {
    const heap = this.#heap;
    const last = heap.length - 1;
    let i = 0;
    for (let child = 1; child < last; child = 2 * i + 1) {
      if (child + 1 < last && this.#compare(heap[child + 1], heap[child]) < 0) child++;
      if (this.#compare(heap[last], heap[child]) <= 0) break;
      i = child;
    }
    return i;
  }
}

function above(i: number): number {
  return (i - 1) >> 1;
}
