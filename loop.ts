/**
 * loop.ts: the kernel.
 *
 * A coroutine is a generator that yields what it waits for as plain data: `["read_wait", sock]`, `["sleep", 10]`.
 * Such a request is an *op*. The {@linkcode Loop} takes a task from `ready`, steps it to its next op, looks the op
 * up by name and lets its handler bring the task back to `ready` when the wait is over. That is all
 * it does; the rest of this file is the care that takes.
 *
 * The forty lines of the article are all here: `readWait` and `writeWait`; in `Loop`, `ready`, `selector`,
 * `currentTask`, `createTask`, `sockRecv`, `runForever`; `#turns` and `#turn` are its `while True`, `#step` its
 * `send(None)`, `#perform` its `getattr(self, op)(*args)`, and the handlers under "The kernel's own ops" are its methods
 * `read_wait` and `write_wait`.
 *
 * The rules the kernel lives by:
 *
 * - It knows nothing of the platform. It reads time from its `clock`, sleeps in `selector.select()` and nowhere else,
 *   and leaves sockets to the network it was given. `net.ts` supplies the three.
 * - A *turn* has three *bands*: I/O, time, ready tasks. The third gives one step to each task that was ready when it
 *   began; what that makes ready runs in the next turn.
 * - Every op goes through `ready`, and every op is a cancellation point.
 * - Almost nothing interesting happens here. What can be built from ops is built from ops, in another file.
 *
 * What is marked `@ignore` is for the modules here only, and not in the docs: members that begin with `_`, constructors
 * that programs do not call, and a few functions, most of which check arguments.
 *
 * @module
 */

// -------------------------------------
// Ops and coroutines
// -------------------------------------

/** What a coroutine yields: the name of what it asks for, and the arguments, as in `["sleep", 10]`. */
export type Op = readonly [name: string, ...args: any[]];

/**
 * A generator that yields ops and returns a `T`. Inside another coroutine it is run with `yield*`; on its own it is
 * run by {@linkcode Loop.createTask} or {@linkcode Loop.run}. Calling its function runs nothing yet. It runs once: to do
 * something again, call the function again. A `function*` that yields a raw op, or calls itself, needs this as its return
 * type: TypeScript cannot infer it.
 */
export type Coroutine<T = void> = Generator<Op, T, any>;

/** How one kind of op is served. See {@linkcode Loop.addOp}. */
export interface OpHandler<Args extends readonly any[] = any[]> {
  /**
   * Begins the wait. Sooner or later, now or from any callback, it has to end in `task.loop.wake(task, value)` or
   * `task.loop.fail(task, error)`. What this function throws is thrown at the task's `yield`. It may be async: what it
   * rejects with is thrown there too. Once the wait is over it goes to `onError` instead; after `cancel` it is ignored.
   */
  start(task: Task<any>, ...args: Args): void;
  /** Undoes the wait, as if it had never begun: the task was cancelled, and must not be woken any more. */
  cancel(task: Task<any>, ...args: Args): void;
}

/**
 * Waits until `sock` can be read (a listener: accepted from) without blocking. The op is `["read_wait", sock]`. (A string is
 * for stepping by hand, as the article does: a loop can wait for sockets only.)
 *
 * @throws {TypeError} If `sock` is not a socket.
 * @throws {BusyError} If another task already waits to read `sock`.
 * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
 *
 * @example By hand, with no loop
 * ```ts
 * import { readWait } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const coro = readWait("somesocket");
 * assertEquals(coro.next(), { value: ["read_wait", "somesocket"], done: false });
 * assertEquals(coro.next(), { value: undefined, done: true });
 * ```
 */
export function readWait(sock: Selectable | string): Coroutine<void> {
  return ask(["read_wait", sock]);
}

/**
 * Waits until `sock` takes bytes without blocking. The op is `["write_wait", sock]`.
 *
 * @throws {TypeError} If `sock` is not a socket.
 * @throws {BusyError} If another task already waits to write `sock`.
 * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
 */
export function writeWait(sock: Selectable | string): Coroutine<void> {
  return ask(["write_wait", sock]);
}

/**
 * Waits for at least `ms` milliseconds on the loop's clock: `sleep(0)` for one full turn, `sleep(Infinity)` until it is
 * cancelled. The op is `["sleep", ms]`. (To wait for a socket or a promise in a loop of `sleep(0)` or {@linkcode checkpoint}
 * would be slow: as long as some task is ready, what comes from outside comes in every few milliseconds only.)
 *
 * @throws {RangeError} If `ms` is negative or not a number.
 *
 * @example
 * ```ts
 * import { Loop, sleep } from "@yieldloop/yieldloop";
 *
 * await new Loop().run(sleep(10));
 * ```
 */
export function sleep(ms: number): Coroutine<void> {
  checkDuration("sleep", ms);
  return ask(["sleep", ms]);
}

const CHECKPOINT: Op = ["checkpoint"];

/** Lets every other ready task take a step first, and is a cancellation point. The op is `["checkpoint"]`. */
export function checkpoint(): Coroutine<void> {
  return ask(CHECKPOINT);
}

/**
 * Waits for a promise and returns its value, or throws what it rejects with. A function is called with an `AbortSignal`
 * that aborts if the wait is cancelled; what its promise does after that is ignored, so if it still brings something that
 * has to be closed, the function has to close it. (Each wait keeps a little memory until its promise settles: if many would
 * wait for one that may never settle, let one task wait for it and set an `Event`.) The op is `["until", source]`.
 *
 * @throws {TypeError} If `source` is neither a promise nor a function that returns one.
 * @throws {Error} If it is the task that would wait.
 *
 * @example
 * ```ts
 * import { Loop, until } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* main() {
 *   return yield* until(Promise.resolve("hello"));
 * }
 * assertEquals(await new Loop().run(main()), "hello");
 * ```
 */
export function until<T>(source: PromiseLike<T> | ((signal: AbortSignal) => PromiseLike<T>)): Coroutine<T> {
  return ask(["until", source]);
}

/** Waits in `lot` for {@linkcode ParkingLot.unpark}, and returns the value given there. The op is `["park", lot]`. */
export function park<T = void>(lot: ParkingLot<T>): Coroutine<T> {
  return ask(["park", lot]);
}

/**
 * Runs `coro` as `yield* coro` does, at a cost that does not depend on how deep the call is nested. The op is
 * `["call", coro]`.
 *
 * Discussion: with `yield*` every resume passes through all coroutines from the task's first to the one that waits; ten
 * levels cost next to nothing, a recursion of a few thousand overflows the stack. Here the task keeps the callers, and
 * only the innermost coroutine is resumed. It costs one trip through `ready`: only deep recursion is worth it. As an op it
 * is also refused in a scope that was cancelled, and then `coro` does not start, as it would with `yield*`: what it was given
 * to release is its caller's.
 *
 * @throws {TypeError} If `coro` is not a coroutine, or was run before.
 *
 * @example
 * ```ts
 * import { call, type Coroutine, Loop } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* depth(n: number): Coroutine<number> {
 *   return n === 0 ? 0 : 1 + (yield* call(depth(n - 1)));
 * }
 * assertEquals(await new Loop().run(depth(100_000)), 100_000);
 * ```
 */
export function call<T>(coro: Coroutine<T>): Coroutine<T> {
  return ask(["call", coro]);
}

/**
 * The coroutine that yields one op and returns its answer. Every op of the library passes here, except those of
 * {@linkcode Join} and of the socket operations of {@linkcode Loop}.
 *
 * Discussion: this is `function* ask(op) { return yield op; }`, written out: most waits make one, and a generator would
 * be slower.
 */
class SingleOp {
  /** Null once it has been yielded. */
  _op: Op | null;

  constructor(op: Op) {
    this._op = op;
  }

  next(value?: unknown): IteratorResult<Op, unknown> {
    const op = this._op;
    this._op = null;
    return op === null ? { value, done: true } : { value: op, done: false };
  }

  return(value?: unknown): IteratorResult<Op, unknown> {
    this._op = null;
    return { value, done: true };
  }

  throw(error: unknown): never {
    this._op = null;
    throw error;
  }

  [Symbol.iterator](): this {
    return this;
  }

  get [Symbol.toStringTag](): string {
    return "Generator";
  }
}

function ask<T>(op: Op): Coroutine<T> {
  return new SingleOp(op) as unknown as Coroutine<T>;
}

/**
 * The task that is taking a step right now; in `onError`, the one that has failed.
 *
 * @throws {Error} If no task is running here.
 */
export function currentTask(): Task<any> {
  const task = running?.currentTask;
  if (!task) throw new Error("Cannot tell the current task: no task is running here");
  return task;
}

/**
 * The loop that is running its tasks right now.
 *
 * @throws {Error} If this code was not called by a task.
 */
export function runningLoop(): Loop {
  if (!running) throw new Error("Cannot tell the running loop: this code was not called by a task");
  return running;
}

/** @ignore As {@linkcode runningLoop}, but null where no task is running. */
export function runningLoopOrNull(): Loop | null {
  return running;
}

/** The loop whose run band is on the stack: tasks never interleave within a step, so one variable serves all loops. */
let running: Loop | null = null;

// -------------------------------------
// The loop
// -------------------------------------

/** What the `trace` hook is told about each op. */
export interface TraceEvent {
  /** Who asks. */
  task: Task<any>;
  /** The op's name. */
  op: string;
  /** Its arguments. */
  args: readonly any[];
  /** When, on the loop's clock. */
  time: number;
}

/** Options of {@linkcode Loop}. */
export interface LoopOptions {
  /** Tells which sockets are ready, and sleeps; of one running loop at a time. Default: a `DefaultSelector`. */
  selector?: Selector | undefined;
  /** Tells the time. Default: the platform's monotonic clock. Another one needs a selector that sleeps by it. */
  clock?: Clock | undefined;
  /** Where `listen()` and `connect()` get their sockets from, in tasks of this loop. Default: the platform. */
  network?: Network | undefined;
  /** Told of each error that nobody else is told of. Default: prints the task and the error's stack to stderr. */
  onError?: ((error: unknown, task: Task<any>) => void) | undefined;
  /**
   * Told of every op of every task before it begins, even if it is refused because the task was cancelled. Not told when a
   * wait ends (the task's next op shows that), nor when a task ends (`addDoneCallback` tells that). What it throws is
   * reported to `onError`.
   */
  trace?: ((event: TraceEvent) => void) | undefined;
}

/** After this many steps, and the turn they end in, the loop lets the platform's own event loop turn. */
const STEPS_PER_PLATFORM_TURN = 512;
/** Likewise after this many milliseconds, however few the steps. */
const TIME_PER_PLATFORM_TURN = 5;

/**
 * How long, in milliseconds, all tasks may wait for each other before that is a deadlock: a callback outside the loop may
 * be about to wake one. If one ever did in this run, there is no limit.
 */
const DEADLOCK_GRACE = 1000;

/** How many tasks the message of a {@linkcode DeadlockError} names. */
const DEADLOCKED_NAMED = 20;

/** How often a task may catch one and the same cancellation and go on to another op before the loop gives it up. */
const SWALLOWED_MAX = 1000;

/** The selectors of the loops that are running: two loops that select at once would take each other's events. */
const IN_USE = new WeakSet<Selector>();

/**
 * The event loop. `ready` holds the tasks that can take a step, `selector` watches the sockets that others wait for.
 *
 * @example
 * ```ts
 * import { Loop, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const loop = new Loop();
 * function* hello(name: string) {
 *   yield* sleep(1);
 *   return `hello ${name}`;
 * }
 * assertEquals(await loop.run(hello("world")), "hello world");
 * ```
 */
export class Loop {
  /** The tasks that can take a step, in the order they will. */
  readonly ready: Deque<Task<any>> = new Deque();
  /** Watches the sockets that tasks wait for, and nothing else: to watch one by hand takes a selector of one's own. */
  readonly selector: Selector;
  /** Where its tasks get their sockets from. */
  readonly network: Network;
  /** @ignore */
  readonly _timers: Timers = new Timers();

  readonly #clock: Clock;
  readonly #onError: NonNullable<LoopOptions["onError"]>;
  readonly #trace: LoopOptions["trace"];
  readonly #ops = new Map(KERNEL_OPS);

  // Its tasks.
  #root: CancelScope = new CancelScope(this, null, null);
  #current: Task<any> | null = null;
  #nextId = 1;
  #live = 0;
  /** Those whose ops are being taken back, while that calls the program. */
  #interrupting: Task<any>[] | null = null;
  /** Those that failed in this turn; an error that nobody takes is reported when the turn ends. */
  #failed: Task<any>[] = [];

