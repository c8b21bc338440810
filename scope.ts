/**
 * scope.ts: blocks that bound what happens inside them.
 *
 * A deadline bounds how long a coroutine may take; a group bounds how long the tasks that were started in it may live. Both
 * are built around a `cancelScope` of the kernel's.
 *
 * The rules of a group, which are those of trio's nurseries:
 *
 * - The block ends when every task in it has ended, whichever way it is left.
 * - The first error, of the body or of a task, cancels the others; they are awaited, and the error is thrown. If there are
 *   more, an `AggregateError` holds them all.
 * - Its own cancellation ends in it; one from outside passes through it.
 *
 * @module
 */

import {
  Cancelled,
  type CancelScope,
  cancelScope,
  checkBody,
  checkDuration,
  checkpoint,
  checkRunnable,
  type Coroutine,
  currentTask,
  hush,
  park,
  ParkingLot,
  type Task,
  type TaskOptions,
  TimeoutError,
} from "./loop.ts";

// -------------------------------------
// Deadlines and shields
// -------------------------------------

/**
 * Runs `coro` for at most `ms` milliseconds. After trio's `fail_after`.
 *
 * @throws {TimeoutError} If it was ended because the time was up; its `cause` is the `Cancelled`, with the `bytesSent` of what
 * it ended. (What returns all the same, late or as it has caught the `Cancelled`, was in time.)
 * @throws {RangeError} If `ms` is negative or not a number.
 * @throws {TypeError} If `coro` is not a coroutine, or was run before.
 *
 * @example
 * ```ts
 * import { failAfter, Loop, sleep, TimeoutError } from "@yieldloop/yieldloop";
 * import { assertRejects } from "@std/assert";
 *
 * await assertRejects(() => new Loop().run(failAfter(5, sleep(1000))), TimeoutError);
 * ```
 */
export function failAfter<T>(ms: number, coro: Coroutine<T>): Coroutine<T> {
  hush(coro);
  checkDuration("set a timeout", ms);
  return failing(ms, coro);
}

function* failing<T>(ms: number, coro: Coroutine<T>): Coroutine<T> {
  let scope!: CancelScope;
  const value = yield* cancelScope((own) => {
    scope = own;
    return coro;
  }, { timeout: ms });
  if (!scope._caught) return value as T;
  if (currentTask()._scope._cancelledBy) yield* checkpoint(); // A cancellation from outside goes first.
  throw new TimeoutError(`Timed out after ${ms} ms`, { cause: scope._caught });
}

/**
 * Runs `coro` for at most `ms` milliseconds; returns undefined if that has ended it. After trio's `move_on_after`.
 * To tell that from a coroutine that returns undefined, use `cancelScope` and its `cancelledCaught`.
 *
 * @throws {RangeError} If `ms` is negative or not a number.
 * @throws {TypeError} If `coro` is not a coroutine, or was run before.
 *
 * @example
 * ```ts
 * import { Loop, moveOnAfter, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(await new Loop().run(moveOnAfter(5, sleep(1000))), undefined);
 * ```
 */
export function moveOnAfter<T>(ms: number, coro: Coroutine<T>): Coroutine<T | undefined> {
  hush(coro);
  checkDuration("set a timeout", ms);
  return cancelScope(() => coro, { timeout: ms });
}

/** Options of {@linkcode shield}. */
export interface ShieldOptions {
  /** Cancel it after this many milliseconds all the same; `shield` returns undefined if that ends it. Default: never. */
  timeout?: number | undefined;
}

/**
 * Runs `coro` out of reach of every cancellation from outside: for cleanup that has to wait for something. The
 * cancellation comes at the first op after it. Tasks started before are not in the shield: to let a group of workers
 * drain, put the group inside the shield, and what feeds them outside.
 *
 * @throws {RangeError} If `timeout` is negative or not a number.
 * @throws {TypeError} If `coro` is not a coroutine, or was run before.
 *
 * @example
 * ```ts
 * import { checkpoint, Loop, shield, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const said: string[] = [];
 * function* worker() {
 *   try {
 *     yield* sleep(1000);
 *   } finally {
 *     yield* shield(sleep(1), { timeout: 100 });
 *     said.push("good bye");
 *   }
 * }
 * const loop = new Loop();
 * function* main() {
 *   const task = loop.createTask(worker());
 *   yield* checkpoint();
 *   task.cancel();
 *   yield* task.wait();
 * }
 * await loop.run(main());
 * assertEquals(said, ["good bye"]);
 * ```
 */
export function shield<T>(coro: Coroutine<T>): Coroutine<T>;
/**
 * Runs `coro` out of reach of cancellations from outside, for `timeout` milliseconds at most; then it is cancelled, and
 * `undefined` is returned if that ends it.
 *
 * @throws {RangeError} If `timeout` is negative or not a number.
 * @throws {TypeError} If `coro` is not a coroutine, or was run before.
 */
export function shield<T>(coro: Coroutine<T>, options: ShieldOptions): Coroutine<T | undefined>;
export function shield<T>(coro: Coroutine<T>, options: ShieldOptions = {}): Coroutine<T | undefined> {
  hush(coro);
  return cancelScope(() => coro, { timeout: options.timeout, shield: true });
}

// -------------------------------------
// Groups
// -------------------------------------

/** The tasks of a {@linkcode taskGroup} block. */
export class TaskGroup {
  readonly #scope: CancelScope;
  readonly #owner: Task;
  /** How many of its tasks have not ended. The others are forgotten: a group may live as long as a server. */
  #size = 0;
  #closed = false;
  /** Whether a cancellation from outside has ended one of its tasks. */
  #struck = false;
  readonly #empty = new ParkingLot("the tasks of its group");
  #errors = new Set<unknown>();

  /** @ignore Made by {@linkcode taskGroup}. */
  constructor(scope: CancelScope, owner: Task) {
    this.#scope = scope;
    this.#owner = owner;
  }

  /** How many of its tasks have not ended. */
  get size(): number {
    return this.#size;
  }

  /**
   * Starts a task that lives in the group, and in every scope around the group's block.
   *
   * @throws {Error} If the group's block has ended.
   * @throws {TypeError} If `coro` is not a coroutine, or `options` name a scope.
   */
  createTask<T>(coro: Coroutine<T>, options?: Pick<TaskOptions, "name">): Task<T> {
    const task = this.#start(coro, options);
    task.addDoneCallback(this.#onDone);
    return task;
  }

  /**
   * Starts a task and waits until it says that it is ready, by calling the function it is given: a server that listens, a
   * client that has connected. Returns what it said. If the task fails before that, its error is thrown here and the group
   * goes on; if the wait is cancelled, so is the task, ready or not. Where TypeScript cannot infer the type of what it
   * says, name it: `group.start<number>((started) => server(started, port))`. After trio's `nursery.start`, but the task is
   * in the group from the beginning.
   *
   * @throws The task's error, if it fails before it has said so; {@linkcode TaskError} if it alone is cancelled.
   * @throws {Error} If it ends without having said so, or the group's block has ended.
   *
   * @example
   * ```ts
   * import { type Coroutine, Loop, sleep, taskGroup } from "@yieldloop/yieldloop";
   * import { assertEquals } from "@std/assert";
   *
   * function* server(started: (port: number) => void): Coroutine {
   *   yield* sleep(1);
   *   started(25000);
   *   yield* sleep(1000);
   * }
   * const port = await new Loop().run(taskGroup(function* (group) {
   *   const port = yield* group.start(server);
   *   group.cancel();
   *   return port;
   * }));
   * assertEquals(port, 25000);
   * ```
   */
  *start<V = void>(
    body: (started: (value: V) => void) => Coroutine<unknown>,
    options?: Pick<TaskOptions, "name">,
  ): Coroutine<V> {
    checkBody("group.start", body);
    this.#checkOpen();
    const caller = currentTask();
    let said: { value: V } | null = null;
    let waits = true; // Whether the caller is there, unless it has ended, to throw the error of a task that fails too soon.
    let task: Task | null = null;
    const lot = new ParkingLot("a task to say that it has started");
    task = this.#start(
      body((value) => {
        if (said) throw new Error(`Cannot start ${task ?? "a task"} twice: it has said already that it has started`);
        if (task?.done) throw new Error(`Cannot start ${task}: it has ended`);
        said = { value };
        lot.unpark();
      }),
      options,
    );
    task.addDoneCallback((task) => {
      this.#done(task, said || !waits || caller.done ? task.error : undefined);
      lot.unpark();
    });
    // A caller that is cancelled already hears of it at its wait below; by then the task would be in a wait of its own.
    const cancelled = caller._scope._cancelledBy;
    if (cancelled) task.cancel(cancelled._error().reason);
    caller.loop._noteWait(task.loop);
    try {
      yield* said ? checkpoint() : park(lot);
    } catch (error) {
      task.cancel(error instanceof Cancelled ? error.reason : undefined);
      yield* shield(task.wait());
      if (!said && task.error !== undefined) throw task.error; // nobody else would hear of it
      throw error;
    } finally {
      waits = false;
      if (!said) task.cancel(); // Only if this wait was ended by force does the task still live.
    }
    if (said) return (said as { value: V }).value;
    // If a scope whose cancellation has ended it is around the caller too, the caller ends with it, even in a shield.
    const by = endedBy(task);
    if (by && currentTask()._scope._isIn(by)) throw by._error();
    task.result(); // throws, if it failed or was cancelled
    throw new Error(`Cannot wait for ${task} to start: it ended without saying that it had`);
  }