  // The run under way.
  #running = false;
  #stopped = false;
  /**
   * Since the loop last let the platform turn: how many steps, after how many to look at the clock again, and when that was.
   * (Not that it slept meanwhile: a sleep may end before the platform has turned.)
   */
  #steps = 0;
  #lookAt = 1;
  #platformTurned = 0;
  /** Whether the loop is in `selector.select()`, and how it is woken if the selector cannot be. */
  #asleep = false;
  #rouse: (() => void) | null = null;

  // Signs of a deadlock: every task is parked, there is no timer and no signal, and nothing outside the loop was seen to
  // feed it (`_noteOrigin`, `_noteWait`). `#timeout` then bounds the sleep by the grace, and `#checkDeadlock` looks again.
  /** @ignore How many tasks are parked: they wait for another task, and for nothing else. */
  _parked = 0;
  /** Whether, in this run, something outside the loop has woken a task or made one. */
  #fedFromOutside = false;
  /** Whether a task that is left may wait for one of another loop; that goes on in a later run. */
  #fedByLoop = false;
  /** The signals that may still abort something here, which is something to wait for, and what they abort. */
  readonly #signals = new Map<AbortSignal, Set<(reason: unknown) => void>>();
  /** Since when, on its clock, nothing that it knows of will wake it; null if something will. */
  #stuckSince: number | null = null;

  /**
   * Makes a loop; with no options, one that lives in the real world.
   *
   * @throws {TypeError} If one of `options` is not what it should be, or is left out and has no default, as neither `net.ts`
   * was imported nor {@linkcode setDefaultWorld} called.
   */
  constructor(options: LoopOptions = {}) {
    checkLoopOptions(options);
    this.selector = options.selector ?? defaultWorld().selector();
    this.#clock = options.clock ?? defaultWorld().clock;
    this.network = options.network ?? defaultWorld().network;
    this.#onError = options.onError ?? printError;
    this.#trace = options.trace;
  }

  // ---- Tasks ------------------------

  /**
   * Makes a task of `coro` and puts it in `ready`. May be called from anywhere, inside the loop or outside.
   *
   * @throws {TypeError} If `coro` is not a coroutine, or was given to be run before (a generator that was only stepped, by
   * hand or by `yield*`, looks like a new one), if `options.name` is not a string, or `options.scope` not a `CancelScope`.
   * @throws {Error} If `options.scope` is a scope of another loop, or its block has ended.
   */
  createTask<T>(coro: Coroutine<T>, options?: TaskOptions): Task<T> {
    if (options?.name !== undefined) checkName(options.name, coro);
    if (options?.scope) CancelScope._check(options.scope, this, coro);
    checkCoroutine(coro, "createTask");
    const task = new Task<T>(this, this.#nextId++, coro, options?.name, options?.scope ?? this.#root);
    task._locals = running?.currentTask?._locals ?? null;
    this.#live++;
    this.ready.append(task);
    this._noteOrigin();
    return task;
  }

  /** The task that is taking a step; null between steps. */
  get currentTask(): Task<any> | null {
    return this.#current;
  }

  /** Every task that has not ended. */
  get tasks(): Iterable<Task<any>> {
    return [...this.#root._walk()].filter((member) => member instanceof Task);
  }

  /** The time on the loop's clock, in milliseconds. */
  time(): number {
    return this.#clock.now();
  }

  // ---- Running ----------------------

  /**
   * Runs `main` to its end; then cancels every task that is left, waits until they have ended, and settles as `main`
   * did. When `options.signal` aborts, `main` is cancelled, with the signal's reason; `run` then rejects with the
   * `Cancelled`, unless `main` ends otherwise. (If `main` returns a task or a promise, it settles as that does; a task that
   * had not ended has been cancelled by then.)
   *
   * @throws What `main` throws; {@linkcode Cancelled} if it was cancelled.
   * @throws {TypeError} If `main` is not a coroutine, or was run before; or if `signal` is not an `AbortSignal`.
   * @throws {DeadlockError} If nothing can wake the tasks any more; not as long as `main` runs and `signal` may abort it.
   * @throws {Error} If the loop, or another with its selector, is running already, or it was stopped before `main` had ended.
   */
  async run<T>(main: Coroutine<T>, options: { signal?: AbortSignal | undefined } = {}): Promise<T> {
    const { signal } = options;
    hush(main);
    checkSignal("run", signal);
    if (!isGenerator(main)) throw noCoroutine("Cannot run", main, (right) => `run(${right})`);
    this.#begin();
    try {
      const task = this.createTask(main, { name: "main" });
      task._watchers++;
      await null; // By then, whoever holds a task outside the loop, say Promise.all, has asked for its outcome.
      this.#fedFromOutside = false;
      const unlisten = signal && this._listen(signal, (reason) => task.cancel(reason));
      let failure: unknown;
      try {
        await this.#turns(() => task.done);
      } catch (error) {
        failure = error;
        this._unwatch(task); // `run` rejects with this; an error of `main` is now one like any other.
        throw error;
      } finally {
        unlisten?.();
        if (!this.#stopped || task.done) await this.#shutDown(failure ?? task.error);
      }
      if (!task.done) {
        task._watchers--; // It may go on in a later run, and fail there.
        throw new Error(`Cannot finish ${task}: the loop was stopped first`);
      }
      if (task._throws) throw task._value;
      return task._value;
    } finally {
      this.#end();
    }
  }

  /**
   * Runs until `stop()` is called or the last task has ended.
   *
   * @throws {DeadlockError} If nothing can wake the tasks any more.
   * @throws {Error} If the loop, or another with its selector, is running already.
   */
  async runForever(): Promise<void> {
    this.#begin();
    try {
      await null; // as in `run`
      this.#fedFromOutside = false;
      await this.#turns(() => this.#live === 0);
    } finally {
      this.#end();
    }
  }

  /**
   * Makes `runForever` return after the turn under way, and `run` reject, unless its `main` has ended. Tasks stay as they
   * are; a later run goes on with them. Meanwhile a wait for a socket, a signal or a worker may keep the program going.
   * (Without effect, unlike asyncio's, if the loop does not run.)
   */
  stop(): void {
    this.#stopped = true;
    this.#wakeup();
  }

  #begin(): void {
    if (this.#running) throw new Error("Cannot run the loop: it is running already");
    if (IN_USE.has(this.selector)) {
      throw new Error("Cannot run the loop: another one that is running has the same selector");
    }
    this.#platformTurned = this.time();
    this.#running = true;
    IN_USE.add(this.selector);
    this.#stopped = false;
    this.#stuckSince = null;
  }

  #end(): void {
    this.#running = false;
    IN_USE.delete(this.selector);
    if (this.#live === 0) this.#fedByLoop = false;
    this.#reportFailed();
    this.selector.wakeup?.(); // With no select under way, it lets go of its timer.
  }

  /** Ends every task that is left. One that is born meanwhile is born cancelled. `failure` is what went wrong before. */
  async #shutDown(failure: unknown): Promise<void> {
    const root = this.#root;
    this.#quietly(() => root.cancel("the loop is shutting down"));
    try {
      while (this.#live > 0) {
        this.#stopped = false; // A stop() comes too late to leave anything as it is.
        await this.#turns(() => this.#live === 0);
      }
    } catch (error) {
      blame(error, failure);
      throw error;
    } finally {
      // If that failed, what is left stays cancelled and in the tree; a later run begins with a new root.
      this.#root = new CancelScope(this, null, null);
      this.#root._add(root);
      root._leave();
    }
  }

  /** Runs `act`; what it wakes does not count as fed from outside. */
  #quietly(act: () => void): void {
    const fedFromOutside = this.#fedFromOutside;
    act();
    this.#fedFromOutside = fedFromOutside;
  }

  // ---- The turn ---------------------

  /** The article's `while True`. */
  async #turns(finished: () => boolean): Promise<void> {
    while (!finished() && !this.#stopped) {
      const selected = this.#select();
      const events = Array.isArray(selected) ? selected : await selected;
      this.#asleep = false;
      if (this.#stuckSince !== null && events.length === 0) this.#checkDeadlock(this.#stuckSince);
      running = this;
      try {
        this.#turn(events);
      } finally {
        running = null;
        this.#current = null;
      }
      if (this.#failed.length > 0) await this.#reportSoon();
    }
  }

  /** One turn, in its three bands. */
  #turn(events: [SelectorKey, number][]): void {
    // -- I/O: tasks whose sockets are ready become ready
    // (By index: until it is compiled, `for (const [key] of events)` makes garbage of half a KiB for an idle connection.)
    for (let i = 0; i < events.length; i++) {
      const { fileobj, events: ready, data: task } = events[i][0];
      this.selector.unregister(fileobj, ready);
      if (!task?.op) continue; // It was cancelled while the select was under way.
      // (Its loop may be another that had this selector before, and was stopped.)
      if (fileobj.closed) task.loop._fail(task, new ClosedError(`Cannot go on with ${fileobj}: it was closed`));
      else task.loop._wake(task);
    }

    // -- Time: tasks that slept long enough become ready, scopes past their deadline are cancelled
    if (this._timers.length > 0) this.#fireTimers();

    // -- Tasks: each that was ready when the band began takes a step
    const due = this.ready.length;
    this.#steps += due;
    for (let i = 0; i < due; i++) this.#step(this.ready.popleft()!);
  }

  /** The article's `op, *args = self.current_task.send(None)`; what sends is `Task._step`. */
  #step(task: Task<any>): void {
    this.#current = task;
    let value: unknown;
    let done: boolean | undefined;
    try {
      ({ value, done } = task._step()); // In here, as a coroutine made by hand may give something else.
    } catch (error) {
      return this.#finish(task, error, true);
    }
    if (done) return this.#finish(task, value, false);
    try {
      this.#perform(task, value as Op);
    } catch (error) { // from a clock, or from an op that throws when it is looked at
      task._op = CHECKPOINT;
      this._fail(task, error);
    }
  }

  /** The article's `getattr(self, op)(*args)`. */
  #perform(task: Task<any>, op: Op): void {
    if (this.#trace) this.#tell(task, op);
    if (task._scope._timed) this.#expire(task._scope);
    const by = task._scope._cancelledBy; // `_scope` is read again: what an expiry calls may give the task one of its own.
    if (by) {
      hush(op);
      return task._swallows ? this.#giveUp(task) : this.#deliver(task, by);
    }
    if (op === CHECKPOINT) return this.ready.append(task); // what its handler does: this is the most frequent op
    const handler = Array.isArray(op) ? this.#ops.get(op[0]) : undefined;
    task._op = handler ? op : CHECKPOINT; // A mistake waits as a checkpoint does, so that it can be failed like any op.
    try {
      if (!handler) throw misuse(op, this.#ops);
      const began: unknown = op.length === 2 ? handler.start(task, op[1]) : handler.start(task, ...op.slice(1));
      if (began instanceof Promise) this.#heed(began, task);
    } catch (error) {
      if (!task._op) return this._report(error, task); // The wait was over already when its handler threw.
      this._fail(task, error);
    }
  }

  /** An op's `start` may be an async function. */
  #heed(began: Promise<unknown>, task: Task<any>): void {
    const wait = new PromiseWait(task);
    if (task._op) task._pending = wait;
    began.catch((error) => {
      const { task } = wait; // Not the parameter: a promise that stays must not hold the task.
      if (!task) return; // Its op was taken back.
      if (task._pending === wait) this._fail(task, error);
      else this._report(error, task);
    });
  }