  /** Cancels every task of the group and the body of its block, which then returns normally. */
  cancel(reason?: unknown): void {
    this.#scope.cancel(reason);
  }

  #start<T>(coro: Coroutine<T>, options: TaskOptions | undefined): Task<T> {
    if (this.#closed || options?.scope) hush(coro); // Nobody will wait for it.
    this.#checkOpen();
    if (options?.scope) {
      throw new TypeError("Cannot create a task in this group in another scope: it lives in the group's");
    }
    const task = this.#owner.loop.createTask(coro, { name: options?.name, scope: this.#scope });
    this.#size++;
    return task;
  }

  #checkOpen(): void {
    if (this.#closed) throw new Error("Cannot create a task in this group: its block has ended");
  }

  readonly #onDone = (task: Task): void => this.#done(task, task.error);

  #done(task: Task, error: unknown): void {
    this.#size--;
    const by = endedBy(task);
    if (by && by !== this.#scope && this.#scope._owns(task._value)) this.#struck = true;
    if (error !== undefined && this.#isOrphaned) task.loop._unwatch(task);
    else if (error !== undefined) {
      this.#errors.add(error);
      this.#scope.cancel(error);
    }
    if (this.#size === 0) this.#empty.unparkAll();
  }

  /** Whether its block was ended by force, or its owner given up: then nobody throws the errors of its tasks. */
  get #isOrphaned(): boolean {
    return this.#closed || this.#owner.done; // Asked as a task ends: a group closed in good order has none left.
  }

  #abandon(): void {
    this.#closed = true;
    for (const error of this.#errors) this.#owner.loop._report(error, this.#owner);
  }

  /** @ignore The block: the body, then the wait for every task. */
  *_run<T>(body: (group: TaskGroup) => Coroutine<T>): Coroutine<T | undefined> {
    let returned: { value: T } | null = null;
    let cancelled: Cancelled | null = null;
    try {
      try {
        returned = { value: yield* checkRunnable(body(this)) };
        // Every group is an op at least. As in trio, a cancellation now does not take what the body has returned, so it is
        // shielded; unless one from further out has ended tasks of the group.
        if (this.#size === 0) yield* this.#struck ? checkpoint() : shield(checkpoint());
        while (this.#size > 0) yield* park(this.#empty);
      } catch (error) {
        if (this.#scope._owns(error)) cancelled = error;
        else {
          this.#scope._blame(error);
          this.#errors = new Set([error, ...this.#errors]);
        }
        this.#scope.cancel(error);
        while (this.#size > 0) yield* shield(park(this.#empty));
      }
      this.#closed = true;
    } finally {
      if (!this.#closed) this.#abandon();
    }
    if (this.#errors.size > 0) return undefined;
    // If the group was cancelled while its tasks ended, it still returns what the body did.
    if (cancelled && !(returned && this.#scope._catches(cancelled))) throw cancelled;
    return returned!.value;
  }

  /** @ignore Throws what went wrong; outside the block, as the cancellation that it caused is not its cause. */
  _raise(): void {
    const errors = [...this.#errors];
    if (errors.length === 1) throw errors[0];
    if (errors.length > 1) throw new AggregateError(errors, "Several tasks failed");
  }
}

/** The scope whose cancellation has ended `task`; null if none has. */
function endedBy(task: Task): CancelScope | null {
  return task.cancelled ? task._value._scope : null;
}

/**
 * Runs `body`, which may start tasks in the group it is given, and waits until they have all ended. The first error cancels
 * the others, and is thrown when they have ended. Returns what `body` returns; undefined (which the type does not say) if
 * the group's cancellation has ended it. After trio's nurseries.
 *
 * @throws The error of the body or of a task; {@linkcode AggregateError} if there is more than one.
 * @throws {TypeError} If `body` is not a function that returns a coroutine.
 *
 * @example
 * ```ts
 * import { Loop, sleep, taskGroup } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * const said: string[] = [];
 * function* say(words: string) {
 *   yield* sleep(1);
 *   said.push(words);
 * }
 * await new Loop().run(taskGroup(function* (group) {
 *   group.createTask(say("one"));
 *   group.createTask(say("the other"));
 * }));
 * assertEquals(said, ["one", "the other"]);
 * ```
 */
export function taskGroup<T>(body: (group: TaskGroup) => Coroutine<T>): Coroutine<T> {
  checkBody("taskGroup", body);
  return inGroup(body);
}

function* inGroup<T>(body: (group: TaskGroup) => Coroutine<T>): Coroutine<T> {
  const owner = currentTask();
  let group!: TaskGroup;
  const returned = yield* cancelScope((scope) => (group = new TaskGroup(scope, owner))._run(body));
  group._raise();
  return returned as T;
}

/** What {@linkcode all} returns for a tuple of coroutines. */
export type Results<C extends readonly Coroutine<any>[]> = {
  -readonly [K in keyof C]: C[K] extends Coroutine<infer T> ? T : never;
};

/**
 * Runs coroutines side by side and returns their values in the order given. The first error cancels the rest.
 *
 * @throws {TypeError} If `coros` is not an array, or one of them is not a coroutine.
 * @throws The first error of a coroutine; {@linkcode AggregateError} if there is more than one.
 * @throws {TaskError} If one of them alone was cancelled.
 *
 * @example
 * ```ts
 * import { all, type Coroutine, Loop, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* after(ms: number): Coroutine<number> {
 *   yield* sleep(ms);
 *   return ms;
 * }
 * assertEquals(await new Loop().run(all([after(2), after(1)])), [2, 1]);
 * ```
 */
export function all<const C extends readonly Coroutine<any>[]>(coros: C): Coroutine<Results<C>> {
  hush(coros);
  return allOf(coros);
}

function* allOf<C extends readonly Coroutine<any>[]>(coros: C): Coroutine<Results<C>> {
  checkArray("all", coros);
  if (coros.length === 0) yield* checkpoint(); // A cancellation point, even for nothing.
  const tasks = yield* taskGroup((group) => startEach(group, coros));
  return tasks.map((task) => task.result()) as Results<C>;
}

/**
 * Runs coroutines side by side and returns the value of the first to end; the others are cancelled, and have cleaned up
 * when it returns. An error that comes first is thrown. A loser that ends in the same turn loses its value: do not race
 * for what must not be lost, such as a bare `queue.get()`.
 *
 * @throws {TypeError} If there is nothing to run, or `coros` is not an array of coroutines.
 * @throws The error of one that fails before any has ended, in the turn of the first, or cleaning up;
 * {@linkcode AggregateError} if several do.
 * @throws {TaskError} If each of them was cancelled, and nothing else.
 *
 * @example
 * ```ts
 * import { type Coroutine, Loop, race, sleep } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* after(ms: number): Coroutine<number> {
 *   yield* sleep(ms);
 *   return ms;
 * }
 * assertEquals(await new Loop().run(race([after(1000), after(1)])), 1);
 * ```
 */
export function race<const C extends readonly Coroutine<any>[]>(coros: C): Coroutine<Results<C>[number]>;
/** Returns the value of the first to end, of a type that is named; the others are cancelled, and have cleaned up. */
export function race<T>(coros: readonly Coroutine<T>[]): Coroutine<T>;
export function race<T>(coros: readonly Coroutine<T>[]): Coroutine<T> {
  hush(coros);
  return firstOf(coros);
}

function* firstOf<T>(coros: readonly Coroutine<T>[]): Coroutine<T> {
  checkArray("race", coros);
  if (coros.length === 0) throw new TypeError("Cannot race no coroutines: nobody would win");
  let winner: Task<T> | undefined;
  const tasks = yield* taskGroup((group) =>
    startEach(group, coros, (task) => {
      if (winner || task.cancelled || task.error !== undefined) return;
      winner = task;
      group.cancel("the race is over");
    })
  );
  return (winner ?? tasks[0]).result();
}

/**
 * The body of the groups of `all` and `race`. Not a `function*` inside these: making one at each call would cost more than
 * the rest of a small group.
 */
function* startEach<T>(
  group: TaskGroup,
  coros: readonly Coroutine<T>[],
  ended?: (task: Task<T>) => void,
): Coroutine<Task<T>[]> {
  const tasks: Task<T>[] = [];
  for (const coro of coros) tasks.push(group.createTask(coro));
  if (!ended) return tasks;
  for (const task of tasks) {
    task.addDoneCallback(ended);
    task.loop._unwatch(task); // Its error is the group's to throw.
  }
  return tasks;
}

function checkArray(what: "all" | "race", coros: unknown): void {
  if (!Array.isArray(coros)) throw new TypeError(`Cannot run ${what}: give it an array, as in ${what}([f(), g()])`);
}