  #finish(task: Task<any>, value: unknown, threw: boolean): void {
    this.#live--;
    if (task._end(value, threw)) this.#failed.push(task);
  }

  /** What is ready: now if there is something else to do, otherwise as soon as something is. */
  #select(): Promise<[SelectorKey, number][]> | [SelectorKey, number][] {
    if (this.ready.length > 0) this.#stuckSince = null;
    if (this.#steps >= this.#lookAt && this.#platformIsDue()) return this.selector.select(0);
    const timeout = this.ready.length > 0 ? 0 : this.#timeout();
    if (timeout === 0) return this.selector.poll ? this.selector.poll() : this.selector.select(0);
    this.#asleep = true;
    if (!this.selector.wakeup) {
      const roused = new Promise<[]>((resolve) => this.#rouse = () => resolve([]));
      return Promise.race([this.selector.select(timeout), roused]);
    }
    const selected = this.selector.select(timeout, true);
    if (!this.#asleep) this.selector.wakeup(); // As it was called it made a task ready, before it could be woken.
    return selected;
  }

  /** Something has become ready that the selector does not know of. */
  #wakeup(): void {
    if (!this.#asleep) return;
    this.#asleep = false;
    if (this.selector.wakeup) this.selector.wakeup();
    else this.#rouse?.();
  }

  /**
   * Whether the platform has to turn before tasks go on: after many steps, or after a few long ones. The clock, which costs
   * more than a step, is read soon after a turn of the platform, then less and less often.
   */
  #platformIsDue(): boolean {
    const now = this.time();
    const due = this.#steps >= STEPS_PER_PLATFORM_TURN || now - this.#platformTurned >= TIME_PER_PLATFORM_TURN;
    if (due) {
      this.#steps = 0;
      this.#platformTurned = now;
    }
    this.#lookAt = Math.max(1, this.#steps + Math.min(this.#steps, 32));
    return due;
  }

  /**
   * How long to sleep, in milliseconds; undefined for as long as it takes. If all tasks wait for each other, the grace
   * begins here.
   */
  #timeout(): number | undefined {
    const next = this._timers.first;
    if (next) return Math.max(0, next.time - this.time());
    if (!this.#stuck) return undefined;
    const now = this.time();
    return Math.max(0, (this.#stuckSince ??= now) + DEADLOCK_GRACE - now);
  }

  /** Whether every task waits for another, and nobody outside was ever seen to wake one, nor can abort them. */
  get #stuck(): boolean {
    return this._parked === this.#live && this._timers.length === 0 && this.#signals.size === 0 &&
      !this.#fedFromOutside && !this.#fedByLoop;
  }

  /** Nothing came: throws if the grace is over, or if the clock stands still. (Selectors may return early.) */
  #checkDeadlock(since: number): void {
    if (!this.#stuck || this.#stopped) return;
    const now = this.time();
    // As in `#timeout`: `now - since` may round to less than the grace when no time to sleep is left.
    if (now >= since + DEADLOCK_GRACE || now === since) throw new DeadlockError([...this.tasks]);
  }

  /** A deadline that passed since the time band counts at the op. If the first timer is not due yet, none did. */
  #expire(scope: CancelScope): void {
    const first = this._timers.first;
    if (!first) return; // No deadline is left, and the clock need not be read.
    const now = this.time();
    if (first.time <= now) scope._expire(now);
  }

  #fireTimers(): void {
    const now = this.time();
    for (let timer = this._timers.first; timer && timer.time <= now; timer = this._timers.first) {
      this._timers.remove(timer);
      if (timer.target instanceof Task) this._wake(timer.target);
      else timer.target._expire(now);
    }
  }

  // ---- Ops --------------------------

  /**
   * Teaches this loop a new op. The loop trusts that something outside will end a wait on it, so there is no
   * {@linkcode DeadlockError} while one lasts. To let tasks wait for each other, build on `park` instead.
   *
   * @throws {TypeError} If it knows the op already, or `handler` lacks `start` or `cancel`.
   *
   * @example
   * ```ts
   * import { type Coroutine, Loop, type Task } from "@yieldloop/yieldloop";
   * import { assertEquals } from "@std/assert";
   *
   * const loop = new Loop();
   * const timers = new WeakMap<Task, ReturnType<typeof setTimeout>>();
   * loop.addOp("after", {
   *   start: (task, ms: number, value: unknown) => {
   *     timers.set(task, setTimeout(() => loop.wake(task, value), ms));
   *   },
   *   cancel: (task) => clearTimeout(timers.get(task)), // or it would end another wait later
   * });
   *
   * function* after<T>(ms: number, value: T): Coroutine<T> {
   *   return yield ["after", ms, value];
   * }
   * assertEquals(await loop.run(after(1, "done")), "done");
   * ```
   */
  addOp<Args extends readonly any[]>(
    name: string,
    handler: Pick<OpHandler<Args>, "start"> & {
      // Not plain `Args`, which would be inferred from this too, and `cancel` may leave some out.
      cancel(task: Task<any>, ...args: Args extends infer A extends readonly any[] ? A : never): void;
    },
  ): void;
  /** Teaches this loop a new op, by a handler whose type is known. */
  addOp<Args extends readonly any[]>(name: string, handler: OpHandler<Args>): void;
  addOp(name: string, handler: OpHandler): void {
    if (typeof name !== "string") throw new TypeError(`Cannot add op ${kind(name)}: its name must be a string`);
    if (typeof handler?.start !== "function" || typeof handler.cancel !== "function") {
      throw new TypeError(`Cannot add op "${name}": its handler needs the functions start and cancel`);
    }
    if (this.#ops.has(name)) throw new TypeError(`Cannot add op "${name}": this loop knows it already`);
    this.#ops.set(name, handler);
  }

  /**
   * Ends the wait of `task`: its `yield` returns `value`. For the handlers of ops that were added.
   *
   * @throws {Error} If the task does not wait, is another loop's, or waits for an op of the kernel's.
   */
  wake(task: Task<any>, value?: unknown): void {
    this.#checkWait(task);
    this._wake(task, value);
  }

  /**
   * Ends the wait of `task`: its `yield` throws `error`. For the handlers of ops that were added.
   *
   * @throws {Error} If the task does not wait, is another loop's, or waits for an op of the kernel's.
   */
  fail(task: Task<any>, error: unknown): void {
    this.#checkWait(task);
    this._fail(task, error);
  }

  /** A handler that did not take its op back, and wakes the task late, must not end another wait. */
  #checkWait(task: Task<any>): void {
    if (task.loop !== this) throw new Error(`Cannot wake ${task}: it is a task of another loop`);
    const name = task._op?.[0];
    if (name !== undefined && KERNEL_OPS.has(name)) {
      throw new Error(`Cannot wake ${task}: it waits for ${name}, which ends by itself`);
    }
  }

  /** @ignore `wake`, for the kernel's own ops. */
  _wake(task: Task<any>, value?: unknown): void {
    this.#resume(task);
    task._value = value;
  }

  /** @ignore `fail`, for the kernel's own ops. */
  _fail(task: Task<any>, error: unknown): void {
    this.#resume(task);
    task._value = error;
    task._throws = true;
  }

  #resume(task: Task<any>): void {
    if (task._op === null) throw new Error(`Cannot wake ${task}: it does not wait for an op`);
    this.#schedule(task);
  }

  #schedule(task: Task<any>): void {
    task._op = task._pending = null;
    this.ready.append(task);
    if (this.#asleep) this.#wakeup();
  }

  /**
   * @ignore A task was made, unparked or interrupted, or a deadline set. If that was done outside the loop, there is
   * something out there that feeds it; and it may have to wake up.
   */
  _noteOrigin(): void {
    if (running === this) return;
    this.#fedFromOutside = true;
    this.#wakeup();
  }

  /** @ignore A task of this loop waits for one of `other`: what wakes it comes from outside. */
  _noteWait(other: Loop): void {
    if (other !== this) this.#fedByLoop = true;
  }

  /**
   * @ignore Interrupts those of `tasks` that are cancelled. To take back some ops calls the program. So the others leave what
   * they wait for first: nothing that the program does then may go to them. And as it may cancel more, these ops come one
   * after the other: a chain of calls within calls would overflow the stack.
   */
  _interrupt(tasks: Task<any>[]): void {
    const later = this.#interrupting ?? [];
    for (const task of tasks) {
      if (task._op && callsProgram(task._op)) later.push(task);
      else this.#takeBack(task);
    }
    if (this.#interrupting) return;
    this.#interrupting = later;
    try {
      for (const task of later) this.#takeBack(task);
    } finally {
      this.#interrupting = null;
    }
  }

  /** If `task` is cancelled, takes back the op that it waits on, and makes it ready to be thrown `Cancelled`. */
  #takeBack(task: Task<any>): void {
    const by = task._scope._cancelledBy;
    const op = task._op;
    if (!by || !op) return; // With no op it is about to take a step, and hears of it at the next one.
    task._op = null; // Whoever wakes it from here on is told that it does not wait.
    if (task._pending instanceof PromiseWait) task._pending.task = null;
    this._noteOrigin();
    callHook(() => this.#ops.get(op[0])!.cancel(task, ...op.slice(1)), (error) => this._report(error, task));
    this.#deliver(task, by);
  }

  #deliver(task: Task<any>, by: CancelScope): void {
    task._interruptedBy = by;
    this.#schedule(task);
  }

  #giveUp(task: Task<any>): void {
    const error = new Error(
      `Cannot cancel ${task}: it caught Cancelled ${SWALLOWED_MAX} times and went on; the loop has given it up`,
    );
    task._reported = true;
    this._report(error, task);
    task._close();
    this.#finish(task, error, true);
  }

  // ---- Socket operations: the article's, and those for datagrams ----
  // Each waits until the socket is ready, and tries. If somebody else was quicker, it waits again. (Written out each time:
  // a shared helper would be one more generator for every connection that waits.)

  /**
   * Waits for a connection on `listener` and takes it, with the address of its client. The platform's errors are thrown as
   * they are: too many open files, say. A server that should survive these uses `serve`.
   *
   * @throws {TypeError} If `listener` is not a listener.
   * @throws {BusyError} If another task already waits to accept from `listener`.
   * @throws {ClosedError} If `listener` is closed, or gets closed meanwhile.
   */
  *sockAccept<S extends SocketLike, A extends Addr>(listener: ListenerLike<S, A>): Coroutine<[S, A]> {
    if (typeof listener?.accept !== "function") {
      hush(listener); // Perhaps the promise of one.
      throw new TypeError(`Cannot accept from ${kind(listener)}: it is not a listener`);
    }
    for (;;) {
      yield ["read_wait", listener];
      try {
        return listener.accept();
      } catch (error) {
        waitOn(error);
      }
    }
  }

  /**
   * Waits for bytes from `sock` and takes at most `maxBytes` of them; an empty array at end of stream. They are yours, but
   * may be a view into a larger buffer: `slice()` them to keep only a few, or to transfer them.
   *
   * @throws {TypeError} If `sock` is not a socket to receive from.
   * @throws {RangeError} If `maxBytes` is not a whole number from 1 up.
   * @throws {BusyError} If another task already waits to read `sock`.
   * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
   * @throws What the platform says of a connection that has failed: `ConnectionReset`, for one.
   */
  *sockRecv<B extends Uint8Array>(sock: SocketLike<B>, maxBytes: number): Coroutine<B> {
    if (typeof sock?.recv !== "function") throw noSocket("recv", sock);
    checkCount("recv", maxBytes, 1);
    for (;;) {
      yield ["read_wait", sock];
      try {
        return sock.recv(maxBytes);
      } catch (error) {
        waitOn(error);
      }
    }
  }

  /**
   * Waits for bytes from `sock`, moves them into `buffer`, and returns how many; 0 at end of stream. For messages of a few
   * kilobytes it is cheaper than `sockRecv`, which returns memory that is never read into again.
   *
   * @throws {TypeError} If `sock` is not a socket to receive from, or `buffer` not a `Uint8Array`, or empty.
   * @throws {BusyError} If another task already waits to read `sock`.
   * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
   * @throws What the platform says of a connection that has failed, as {@linkcode sockRecv} does.
   */
  *sockRecvInto(sock: SocketLike, buffer: Uint8Array): Coroutine<number> {
    if (typeof sock?.recvInto !== "function") throw noSocket("recvInto", sock);
    checkBuffer(buffer);
    for (;;) {
      yield ["read_wait", sock];
      try {
        return sock.recvInto(buffer);
      } catch (error) {
        waitOn(error);
      }
    }
  }

  /**
   * Sends all of `data`. When it returns the bytes have been handed over, and `data` may be changed. If it is
   * cancelled, the error's `bytesSent` says how many were.
   *
   * @throws {TypeError} If `sock` is not a socket, `data` is not a `Uint8Array`, or its buffer is transferred or resized
   * meanwhile.
   * @throws {BusyError} If another task is still sending on `sock`, as their bytes would mix, or waits to write it.
   * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
   * @throws What the platform says of a connection that takes nothing any more: `BrokenPipe` or `ConnectionReset`.
   */
  *sockSendall(sock: SocketLike, data: Uint8Array): Coroutine<void> {
    checkBytes("send", data);
    if (typeof sock?.send !== "function") throw noSocket("send", sock);
    const { length } = data;
    let sent = 0;
    beginSending(sock);
    try {
      do {
        yield ["write_wait", sock];
        checkKept(data, length);
        try {
          sent += sock.send(sent === 0 ? data : data.subarray(sent));
        } catch (error) {
          waitOn(error);
        }
      } while (sent < length);
    } catch (error) {
      if (error instanceof Cancelled) error.bytesSent = sent;
      throw error;
    } finally {
      sock.sending = false;
    }
  }

  /**
   * Waits for a datagram on `sock` and returns at most `maxBytes` of it (the rest is lost), and its sender's address.
   *
   * @throws {TypeError} If `sock` is not a datagram socket.
   * @throws {RangeError} If `maxBytes` is not a whole number from 1 up.
   * @throws {BusyError} If another task already waits to read `sock`.
   * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
   */
  *sockRecvfrom<A extends Addr>(sock: DatagramLike<A>, maxBytes: number): Coroutine<[Uint8Array, A]> {
    if (typeof sock?.recvfrom !== "function") throw noSocket("recvfrom", sock);
    checkCount("recv", maxBytes, 1);
    for (;;) {
      yield ["read_wait", sock];
      try {
        return sock.recvfrom(maxBytes);
      } catch (error) {
        waitOn(error);
      }
    }
  }

  /**
   * Sends `data` as one datagram to `addr`, waits until it has left, and returns how many bytes that were. If it is
   * cancelled, the error's `bytesSent` says whether it was handed over.
   *
   * @throws {TypeError} If `sock` is not a datagram socket, `data` is not a `Uint8Array`, or its buffer is transferred or
   * resized meanwhile.
   * @throws {BusyError} If another task is still sending on `sock`, or waits to write it.
   * @throws {ClosedError} If `sock` is closed, or gets closed meanwhile.
   * @throws What {@linkcode DatagramLike.sendto} throws: in `net.ts`, what is wrong with `addr`, or the platform's errors.
   */
  *sockSendto(sock: DatagramLike, data: Uint8Array, addr: Addr): Coroutine<number> {
    checkBytes("send", data);
    if (typeof sock?.sendto !== "function") throw noSocket("sendto", sock);
    const { length } = data;
    let sent: number | undefined;
    beginSending(sock);
    try {
      for (;;) {
        yield ["write_wait", sock];
        try {
          if (sent !== undefined) return sock.sent();
          checkKept(data, length);
          sent = sock.sendto(data, addr);
        } catch (error) {
          waitOn(error);
        }
      }
    } catch (error) {
      if (error instanceof Cancelled) error.bytesSent = sent ?? 0;
      throw error;
    } finally {
      sock.sending = false;
    }
  }

  // ---- Abort signals ----------------

  /** @ignore Calls `abort` when `signal` aborts, at once if it has. Returns what stops that. */
  _listen(signal: AbortSignal, abort: (reason: unknown) => void): () => void {
    if (signal.aborted) {
      abort(signal.reason);
      return () => {};
    }
    // One listener for all: to take one of many off a signal takes the platform as long as there are many.
    const aborts = this.#signals.get(signal) ?? new Set();
    if (aborts.size === 0) {
      this.#signals.set(signal, aborts);
      signal.addEventListener("abort", this.#onAbort);
    }
    aborts.add(abort);
    return () => {
      if (aborts.delete(abort) && aborts.size === 0) this.#unlisten(signal);
    };
  }

  #unlisten(signal: AbortSignal): void {
    if (this.#signals.delete(signal)) signal.removeEventListener("abort", this.#onAbort);
  }

  readonly #onAbort = ({ target }: { target: EventTarget | null }) => {
    const signal = target as AbortSignal;
    const aborts = this.#signals.get(signal)!;
    this.#unlisten(signal);
    for (const abort of aborts) this.#quietly(() => abort(signal.reason));
    this.#wakeup(); // With a signal less, those that wait on in a shield may be in a deadlock.
  };

  // ---- Reports ----------------------

  #tell(task: Task<any>, op: Op): void {
    callHook(() => {
      const [name, ...args] = Array.isArray(op) ? op as unknown as Op : [kind(op)];
      return this.#trace!({ task, op: name, args, time: this.time() });
    }, (error) => this._report(error, task));
  }

  /** @ignore Somebody does not wait for the outcome of `task` after all. */
  _unwatch(task: Task<any>): void {
    task._watchers--;
    if (task.error !== undefined) this.#failed.push(task);
    if (!this.#running) this.#reportFailed(); // No turn will do it.
  }

  /** After the turn: only then has async code asked for a task's outcome, as in `until(Promise.all([task]))`. */
  async #reportSoon(): Promise<void> {
    await null;
    running = this;
    try {
      this.#reportFailed();
    } finally {
      running = null;
    }
  }

  #reportFailed(): void {
    const failed = this.#failed;
    this.#failed = [];
    for (const task of failed) {
      if (task._watchers > 0 || task._reported) continue;
      task._reported = true;
      this.#current = task; // So that the hook sees its task locals.
      this._report(task._value, task);
    }
    this.#current = null;
  }

  /** @ignore */
  _report(error: unknown, task: Task<any>): void {
    callHook(() => this.#onError(error, task), (hookError) => {
      printError(error, task);
      printError(hookError, null);
    });
  }
}

/** @ignore Calls a hook of the program's, which may be async: `failed` is told what it throws or rejects with. */
export function callHook(hook: () => unknown, failed: (error: unknown) => void): void {
  try {
    const told = hook();
    if (told instanceof Promise) told.catch(failed);
  } catch (error) {
    failed(error);
  }
}

function printError(error: unknown, task: Task<any> | null): void {
  const where = task ? `Error in ${task}:` : "Error in a hook:";
  try {
    console.error(where, error);
  } catch {
    console.error(where, "it cannot be printed");
  }
}

// -------------------------------------
// The kernel's own ops
// -------------------------------------

const KERNEL_OPS: ReadonlyMap<string, OpHandler> = new Map<string, OpHandler>([
  ["read_wait", {
    start: (task, sock: Selectable) => void task.loop.selector.register(sock, EVENT_READ, task),
    cancel: (task, sock: Selectable) => task.loop.selector.unregister(sock, EVENT_READ),
  }],
  ["write_wait", {
    start(task, sock: Selectable) {
      // Nearly always a socket takes bytes at once. Then there is nothing to watch, and the turn needs no poll to see it.
      const { loop } = task;
      if (loop.selector.isReady?.(sock, EVENT_WRITE)) loop._wake(task);
      else loop.selector.register(sock, EVENT_WRITE, task);
    },
    cancel: (task, sock: Selectable) => task.loop.selector.unregister(sock, EVENT_WRITE),
  }],
  ["sleep", {
    start(task, ms: number) {
      checkDuration("sleep", ms);
      task._pending = task.loop._timers.add(task.loop.time() + ms, task);
    },
    cancel: (task) => task.loop._timers.remove(task._pending as Timer),
  }],
  ["checkpoint", {
    start: (task) => task.loop._wake(task),
    cancel: () => {},
  }],
  ["call", {
    start(task, coro: Coroutine<any>) {
      checkCoroutine(coro, "call");
      task._call(coro);
      task.loop._wake(task);
    },
    cancel: () => {},
  }],
  ["park", {
    start(task, lot: ParkingLot<any>) {
      if (!(lot instanceof ParkingLot)) throw new TypeError(`Cannot park in ${kind(lot)}: it is not a ParkingLot`);
      lot._add(task);
    },
    cancel: (task, lot: ParkingLot<any>) => lot._remove(task),
  }],
  ["until", {
    start(task, source: PromiseLike<unknown> | ((signal: AbortSignal) => PromiseLike<unknown>)) {
      const controller = new AbortController();
      const wait = task._pending = new PromiseWait(task, controller);
      const promise = typeof source === "function" ? source(controller.signal) : source;
      if (typeof promise?.then !== "function") {
        throw new TypeError(`Cannot wait until ${kind(promise)}: it is not a promise`);
      }
      if (promise instanceof Task) {
        if (task._pending === wait) untilEnded(task, promise, controller.signal);
        return; // otherwise `source` has cancelled the task
      }
      Promise.resolve(promise).then(
        (value) => endPromiseWait(wait, value, false),
        (error) => endPromiseWait(wait, error, true),
      );
    },
    cancel(task) {
      const wait = task._pending as PromiseWait;
      const controller = wait.controller!;
      wait.controller = null;
      controller.abort(task._scope._cancelledBy?._error());
    },
  }],
]);

/** Whether to take `op` back calls the program: that of `until` aborts a signal, one that was added is not the kernel's. */
function callsProgram(op: Op): boolean {
  return op[0] === "until" || !KERNEL_OPS.has(op[0]);
}

/**
 * A wait that a promise may end: that of `until`, or of an async start. (Its op does not tell it from others, as ops can be
 * yielded again.) The promise may live for ever, and this with it: so once the op is taken back it holds nothing, and what
 * becomes of the promise is ignored.
 */
class PromiseWait {
  constructor(public task: Task<any> | null, public controller: AbortController | null = null) {}
}

function endPromiseWait(wait: PromiseWait, value: unknown, threw: boolean): void {
  const { task } = wait;
  if (task?._pending !== wait) return; // The result is late.
  if (threw) task.loop._fail(task, value);
  else task.loop._wake(task, value);
}

/** `until` of a task. The task must know at once that somebody takes its outcome; and, once `signal` aborts, does not. */
function untilEnded(task: Task<any>, other: Task<any>, signal: AbortSignal): void {
  const { loop } = task;
  if (other === task) throw waitsForItself(task);
  const ended = () => {
    loop._parked--;
    try {
      loop._wake(task, other.result());
    } catch (error) {
      loop._fail(task, error);
    }
  };
  loop._noteWait(other.loop);
  loop._parked++; // As in a lot: nobody but another task can end this wait.
  signal.addEventListener("abort", () => {
    loop._parked--;
    other.removeDoneCallback(ended);
  });
  other.addDoneCallback(ended);
}

// -------------------------------------
// Tasks
// -------------------------------------

/** What most tasks have for callers: none. Shared, and never pushed to. */
const NO_CALLERS: Coroutine<any>[] = [];

/** Options of {@linkcode Loop.createTask}. */
export interface TaskOptions {
  /** The task's name in messages and traces. Default: `Task-` and its id. */
  name?: string | undefined;
  /**
   * The scope the task lives in, and is cancelled with. Default: the loop's own, which `run` cancels when it ends. A task
   * that outlives the block of its scope is left to the scopes around it, and to a late `cancel()` of its own.
   */
  scope?: CancelScope | undefined;
}

/** A coroutine that a loop is running. */
export class Task<T = any> implements PromiseLike<T> {
  /** A number no other task of the loop has. */
  readonly id: number;
  /** The loop that runs it. */
  readonly loop: Loop;
  readonly #name: string | undefined;

  // With a coroutine and an op it waits; with a coroutine alone it is in `ready`, or taking a step; with neither it is done.
  /** @ignore The coroutine; null once it has ended. */
  _coro: Coroutine<T> | null;
  /** @ignore What it waits for. */
  _op: Op | null = null;
  /** @ignore What its next step is given, or thrown; when it has ended, its value or error. */
  _value: any = undefined;
  /** @ignore Whether `_value` is thrown. */
  _throws = false;
  /** @ignore The scope that interrupted the op it waited on. */
  _interruptedBy: CancelScope | null = null;
  /** @ignore The innermost scope it is in. */
  _scope: CancelScope;
  /** @ignore The scope that holds it (it was born there, or it is its own), and its neighbours there. */
  _parent!: CancelScope;
  /** @ignore */
  _before: Member | null = null;
  /** @ignore */
  _after: Member | null = null;
  /** @ignore Its neighbours in the `ParkingLot` it waits in. */
  _aheadInLot: Task<any> | null = null;
  /** @ignore */
  _behindInLot: Task<any> | null = null;
  /** @ignore What its op needs to be taken back: a timer, a wait for a promise, an async start. */
  _pending: Timer | PromiseWait | null = null;
  /** @ignore Task locals, shared with the parent until one of them sets one. */
  _locals: ReadonlyMap<unknown, unknown> | null = null;
  /** @ignore How many are there to take its outcome. */
  _watchers = 0;
  /** @ignore Whether `onError` was told of its error. */
  _reported = false;

  /** The coroutines that wait for one they have called, the outermost first. */
  #callers: Coroutine<any>[] = NO_CALLERS;
  /** What it was last thrown on behalf of a scope that it cannot leave. */
  #lastCancelled: Cancelled | null = null;
  /** How often each of the scopes it is in has thrown it a `Cancelled`. */
  #thrown: Map<CancelScope, number> | null = null;
  /** A scope around this task alone, made by the first `cancel()`. */
  #own: CancelScope | null = null;
  #cancelled = false;
  #joiners: ParkingLot | null = null;
  #callbacks: (((task: Task<any>) => void) | null)[] | null = null;
  #promise: Promise<T> | null = null;

  /** @ignore Made by {@linkcode Loop.createTask}. */
  constructor(loop: Loop, id: number, coro: Coroutine<T>, name: string | undefined, scope: CancelScope) {
    this.loop = loop;
    this.id = id;
    this._coro = coro;
    this.#name = name;
    this._scope = scope;
    scope._add(this);
  }

  /** Its name. */
  get name(): string {
    return this.#name ?? `Task-${this.id}`;
  }
  /** Whether it has ended, whichever way. */
  get done(): boolean {
    return this._coro === null;
  }
  /** Whether it has ended by being cancelled. */
  get cancelled(): boolean {
    return this.#cancelled;
  }
  /** What it waits for now; null if it is ready, running or done. */
  get op(): Op | null {
    return this._op;
  }

  /** What it failed with; undefined if it has not ended, ended with a value, or was cancelled. */
  get error(): unknown {
    return this.done && this._throws && !this.#cancelled ? this._value : undefined;
  }

  /**
   * The value it has ended with.
   *
   * @throws Its error, the very object; {@linkcode TaskError} if it was cancelled or has not ended, or if its error is the
   * `Cancelled` of something else, say of another loop.
   */
  result(): T {
    if (!this.done) throw new TaskError(`Cannot tell the result of ${this}: it has not ended`);
    if (!this._throws) return this._value;
    if (!isCancelled(this._value)) throw this._value; // A bare `Cancelled` would look like the joiner's own.
    const why = this.#cancelled ? "it was cancelled" : "it failed with a Cancelled of something else";
    throw new TaskError(`Cannot join ${this}: ${why}`, { cause: this._value });
  }

  /**
   * Waits for the task to end and returns its value.
   *
   * @throws Its error, the very object; {@linkcode TaskError} with the `Cancelled` as `cause` if it was cancelled, or has
   * failed with that of something else.
   * @throws {Error} If it is the task itself that would wait.
   */
  join(): Coroutine<T> {
    return new Join(this) as unknown as Coroutine<T>;
  }

  /**
   * Waits until the task has ended, whichever way, its cleanup included.
   *
   * @throws {Error} If it is the task itself that would wait.
   */
  *wait(): Coroutine<void> {
    yield* ask(this._waitOp()); // asked for when the wait begins: the task may end before
  }

  /** @ignore The op that waits for its end. */
  _waitOp(): Op {
    if (this.done) return CHECKPOINT;
    if (this === running?.currentTask) throw waitsForItself(this);
    running?._noteWait(this.loop);
    return ["park", this.#joiners ??= new ParkingLot(this)];
  }

  /**
   * Asks the task to end: `Cancelled` is thrown at the op it waits on, or at its next one, and the task cleans up. (So one
   * that has not begun runs to its first op.) No effect on one that has ended; the first reason wins.
   */
  cancel(reason?: unknown): void {
    if (!this.done) (this.#own ??= this.#enclose()).cancel(reason);
  }

  /**
   * Makes a scope around the task, and around the blocks it is in, within the scope it was born in: of
   * `born > block > block`, the last of which it is in, it makes `born > own > block > block`.
   */
  #enclose(): CancelScope {
    const outer = this._parent;
    const own = new CancelScope(this.loop, null, outer);
    let outermost = this._scope; // of the blocks it is in; `outer` itself if it is in none
    while (outermost !== outer && outermost._parent !== outer) outermost = outermost._parent!;
    if (outermost === outer) this._scope = own;
    else own._adopt(outermost);
    own._adopt(this);
    return own;
  }

  /**
   * Calls `callback` when the task has ended; at once if it has. The caller takes charge of its error. What the callback
   * throws goes to `onError` (to the caller, if it is called at once); it must not be async. (A callback that starts another
   * in its place must look at `cancelled` first: while a run ends that one is cancelled too and starts the next, and the run
   * never ends.)
   *
   * @throws {TypeError} If `callback` is not a function.
   */
  addDoneCallback(callback: (task: Task<T>) => void): void {
    if (typeof callback !== "function") throw new TypeError(`Cannot call back ${kind(callback)}: it is not a function`);
    this._watchers++;
    if (this.done) callback(this);
    else if (this.#callbacks) this.#callbacks.push(callback);
    else this.#callbacks = [callback]; // Mostly there is one, and the first push() would make room for seventeen.
  }

  /** Takes `callback` back if it has not been called yet, and with it the charge of the task's error. */
  removeDoneCallback(callback: (task: Task<T>) => void): void {
    const callbacks = this.#callbacks ?? [];
    const i = callbacks.indexOf(callback);
    if (i < 0) return;
    if (i === 0) callbacks.shift(); // So it is where many are cancelled in turn; cheaper than to move all others.
    else callbacks.splice(i, 1);
    this.loop._unwatch(this);
  }

  /** Makes the task awaitable from async code: `await task` is what `yield* task.join()` is inside the loop. */
  then<A = T, B = never>(
    onfulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    onrejected?: ((reason: any) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#promise ??= new Promise((resolve, reject) => {
      this.addDoneCallback(() => {
        try {
          resolve(this.result());
        } catch (error) {
          reject(error);
        }
      });
    });
    return this.#promise.then(onfulfilled, onrejected);
  }

  /** The task in words: `task 3 "main"`. */
  toString(): string {
    return this.#name === undefined ? `task ${this.id}` : `task ${this.id} "${this.#name}"`;
  }

  /** What `console.log` shows of it, and of a trace or an error that holds it: the same words, not its whole loop. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.toString();
  }

  /** What `JSON.stringify` makes of it, and of a trace that holds it: the same words. */
  toJSON(): string {
    return this.toString();
  }

  /** @ignore Runs the coroutine to its next op. */
  _step(): IteratorResult<Op, T> {
    const throws = this._throws || this._interruptedBy !== null;
    const value = this._interruptedBy ? this.#cancellation() : this._value;
    this._throws = false;
    this._value = undefined;
    if (this.#callers.length > 0) return this.#stepCalled(throws, value);
    return throws ? this._coro!.throw(value) : this._coro!.next(value);
  }

  /** @ignore Puts `coro` on top of the coroutine that calls it: the next step is its first. */
  _call(coro: Coroutine<any>): void {
    if (this.#callers === NO_CALLERS) this.#callers = [];
    this.#callers.push(this._coro!);
    this._coro = coro;
  }

  /**
   * @ignore Ends its coroutines by force: their `finally` and `using` let go of what they hold. Nobody waits for what they
   * still yield, or hears what they throw.
   */
  _close(): void {
    for (let coro: Coroutine<any> | undefined = this._coro!; coro; coro = this.#callers.pop()) {
      try {
        for (let n = 0, step; n < SWALLOWED_MAX && !(step = coro.return(undefined)).done; n++) hush(step.value);
      } catch {
        // The task was given up; that is what is reported.
      }
    }
  }

  /** One step of a coroutine that was called: when it ends, its caller goes on with what it returned or threw. */
  #stepCalled(throws: boolean, value: any): IteratorResult<Op, T> {
    for (;;) {
      try {
        const result = throws ? this._coro!.throw(value) : this._coro!.next(value);
        if (!result.done || this.#callers.length === 0) return result;
        throws = false;
        value = result.value;
      } catch (error) {
        if (this.#callers.length === 0) throw error;
        throws = true;
        value = error;
      }
      this._coro = this.#callers.pop()!;
    }
  }

  /** The `Cancelled` that is due. Decided this late, so that of two deadlines that pass at once the outer one wins. */
  #cancellation(): Cancelled {
    const by = this._scope._cancelledBy ?? this._interruptedBy!;
    this._interruptedBy = null;
    this.#count(by);
    const error = by._error();
    if (by === this._parent._cancelledBy) this.#lastCancelled = error;
    return error;
  }

  /** Counted per scope: timeouts in between, in a shield, must not hide a task that never stops. */
  #count(by: CancelScope): void {
    const thrown = this.#thrown ??= new Map();
    for (const scope of thrown.keys()) if (scope !== by && !scope._holds(this)) thrown.delete(scope);
    thrown.set(by, (thrown.get(by) ?? 0) + 1);
  }

  /** @ignore Whether `scope` has thrown it a `Cancelled` in its block. */
  _wasThrownBy(scope: CancelScope): boolean {
    return this.#thrown?.has(scope) ?? false;
  }

  /** @ignore Whether it has caught `Cancelled` too often. */
  get _swallows(): boolean {
    return this.#thrown !== null && (this.#thrown.get(this._scope._cancelledBy!) ?? 0) >= SWALLOWED_MAX;
  }

  /** @ignore Ends it, with a value or an error. Returns whether it has failed. */
  _end(value: unknown, threw: boolean): boolean {
    if (threw && value === undefined) value = new TaskError(`Cannot tell why ${this} failed: it threw undefined`);
    if (threw && this._parent._cancelledBy) blame(value, this.#lastCancelled);
    this._coro = null;
    this._value = value;
    this._throws = threw;
    // A `Cancelled` from elsewhere, say from another loop, is an error like any other.
    this.#cancelled = threw && this._parent._owns(value);
    // Its blocks have been left by now, unless it was given up, or a coroutine was stepped by hand and dropped.
    for (let scope = this._scope; scope !== this._parent; scope = scope._parent!) scope._leave();
    this._parent._remove(this);
    this.#own?._leave();
    this.#joiners?.unparkAll();
    if (this.#callbacks) this.#callBack(this.#callbacks);
    this.#callbacks = this.#joiners = null;
    this.#lastCancelled = this.#thrown = null;
    return threw && !this.#cancelled;
  }

  #callBack(callbacks: (((task: Task<any>) => void) | null)[]): void {
    for (let i = 0; i < callbacks.length; i++) {
      const callback = callbacks[i];
      callbacks[i] = null; // It cannot be taken back any more.
      try {
        callback?.(this);
      } catch (error) {
        this.loop._report(error, this);
      }
    }
  }
}

/**
 * The coroutine of {@linkcode Task.join}: it counts as a watcher, waits for the end, returns the result. Written out, as
 * {@linkcode SingleOp} is: that saves a tenth of what spawn and join cost.
 */
class Join<T> {
  /** Null once this coroutine has ended. */
  #task: Task<T> | null;
  #waits = false;

  constructor(task: Task<T>) {
    this.#task = task;
  }

  next(): IteratorResult<Op, T | undefined> {
    const task = this.#task;
    if (task === null) return { value: undefined, done: true };
    if (!this.#waits) {
      const op = task._waitOp();
      this.#waits = true;
      task._watchers++;
      return { value: op, done: false };
    }
    this.#task = null;
    return { value: task.result(), done: true };
  }

  return(value?: T): IteratorResult<Op, T | undefined> {
    this.#unwatch();
    return { value, done: true };
  }

  throw(error: unknown): never {
    this.#unwatch();
    throw error;
  }

  /** The joiner did not wait to the end; somebody else has to hear of the task's error. */
  #unwatch(): void {
    const task = this.#task;
    this.#task = null;
    if (task && this.#waits) task.loop._unwatch(task);
  }

  [Symbol.iterator](): this {
    return this;
  }

  get [Symbol.toStringTag](): string {
    return "Generator";
  }
}

/**
 * A variable that has a value of its own in each task; a new task begins with the value of the one that created it. Make
 * it once, at the top level: a task keeps a value for each that it has set. After Python's `ContextVar`.
 *
 * @example
 * ```ts
 * import { Loop, TaskLocal } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const user = new TaskLocal("nobody");
 * const loop = new Loop();
 * function* child() {
 *   return user.get();
 * }
 * function* main() {
 *   user.set("ann");
 *   return yield* loop.createTask(child()).join();
 * }
 * assertEquals(await loop.run(main()), "ann");
 * ```
 */
export class TaskLocal<T> {
  readonly #initial: T;

  /** Makes a variable that has the value `initial` where no other was set. */
  constructor(initial: T) {
    this.#initial = initial;
  }

  /** The current task's value; the initial one outside of tasks. */
  get(): T {
    const locals = running?.currentTask?._locals;
    return locals?.has(this) ? locals.get(this) as T : this.#initial;
  }

  /**
   * Sets the value for the current task and the tasks it creates from now on. (What a coroutine sets that is run by `yield*`
   * stays set for its caller: they are the same task.)
   *
   * @throws {Error} If no task is running here.
   */
  set(value: T): void {
    const task = currentTask();
    task._locals = new Map(task._locals).set(this, value);
  }
}

// -------------------------------------
// Cancel scopes
// -------------------------------------

/** Options of {@linkcode cancelScope}. */
export interface CancelScopeOptions {
  /** Cancel the block after so many milliseconds, counted from entry. */
  timeout?: number | undefined;
  /** Cancel the block when the loop's clock shows this time; of both, the earlier counts. */
  deadline?: number | undefined;
  /** Hide from the block what happens to the scopes outside. Default: false. */
  shield?: boolean | undefined;
  /** Cancel the block when this aborts, with its reason. As long as it may, no wait in the loop is a deadlock. */
  signal?: AbortSignal | undefined;
}

/** The reason of a scope that was cancelled by its deadline. */
const DEADLINE = "the deadline has passed";

/** What a scope holds: the tasks that were born in it, and the scopes inside. */
type Member = Task<any> | CancelScope;

/** The member after `member` in a walk through `top`: what it holds itself comes first, unless that is passed over. */
function following(member: Member, top: CancelScope, passOver: boolean): Member | null {
  if (!passOver && member instanceof CancelScope && member._first) return member._first;
  while (member !== top && !member._after) member = member._parent!;
  return member === top ? null : member._after;
}

/**
 * A block of a task that can be cancelled as a whole, with the blocks and groups inside. The scopes of a loop form a tree:
 * every `cancelScope` block is in the one around it, every task in that of its group, or the one that `createTask` was given:
 * without one it is the loop's, wherever it was called.
 *
 * Cancellation is level-triggered, as trio's is, a state and not an event: as long as a task is inside a cancelled scope
 * and no shield hides it, each op throws `Cancelled`.
 *
 * Its `deadline` (a time on the loop's clock, `Infinity` for none) and `shield` can be read and set as long as the block
 * runs.
 */
export class CancelScope {
  #cancelCalled = false;
  #reason: unknown = undefined;
  #deadline = Infinity;
  #timer: Timer | null = null;
  #unlisten: (() => void) | null = null;
  #shield: boolean;
  #left = false;
  readonly #loop: Loop;

  /** The task whose block it is; null for the root, and for a task's own. */
  readonly #task: Task<any> | null;
  /**
   * @ignore The outermost cancelled scope, from here outward, that no shield hides. (Outermost, so that an inner timeout
   * does not claim what an outer one did.) Discussion: at each op the kernel must know it in constant time, so it is kept,
   * and worked out anew for the scopes below whenever something changes.
   */
  _cancelledBy: CancelScope | null = null;
  /** @ignore Whether this scope or one outside ever had a deadline: if not, an op need not look at the clock. */
  _timed = false;
  /** @ignore Its own cancellation, once that has ended the block. */
  _caught: Cancelled | null = null;
  /** @ignore The tree: the scope it is in, its neighbours there, and what it holds. */
  _parent: CancelScope | null = null;
  /** @ignore */
  _before: Member | null = null;
  /** @ignore */
  _after: Member | null = null;
  /** @ignore */
  _first: Member | null = null;
  #last: Member | null = null;

  /** @ignore Made by the kernel; programs use {@linkcode cancelScope}. */
  constructor(loop: Loop, task: Task<any> | null, parent: CancelScope | null, shield = false) {
    this.#loop = loop;
    this.#task = task;
    this.#shield = shield;
    if (!parent) return;
    parent._add(this);
    this._timed = parent._timed;
    if (!shield) this._cancelledBy = parent._cancelledBy;
  }

  /**
   * Whether it was cancelled: by a call, by its signal, or by its deadline. (To read this looks at the clock, so code that
   * computes for long without an op can ask when to stop. After trio's `cancel_called`.)
   */
  get cancelCalled(): boolean {
    if (this.#timer) this._expire(this.#loop.time());
    return this.#cancelCalled;
  }
  /** Whether it is this scope's cancellation that ended the block. */
  get cancelledCaught(): boolean {
    return this._caught !== null;
  }

  /** Asks the block to end. May be called again, to no effect: the first reason wins. */
  cancel(reason?: unknown): void {
    if (this.#cancelCalled) return;
    this.#cancelCalled = true;
    this.#reason = reason;
    this.#dropTimer(); // There is nothing left for it to do.
    this.#unlisten?.();
    this.#spread();
  }

  /** @ignore Cancels the block when `signal` aborts. */
  _cancelWith(signal: AbortSignal): void {
    this.#unlisten = this.#loop._listen(signal, (reason) => this.cancel(reason));
  }

  /**
   * The time on the loop's clock at which the block is cancelled; `Infinity` for never. It can be moved.
   *
   * @throws {RangeError} If it is set to what is not a number.
   */
  get deadline(): number {
    return this.#deadline;
  }
  set deadline(time: number) {
    checkDeadline(time);
    this.#dropTimer();
    this.#deadline = time;
    if (time === Infinity || this.#left || this.#cancelCalled) return;
    this.#timer = this.#loop._timers.add(time, this);
    this.#loop._noteOrigin();
    if (this._timed) return;
    for (const member of this._walk()) if (member instanceof CancelScope) member._timed = true;
  }

  #dropTimer(): void {
    if (this.#timer) this.#loop._timers.remove(this.#timer);
    this.#timer = null;
  }

  /** Whether the block is shielded from what happens to the scopes outside. It can be changed. */
  get shield(): boolean {
    return this.#shield;
  }
  set shield(on: boolean) {
    this.#shield = on && !this.#left; // A block that has ended shields nobody.
    this.#spread();
  }

  /** Brings `_cancelledBy` up to date here and below, and interrupts the tasks that wait there. */
  #spread(): void {
    const waiting: Task<any>[] = [];
    let changed = false;
    // Below a scope for which nothing changed, nothing changes.
    // deno-lint-ignore no-this-alias -- a walk down the tree starts here
    for (let m: Member | null = this; m; m = following(m, this, !changed)) {
      changed = m instanceof CancelScope && m.#update();
      const task = m instanceof Task ? m : m.#task;
      if (task?._op) waiting.push(task);
    }
    // Only now: taking an op back may call the program, which may cancel tasks and so move them in the tree.
    this.#loop._interrupt(waiting);
  }

  /** Works out `_cancelledBy` anew, and says whether that has changed it. */
  #update(): boolean {
    const outer = this.#shield ? null : this._parent?._cancelledBy;
    const by = outer ?? (this.#cancelCalled ? this : null);
    const changed = by !== this._cancelledBy;
    this._cancelledBy = by;
    return changed;
  }

  /** @ignore Cancels what is past its deadline, from here outward. */
  _expire(now: number): void {
    const passed: CancelScope[] = [];
    // deno-lint-ignore no-this-alias -- a walk up the tree starts here
    for (let scope: CancelScope | null = this; scope; scope = scope._parent) {
      if (scope.#deadline <= now && !scope.#left) passed.push(scope);
    }
    // The outermost first: the others then change nothing below. Looked at again, as what that calls may move a deadline.
    for (let scope = passed.pop(); scope; scope = passed.pop()) if (scope.#deadline <= now) scope.cancel(DEADLINE);
  }

  /** @ignore This scope and all that is below. */
  *_walk(): Generator<Member, void, void> {
    // deno-lint-ignore no-this-alias -- a walk down the tree starts here
    for (let member: Member | null = this; member; member = following(member, this, false)) yield member;
  }

  /** @ignore Puts a task that is born, or a scope that is made, in here. */
  _add(member: Member): void {
    member._parent = this;
    member._before = this.#last;
    if (this.#last) this.#last._after = member;
    else this._first = member;
    this.#last = member;
  }

  /** @ignore Takes `member` out. A scope whose block was left goes as soon as nothing is in it. */
  _remove(member: Member): void {
    // deno-lint-ignore no-this-alias -- a walk up the tree starts here
    let scope: CancelScope = this;
    scope.#unlink(member);
    while (scope.#left && !scope._first && scope._parent) {
      scope._parent.#unlink(scope);
      scope = scope._parent;
    }
  }

  #unlink(member: Member): void {
    if (member._before) member._before._after = member._after;
    else this._first = member._after;
    if (member._after) member._after._before = member._before;
    else this.#last = member._before;
    member._before = member._after = null;
  }

  /** @ignore Takes `member` over from the scope it is in. */
  _adopt(member: Member): void {
    member._parent!._remove(member);
    this._add(member);
  }

  /** @ignore The block has been left. */
  _leave(): void {
    if (this.#left) return; // Its task was given up, and somebody returns the coroutine by hand.
    this.#left = true;
    this.#dropTimer();
    this.#unlisten?.();
    // A task in here that outlives the block keeps it in the tree, so that it can still be reached.
    if (!this._first) this._parent!._remove(this);
    else if (this.#shield) this.shield = false;
  }

  /** @ignore Whether `outer` is this scope or one around it. */
  _isIn(outer: CancelScope): boolean {
    // deno-lint-ignore no-this-alias -- a walk up the tree starts here
    let scope: CancelScope | null = this;
    while (scope && scope !== outer) scope = scope._parent;
    return scope !== null;
  }

  /** @ignore Whether `task` is in it. (Of a block of its own that needs no walk.) */
  _holds(task: Task<any>): boolean {
    return this.#task === task ? !this.#left : task._scope._isIn(this);
  }

  /** @ignore Throws if no task of `loop` can be started in `scope`, or none any more, as `coro` should be. */
  static _check(scope: CancelScope, loop: Loop, coro: unknown): void {
    if (scope instanceof CancelScope && scope.#loop === loop && !scope.#left) return;
    hush(coro); // Nobody will wait for it.
    if (!(scope instanceof CancelScope)) {
      throw new TypeError(`Cannot create a task in ${kind(scope)}: it is not a CancelScope`);
    }
    if (scope.#loop !== loop) throw new Error("Cannot create a task in this scope: it is in another loop");
    throw new Error("Cannot create a task in this scope: its block has ended");
  }

  /** @ignore What the task is thrown. */
  _error(): Cancelled {
    return new Cancelled(this.#reason, this);
  }

  /** @ignore Makes its cancellation the cause of an error of its block that it led to. */
  _blame(error: unknown): void {
    if (this.#task!._wasThrownBy(this)) blame(error, this._error());
  }

  /** @ignore Whether `error` is the cancellation of this scope or of one around it. */
  _owns(error: unknown): error is Cancelled {
    if (!isCancelled(error) || error._scope === null) return false;
    return error._scope === this._cancelledBy || this._isIn(error._scope); // The first nearly always settles it.
  }

  /** @ignore Whether `error` is this scope's own cancellation, which ends here. */
  _catches(error: unknown): error is Cancelled {
    const own = isCancelled(error) && error._scope === this;
    this._caught = own ? error : null;
    return own;
  }
}

/**
 * Runs `body` in a scope of its own: `scope.cancel()`, a deadline, a signal, or a cancellation from outside end it at the op
 * it waits on. Returns what `body` returns, or undefined if the scope's own cancellation ended it. After trio's
 * `CancelScope`.
 *
 * @throws {RangeError} If `timeout` is negative or not a number, or `deadline` not a number.
 * @throws {TypeError} If `body` is not a function that returns a coroutine, or `signal` not an `AbortSignal`.
 *
 * @example
 * ```ts
 * import { cancelScope, Loop, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* main() {
 *   return yield* cancelScope(function* (scope) {
 *     scope.cancel("no need any more");
 *     yield* sleep(1000); // throws Cancelled, which the scope catches
 *     return "not reached";
 *   });
 * }
 * assertEquals(await new Loop().run(main()), undefined);
 * ```
 */
export function cancelScope<T>(
  body: (scope: CancelScope) => Coroutine<T>,
  options: CancelScopeOptions = {},
): Coroutine<T | undefined> {
  checkBody("cancelScope", body);
  if (options.timeout !== undefined) checkDuration("set a timeout", options.timeout);
  if (options.deadline !== undefined) checkDeadline(options.deadline);
  checkSignal("make a cancel scope", options.signal);
  return inScope(body, options);
}

function* inScope<T>(
  body: (scope: CancelScope) => Coroutine<T>,
  options: CancelScopeOptions,
): Coroutine<T | undefined> {
  const task = currentTask();
  const scope = new CancelScope(task.loop, task, task._scope, options.shield);
  const { timeout = Infinity, deadline = Infinity, signal } = options;
  task._scope = scope;
  if (signal) scope._cancelWith(signal);
  try {
    if (timeout !== Infinity || deadline !== Infinity) scope.deadline = Math.min(deadline, task.loop.time() + timeout);
    return yield* checkRunnable(body(scope));
  } catch (error) {
    if (scope._catches(error)) return undefined;
    scope._blame(error);
    throw error;
  } finally {
    leaveScope(task, scope);
  }
}

function leaveScope(task: Task<any>, scope: CancelScope): void {
  if (task._scope !== scope) throw new Error(`Cannot leave a cancel scope of ${task}: it is not the innermost one`);
  task._scope = scope._parent!;
  scope._leave();
}

// -------------------------------------
// Containers: the deque of ready tasks, the heap of timers, the lot of parked tasks
// -------------------------------------

/**
 * A ring this long or shorter is kept as it empties: to grow it anew with each wave of tasks would cost more than it holds.
 */
const RING_KEPT = 65536;

/** A first-in first-out queue in a ring: adds and takes in constant time, on average. */
export class Deque<T> {
  #ring: (T | undefined)[] = new Array(16).fill(undefined);
  #head = 0;
  /** How many items there are. */
  length = 0;

  /** Adds `item` at the end. */
  append(item: T): void {
    if (this.length === this.#ring.length) this.#resize(this.#ring.length * 2);
    this.#ring[(this.#head + this.length++) & (this.#ring.length - 1)] = item;
  }

  /** Takes the item at the front; undefined if there is none. */
  popleft(): T | undefined {
    if (this.length === 0) return undefined;
    const size = this.#ring.length;
    const item = this.#ring[this.#head];
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) & (size - 1);
    this.length--;
    if (size > RING_KEPT && this.length < size >> 2) this.#resize(size >> 1);
    return item;
  }

  #resize(size: number): void {
    const old = this.#ring;
    this.#ring = new Array<T | undefined>(size).fill(undefined);
    for (let i = 0; i < this.length; i++) this.#ring[i] = old[(this.#head + i) & (old.length - 1)];
    this.#head = 0;
  }
}

/** Something to be done at a time: wake a sleeping task, or cancel a scope. */
interface Timer {
  readonly time: number;
  readonly target: Task<any> | CancelScope;
  /** The order in which timers were set, to tell equal times apart. */
  readonly order: number;
  /** Where it stands in the heap; -1 if it does not. */
  index: number;
}

/** A binary heap of timers that know their place, so that one in the middle is removed in O(log n). */
class Timers {
  #heap: Timer[] = [];
  #order = 0;

  get length(): number {
    return this.#heap.length;
  }

  get first(): Timer | undefined {
    return this.#heap[0];
  }

  add(time: number, target: Task<any> | CancelScope): Timer {
    const timer = { time, target, order: this.#order++, index: this.#heap.length };
    this.#heap.push(timer);
    this.#up(timer);
    return timer;
  }

  remove(timer: Timer): void {
    if (timer.index < 0) return;
    const last = this.#heap.pop()!;
    if (last !== timer) {
      last.index = timer.index;
      this.#up(last);
      this.#down(last);
    }
    timer.index = -1;
  }

  #before(a: Timer, b: Timer): boolean {
    return a.time < b.time || (a.time === b.time && a.order < b.order);
  }

  #up(timer: Timer): void {
    const heap = this.#heap;
    let i = timer.index;
    while (i > 0) {
      const above = heap[(i - 1) >> 1];
      if (!this.#before(timer, above)) break;
      heap[i] = above;
      above.index = i;
      i = (i - 1) >> 1;
    }
    heap[i] = timer;
    timer.index = i;
  }

  #down(timer: Timer): void {
    const heap = this.#heap;
    let i = timer.index;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && this.#before(heap[child + 1], heap[child])) child++;
      if (!this.#before(heap[child], timer)) break;
      heap[i] = heap[child];
      heap[i].index = i;
      i = child;
    }
    heap[i] = timer;
    timer.index = i;
  }
}

/**
 * A place where tasks wait for each other, first come first served: what locks, queues and events are made of. After
 * trio's `ParkingLot`. A value given to `unpark` is handed to the task that wakes: nobody can get in between.
 *
 * @example
 * ```ts
 * import { checkpoint, Loop, park, ParkingLot } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const loop = new Loop();
 * const lot = new ParkingLot<string>("a letter");
 * function* main() {
 *   const reader = loop.createTask(park(lot));
 *   yield* checkpoint();
 *   lot.unpark("hello");
 *   return yield* reader.join();
 * }
 * assertEquals(await loop.run(main()), "hello");
 * ```
 */
export class ParkingLot<T = void> {
  readonly #for: unknown;
  /** How many tasks are parked. */
  length = 0;
  // A list of tasks linked through themselves: a task parks in one lot at a time, and leaves the middle in O(1).
  #first: Task<any> | null = null;
  #last: Task<any> | null = null;

  /** Makes an empty lot; `what` is waited for in it: some words (default: its name), or an object that makes some. */
  constructor(what: string | object = "ParkingLot") {
    this.#for = what;
  }

  /** What is waited for here, in words. */
  get name(): string {
    return String(this.#for);
  }

  /** What a trace shows of it: the same words. */
  toString(): string {
    return this.name;
  }

  /** What `console.log` shows of it: the same words. */
  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return this.name;
  }

  /** What `JSON.stringify` makes of it: the same words. */
  toJSON(): string {
    return this.name;
  }

  /** Wakes the task that has waited longest, gives it `value`, and returns it. If none waits, null: `value` is not kept. */
  unpark(value: T): Task<any> | null {
    const task = this.#first;
    if (!task) return null;
    this._remove(task);
    task.loop._noteOrigin();
    task.loop._wake(task, value);
    return task;
  }

  /** Wakes every task that is parked now, in the order they came, and says how many. */
  unparkAll(value: T): number {
    const count = this.length;
    for (let i = 0; i < count; i++) this.unpark(value);
    return count;
  }

  /** @ignore */
  _add(task: Task<any>): void {
    task._aheadInLot = this.#last;
    if (this.#last) {
      this.#last._behindInLot = task;
      task.loop._noteWait(this.#last.loop); // A task of another loop waits ahead, and may get it first.
    } else this.#first = task;
    this.#last = task;
    this.length++;
    task.loop._parked++;
  }

  /** @ignore */
  _remove(task: Task<any>): void {
    if (task._aheadInLot) task._aheadInLot._behindInLot = task._behindInLot;
    else this.#first = task._behindInLot;
    if (task._behindInLot) task._behindInLot._aheadInLot = task._aheadInLot;
    else this.#last = task._aheadInLot;
    task._aheadInLot = task._behindInLot = null;
    this.length--;
    task.loop._parked--;
  }
}

// -------------------------------------
// The world around the kernel
// -------------------------------------

/**
 * Something a selector can watch. What else it can do is between the selector and the sockets of its network. Messages call
 * it what its `toString` says.
 */
export interface Selectable {
  /** A small number that stays the same as long as the socket lives, for messages and traces. */
  readonly id: number;
  /** Whether it has been closed: who waits for it gets a {@linkcode ClosedError}. */
  readonly closed?: boolean;
}

/** One registration with a selector. */
export interface SelectorKey {
  /** What is watched. */
  readonly fileobj: Selectable;
  /** For what: `EVENT_READ`, `EVENT_WRITE`, or both or-ed together. */
  readonly events: number;
  /** Whatever was given to `register`; the loop gives its task. */
  readonly data: any;
}

/** Readable, or a connection can be accepted. */
export const EVENT_READ = 1;
/** Takes bytes. */
export const EVENT_WRITE = 2;

/**
 * Tells which sockets are ready. `DefaultSelector` is one over the platform's promises. It is level-triggered: it reports
 * what is ready each time until that is unregistered, and never after. One socket may be watched under two keys, where a
 * task waits to read it and another to write it.
 */
export interface Selector {
  /**
   * Watches `fileobj` for `events`; `data` comes back with the key. Throws `TypeError` for what it cannot watch,
   * {@linkcode BusyError} if one of `events` is watched already, {@linkcode ClosedError} if `fileobj` is closed. A listener
   * can be watched for `EVENT_WRITE` too: it is ready for that once it is closed, and not before.
   */
  register(fileobj: Selectable, events: number, data?: unknown): void;
  /**
   * Ends the watch; given `events`, only for those. What is not watched is no error: a wait may be cancelled after `select`
   * has told of it.
   */
  unregister(fileobj: Selectable, events?: number): void;
  /**
   * Waits until something is ready, and says what; at most `timeout` milliseconds, for ever if that is undefined, or if it
   * is `Infinity`. (Then a task sleeps that long, which keeps the program going as any timer does.) What has been closed
   * counts as ready. `select(0)` lets the platform's own event loop turn once. With `again` another `select` or a `wakeup`
   * will follow: the timer set for this one may be kept until then. It may return early, with nothing; but if the clock has
   * not moved meanwhile and all tasks wait for each other, that is a deadlock, whatever the selector itself is still going
   * to do: keep a task in `until`, or give `run` a `signal`. What it rejects with ends the run.
   */
  select(timeout?: number, again?: boolean): Promise<[SelectorKey, number][]>;
  /**
   * Whether `fileobj`, open, is ready for `event`, and nobody watches it for that. Without it the loop watches and polls.
   */
  isReady?(fileobj: Selectable, event: number): boolean;
  /** What is ready, at once. Without it the loop uses `select(0)`. */
  poll?(): [SelectorKey, number][];
  /**
   * Makes a `select` under way return; with none under way, lets go of what is kept for the next. Without it the loop
   * starts another `select`, and drops what the first one brings: that must not move a virtual clock any more.
   */
  wakeup?(): void;
  /** Lets go of everything the selector holds. For whoever made it: a loop never closes its selector. */
  close(): void;
}

/**
 * Tells the time. A virtual clock is moved on by its selector, in `select`, which is where the loop sleeps. As long as a
 * task is ready it does not sleep: a deadline around one that never waits passes only if `poll` moves the clock too.
 */
export interface Clock {
  /** Milliseconds since some fixed moment; never goes back. */
  now(): number;
}

/**
 * The address of one end of a socket, in the platform's words. (On a Unix path the client's end has none: its `path` is
 * null, whatever the type says.)
 */
export type Addr =
  | { transport: "tcp"; hostname: string; port: number }
  | { transport: "udp"; hostname: string; port: number }
  | { transport: "unix"; path: string }
  | { transport: "unixpacket"; path: string };

/**
 * What the loop needs of a connected socket; `B` is the kind of array that it hands out. What would have to wait throws
 * {@linkcode WouldBlock}, as {@linkcode ListenerLike.accept} does; what has been closed, {@linkcode ClosedError}.
 */
export interface SocketLike<B extends Uint8Array = Uint8Array> extends Selectable {
  /** Takes at most `maxBytes` of what has arrived; empty at end of stream. The array is the caller's for good. */
  recv(maxBytes: number): B;
  /** Moves what has arrived into `buffer` and says how much; 0 at end of stream. */
  recvInto(buffer: Uint8Array): number;
  /** Copies what fits of `data` and says how much: at least one byte, if there are any. */
  send(data: Uint8Array): number;
  /** Set by the loop as long as a task is in `sockSendall`, between its waits too: nobody else may send. */
  sending?: boolean;
}

/** What the loop needs of a datagram socket, whose peers have addresses of kind `A`. */
export interface DatagramLike<A extends Addr = Addr> extends Selectable {
  /** Takes at most `maxBytes` of the datagram that has arrived, and its sender; the rest of it is lost. */
  recvfrom(maxBytes: number): [Uint8Array, A];
  /** Sends one datagram and says how long it is. */
  sendto(data: Uint8Array, addr: Addr): number;
  /** When it is writable again: how much of the last datagram has left, or throws why it has not. */
  sent(): number;
  /** Set by the loop as long as a task is in `sockSendto`. */
  sending?: boolean;
}

/** What the loop needs of a listening socket. */
export interface ListenerLike<S extends SocketLike = SocketLike, A extends Addr = Addr> extends Selectable {
  /** Takes the connection that has arrived, with the address of its client. */
  accept(): [S, A];
}

/**
 * Makes the sockets of a loop's tasks. Options are those of `net.ts`'s functions of the same names, and programs take what
 * is made for what those return: besides what the loop needs it has whatever they use of `Listener` and `Socket`, such as
 * `addr`, `remoteAddr`, `close()`, `closeWrite()` and `[Symbol.dispose]()`.
 */
export interface Network {
  /** Opens a listening socket. */
  listen(options: any): ListenerLike;
  /**
   * Opens a connected socket, or throws what the platform would. Cancelled, it leaves nothing open. It may wait in any way
   * but `park`: where all tasks are parked, the loop sees a deadlock.
   */
  connect(options: any): Coroutine<SocketLike>;
  /** Opens a listening socket for TLS. */
  listenTls?(options: any): ListenerLike;
  /** Opens a connected socket with TLS. */
  connectTls?(options: any): Coroutine<SocketLike>;
  /** Opens a datagram socket. */
  datagram?(options: any): DatagramLike;
}

/** The world a loop lives in when it is given no other. */
export interface World {
  /** Makes a selector for one loop. */
  selector(): Selector;
  /** The clock. */
  clock: Clock;
  /** The network. */
  network: Network;
}

let world: World | null = null;

/**
 * Makes `w` the world of every loop that is not given one, and `w.network` the one of `listen` outside of tasks. `net.ts`
 * does so with the platform's.
 */
export function setDefaultWorld(w: World): void {
  world = w;
}

/** @ignore */
export function defaultWorld(): World {
  if (!world) {
    throw new TypeError("Cannot make a loop: import net.ts (or mod.ts), or pass { selector, clock, network }");
  }
  return world;
}

// -------------------------------------
// Errors
// -------------------------------------

/**
 * Thrown into a task at the op it waits on, or at its next one, when a scope around it is cancelled; if it is caught, at each
 * op after that. A task that catches it a thousand times is given up. An `Error` thrown in its place gets it for `cause`,
 * unless it has one.
 */
export class Cancelled extends Error {
  /** The name of the class. */
  override name = "Cancelled";
  /** What `cancel(reason)` was given. */
  readonly reason: unknown;
  /** How many bytes a cancelled `sockSendall`, `sockSendto` or `Stream.write` had handed over. Not there otherwise. */
  declare bytesSent?: number;
  // Private: whoever prints an error does not want the whole loop with it.
  readonly #scope: CancelScope | null;

  /** Made by the kernel; programs catch it. */
  constructor(reason?: unknown, scope: CancelScope | null = null) {
    super(reason === undefined ? "The task was cancelled" : `The task was cancelled: ${inWords(reason)}`);
    this.reason = reason;
    this.#scope = scope;
  }

  /** @ignore The scope that catches it. */
  get _scope(): CancelScope | null {
    return this.#scope;
  }
}

/** Makes `cause`, if there is one, the cause of `error`, unless it has one already, or is itself what led to `cause`. */
function blame(error: unknown, cause: unknown): void {
  if (!cause || cause === error || isCancelled(error)) return;
  if (isCancelled(cause) && cause.reason === error) return;
  try {
    if (error instanceof Error && error.cause === undefined) error.cause = cause;
  } catch {
    // It is frozen, or throws when it is looked at.
  }
}

/** Whether `value` is a `Cancelled`. It may be anything at all, as programs throw what they like. */
function isCancelled(value: unknown): value is Cancelled {
  try {
    return value instanceof Cancelled;
  } catch {
    return false;
  }
}

function inWords(reason: unknown): string {
  if (typeof reason === "string") return reason;
  try {
    if (reason instanceof Error) return String(reason.message);
  } catch {
    // It throws when it is looked at.
  }
  return kind(reason);
}

/** Thrown by `failAfter` when the time was up. */
export class TimeoutError extends Error {
  /** The name of the class. */
  override name = "TimeoutError";
}

/**
 * Thrown to whoever joins a task that was cancelled, or failed with the `Cancelled` of something else: that is its `cause`.
 * Also by {@linkcode Task.result} if the task has not ended; and it is the error of a task that threw undefined.
 */
export class TaskError extends Error {
  /** The name of the class. */
  override name = "TaskError";
}

/** Thrown by what never waits when it would have to: `recv` on a socket that is not ready, `getNowait` on an empty queue. */
export class WouldBlock extends Error {
  /** The name of the class. */
  override name = "WouldBlock";
}

/** Thrown by the use of something that has been closed, or gets closed meanwhile. */
export class ClosedError extends Error {
  /** The name of the class. */
  override name = "ClosedError";
}

/** Thrown to the second of two tasks that want the same side of a socket; the first goes on. */
export class BusyError extends Error {
  /** The name of the class. */
  override name = "BusyError";
}

/**
 * Thrown by `run` and `runForever` when nothing can ever wake the tasks that are left: no timer, socket or promise that the
 * loop knows of. A task that waits for ever in a shield stays, and so ends the next run too. If a callback that the loop
 * cannot know of, or another loop, will wake one, but perhaps only after a second, let a task wait for a promise meanwhile
 * (`until`).
 */
export class DeadlockError extends Error {
  /** The name of the class. */
  override name = "DeadlockError";
  /** The tasks. When `run` throws this it has cancelled them, and they have ended, except in a shield. */
  readonly tasks: Task<any>[];
  /** The op that each of them waited on, in the same order. */
  readonly ops: (Op | null)[];

  /** Made by the kernel. */
  constructor(tasks: Task<any>[]) {
    const named = tasks.slice(0, DEADLOCKED_NAMED).map((task) => `${task} (waits for ${describe(task.op)})`);
    if (tasks.length > named.length) named.push(`and ${tasks.length - named.length} more`);
    super(`Deadlock: nothing can wake ${named.join(", ")}`);
    this.tasks = tasks;
    this.ops = tasks.map((task) => task.op);
  }
}

/** An op in words. */
function describe(op: Op | null): string {
  if (!op) return "its turn";
  const [name, ...args] = op;
  return [name, ...args.map(describeArg)].join(" ");
}

function describeArg(arg: any): string {
  try {
    if (typeof arg === "function") return arg.name || "function";
    if (typeof arg !== "object" || arg === null) return String(arg);
    if (arg instanceof ParkingLot) return arg.name;
    return `${arg.constructor?.name ?? "Object"}${typeof arg.id === "number" ? ` ${arg.id}` : ""}`;
  } catch {
    return kind(arg);
  }
}

// -------------------------------------
// Arguments: what is wrong with one, and what to write instead
// -------------------------------------

/** Marks a coroutine that was taken to be run: it runs once. */
const TAKEN = Symbol("taken");

function take(cannot: string, coro: any): void {
  if (coro[TAKEN] || coro instanceof SingleOp && coro._op === null) {
    throw new TypeError(`${cannot} this coroutine: it runs already, or has run; call its function again`);
  }
  coro[TAKEN] = true;
}

function checkCoroutine(coro: any, taker: "createTask" | "call"): void {
  const cannot = taker === "call" ? "Cannot call" : "Cannot create a task from";
  if (!isGenerator(coro)) throw noCoroutine(cannot, coro, (right) => `${taker}(${right})`);
  take(cannot, coro);
  if (coro instanceof SingleOp) hush(coro); // Its promise may reject before its task has begun.
}

function checkName(name: unknown, coro: unknown): void {
  if (typeof name === "string") return;
  hush(coro); // Nobody will wait for it.
  throw new TypeError(`Cannot name a task ${kind(name)}: a name is a string`);
}

/** @ignore Returns `coro`, or throws `TypeError` if it is nothing `yield*` can run, or was run already. */
export function checkRunnable<T>(coro: Coroutine<T>): Coroutine<T> {
  if (typeof coro !== "object" || typeof coro?.[Symbol.iterator] !== "function") {
    throw noCoroutine("Cannot run", coro, (right) => right);
  }
  if (isGenerator(coro)) take("Cannot run", coro);
  return coro;
}

function isGenerator(thing: any): boolean {
  return thing?.[Symbol.toStringTag] === "Generator";
}

/** @ignore Throws `TypeError` if `body` is not a function that makes a coroutine. */
export function checkBody(taker: string, body: unknown): void {
  if (typeof body === "function") return;
  hush(body); // Nobody will wait for it.
  throw new TypeError(`Cannot run ${kind(body)}: ${taker} takes a function, as in ${taker}(function* () { ... })`);
}

/** What is wrong with something that should be a coroutine, and what to write instead. */
function noCoroutine(cannot: string, thing: any, asIn: (right: string) => string): TypeError {
  if (typeof thing === "function") {
    return new TypeError(`${cannot} a function: call it, as in ${asIn(`${thing.name || "f"}()`)}`);
  }
  if (thing instanceof Task) return new TypeError(`${cannot} a task: it runs already; wait for it with task.join()`);
  hush(thing); // A rejection must not end the program: that is not the mistake.
  if (typeof thing?.then === "function") {
    return new TypeError(`${cannot} a promise: wrap it, as in ${asIn("until(promise)")}`);
  }
  return new TypeError(`${cannot} ${kind(thing)}: it takes the generator that a function* returns`);
}

/** @ignore Throws `RangeError` if `ms` is not a duration. */
export function checkDuration(what: string, ms: number): void {
  if (typeof ms !== "number" || !(ms >= 0)) {
    throw new RangeError(`Cannot ${what} for ${kind(ms)} ms: the time must be a number from 0 up`);
  }
}

function checkDeadline(time: number): void {
  if (typeof time === "number" && !Number.isNaN(time)) return;
  throw new RangeError(`Cannot set the deadline to ${kind(time)}: it must be a number`);
}

/** @ignore Throws `RangeError` if `n` is not a number of bytes, `least` at least. */
export function checkCount(what: string, n: number, least: number): void {
  if (Number.isSafeInteger(n) && n >= least) return;
  throw new RangeError(`Cannot ${what} ${kind(n)} bytes: the number must be a whole one from ${least} up`);
}

/** @ignore Throws `TypeError` if `buffer` is not a `Uint8Array` with room for something. */
export function checkBuffer(buffer: Uint8Array): void {
  checkBytes("recv into", buffer);
  if (buffer.length === 0) throw new TypeError("Cannot recv into an empty buffer");
}

function waitsForItself(task: Task<any>): Error {
  return new Error(`Cannot wait for ${task}: it would wait for itself`);
}

function noSocket(method: string, sock: unknown): TypeError {
  hush(sock); // Perhaps the promise of one: its own error must not end the program.
  return new TypeError(`Cannot ${method} on ${kind(sock)}: it is not a socket that can`);
}

/** Somebody else took what the socket was ready for: the caller waits on. Any other error is thrown. */
function waitOn(error: unknown): void {
  if (!(error instanceof WouldBlock)) throw error;
}

function beginSending(sock: SocketLike | DatagramLike): void {
  if (sock.sending) throw new BusyError(`Cannot send on ${sock}: another task is still sending on it`);
  sock.sending = true;
}

function checkLoopOptions({ selector, clock, network, onError, trace }: LoopOptions): void {
  checkFunctions("make a loop", { onError, trace });
  if (clock !== undefined && typeof clock?.now !== "function") {
    throw new TypeError(`Cannot make a loop with the clock ${kind(clock)}: it needs the function now`);
  }
  if (network !== undefined && typeof network?.listen !== "function" && typeof network?.connect !== "function") {
    throw new TypeError(
      `Cannot make a loop with the network ${kind(network)}: it needs functions such as listen and connect`,
    );
  }
  if (selector !== undefined && typeof selector?.select !== "function") {
    throw new TypeError(`Cannot make a loop with the selector ${kind(selector)}: it needs the function select`);
  }
}

/** @ignore Throws `TypeError` if one of `functions` is given and is none. */
export function checkFunctions(what: string, functions: Record<string, unknown>): void {
  for (const [name, value] of Object.entries(functions)) {
    if (value === undefined || typeof value === "function") continue;
    throw new TypeError(`Cannot ${what} with the ${name} ${kind(value)}: it must be a function`);
  }
}

/** @ignore Throws `TypeError` if `signal` is given and is not an `AbortSignal`. */
export function checkSignal(what: string, signal: unknown): void {
  if (signal === undefined || signal instanceof AbortSignal) return;
  throw new TypeError(`Cannot ${what} with the signal ${kind(signal)}: it must be an AbortSignal`);
}

/** @ignore Throws `TypeError` if `data` is not a `Uint8Array`. */
export function checkBytes(what: string, data: unknown): void {
  if (data instanceof Uint8Array) return;
  hush(data); // Perhaps the promise of some.
  throw new TypeError(`Cannot ${what} ${kind(data)}: it must be a Uint8Array`);
}

/** Throws `TypeError` if `data`, which is to be sent, is no longer as long as it was. */
function checkKept(data: Uint8Array, length: number): void {
  if (data.length === length) return;
  throw new TypeError(`Cannot send ${length} bytes: their buffer was transferred or resized before they were sent`);
}

/**
 * Promises already hushed, and ops: to do it again would leave one more callback with a promise that stays, and go through
 * calls of calls at each of them.
 */
const HUSHED = new WeakSet<Promise<unknown> | SingleOp>();

/**
 * @ignore Nobody waits, or not yet, for the promises in `op`, or in ops within it: if one rejects, that must not end
 * the program.
 */
export function hush(op: unknown): void {
  try {
    if (!Array.isArray(op)) hushPart(op);
    else for (const part of op) hushPart(part);
  } catch {
    // It throws when it is looked at.
  }
}

function hushPart(part: any): void {
  try {
    const isPromise = part instanceof Promise || part?.[Symbol.toStringTag] === "Promise"; // the second of another realm
    if (!(isPromise || part instanceof SingleOp) || HUSHED.has(part)) return;
    if (isPromise) Promise.prototype.then.call(part, undefined, () => {});
    HUSHED.add(part);
    if (!isPromise) hush(part._op);
  } catch {
    // It throws when it is looked at, or only looks like a promise.
  }
}

/** What went wrong at a `yield` that gave no op, and what to write instead. */
function misuse(op: unknown, known: ReadonlyMap<string, OpHandler>): TypeError {
  hush(op);
  if (Array.isArray(op) && typeof op[0] === "string") {
    return new TypeError(`Cannot perform op ${kind(op[0])}: it is unknown; known are ${[...known.keys()].join(", ")}`);
  }
  if (op instanceof Task) return new TypeError("Cannot wait for a task with yield: write yield* task.join()");
  if (typeof (op as PromiseLike<unknown> | undefined)?.then === "function") {
    Promise.resolve(op).catch(() => {}); // Its own error must not end the program: the mistake is the yield.
    return new TypeError("Cannot wait for a promise with yield: write yield* until(promise)");
  }
  if (isGenerator(op)) {
    return new TypeError("Cannot yield a coroutine: the * is missing, write yield* f()");
  }
  if (typeof op === "function") {
    return new TypeError(`Cannot yield a function: call it, and pass it on, as in yield* ${op.name || "f"}()`);
  }
  return new TypeError(`Cannot yield ${kind(op)}: it is not an op; write yield* f(), or an op such as ["sleep", 10]`);
}

/** @ignore A value in words that are safe to print. */
export function kind(value: unknown): string {
  if (typeof value === "string") return value.length > 40 ? "a string" : JSON.stringify(value);
  if (typeof value === "function") return "a function";
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value !== "object" || value === null) return String(value);
  try {
    if (isGenerator(value)) return "a coroutine";
    return `a value of type ${value.constructor?.name || Object.prototype.toString.call(value).slice(8, -1)}`;
  } catch {
    return "a value that cannot be looked at";
  }
}
