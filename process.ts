/**
 * process.ts: the process around the loop, its signals and its workers.
 *
 * A signal comes from outside the program, and work that burns CPU has to leave the loop's thread. Waiting for either is
 * built on one op, `until`, and on the primitives of `sync.ts`.
 *
 * The rules:
 *
 * - A listener is removed when its wait or block is over, however it ends: the program then answers the signal as the
 *   platform does, which for most signals is to end.
 * - A worker is terminated with the block that uses it, and never ends the program: what goes wrong in it is thrown to
 *   whoever waits. (With two exceptions, where Deno ends the program: when a worker runs out of memory, and when a thread is
 *   to start and the process may open no more files.)
 * - To cancel a run is to terminate its thread. A thread in doubt is never used again.
 *
 * Besides `net.ts` this is the only file that knows the platform: signals are Deno's. The threads are those of
 * `node:worker_threads`, which Deno has built in, and which is loaded at the first run. Discussion: the web's `Worker` would
 * be closer at hand, but an idle one keeps the program from ending, and a computing one even when terminated. Neither kind
 * stops at once in the middle of a computation: Deno 2.9 lets the thread go and may take seconds to stop it.
 *
 * @module
 */

import type { Worker } from "node:worker_threads";
import {
  callHook,
  type CancelScope,
  cancelScope,
  checkFunctions,
  checkpoint,
  ClosedError,
  type Coroutine,
  currentTask,
  Deque,
  hush,
  kind,
  type Loop,
  until,
} from "./loop.ts";
import { shield } from "./scope.ts";
import { Lock, Semaphore } from "./sync.ts";

// -------------------------------------
// Signals
// -------------------------------------

/** How many signals a {@linkcode SignalQueue} keeps; a flood that nobody reads must not fill the memory. */
const SIGNALS_MAX = 1024;

/**
 * Waits for one delivery of a signal, or of one of several, and returns its name. It listens from its first step until it
 * returns or throws. A signal that comes before or after that has the platform's own effect; to miss none between two
 * waits, use a {@linkcode SignalQueue}.
 *
 * @throws {TypeError} If no signal is named, or one that the platform does not know or lets nobody listen for (`SIGKILL`).
 *
 * @example
 * ```ts
 * import { Loop, moveOnAfter, signal } from "@yieldloop/yieldloop";
 *
 * const name = await new Loop().run(moveOnAfter(5, signal("SIGINT", "SIGTERM")));
 * console.log(name ?? "nobody pressed Ctrl-C");
 * ```
 */
export function signal(...names: Deno.Signal[]): Coroutine<Deno.Signal> {
  checkSignals(names);
  return nextSignal(names);
}

function* nextSignal(names: Deno.Signal[]): Coroutine<Deno.Signal> {
  using signals = new SignalQueue(...names);
  return yield* signals.get();
}

/**
 * Listens for signals from when it is made until it is closed, and keeps them in the order they came; beyond 1024 they are
 * dropped. (The platform may take two of the same name for one if they come faster than it looks.) A task that waits keeps
 * the program going; a queue that only listens does not. After curio's `SignalQueue`.
 *
 * @example
 * ```ts
 * import { Loop, moveOnAfter, SignalQueue } from "@yieldloop/yieldloop";
 *
 * function* main() {
 *   using signals = new SignalQueue("SIGINT");
 *   const first = yield* moveOnAfter(5, signals.get());
 *   if (first) console.log("once more to end at once");
 * }
 * await new Loop().run(main());
 * ```
 */
export class SignalQueue implements Disposable {
  readonly #arrived = new Deque<Deno.Signal>();
  /** Only one waits for the next arrival; the others wait for that one. */
  readonly #lock = new Lock();
  #arrival: PromiseWithResolvers<void> | null = null;
  /** Keeps the program going while somebody waits. */
  #hold: ReturnType<typeof setInterval> | undefined;
  /** The scopes of those who wait. */
  readonly #getters = new Set<CancelScope>();
  #listeners: [name: Deno.Signal, listener: () => void][] = [];
  #closed = false;

  /**
   * Begins to listen.
   *
   * @throws {TypeError} If no signal is named, or one that the platform does not know or lets nobody listen for (`SIGKILL`).
   */
  constructor(...names: Deno.Signal[]) {
    checkSignals(names);
    try {
      for (const name of new Set(names)) this.#listen(name);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** How many have come and were not taken yet. */
  get size(): number {
    return this.#arrived.length;
  }

  /**
   * Waits for a signal and returns its name. If it is cancelled, the next `get` gets what comes.
   *
   * @throws {ClosedError} If the queue is closed and nothing is left in it.
   */
  *get(): Coroutine<Deno.Signal> {
    // Closed, it asks for no turn: a task of a stopped loop may have it, and would never pass it on.
    yield* this.#closed ? checkpoint() : inOneOf(this.#getters, this.#waitInTurn());
    const name = this.#arrived.popleft();
    if (name === undefined) throw new ClosedError("Cannot get from the signal queue: it is closed");
    return name;
  }

  /** Waits until its turn has come, and a signal. */
  *#waitInTurn(): Coroutine<void> {
    using _guard = yield* this.#lock.acquire();
    if (this.#arrived.length === 0) yield* this.#nextArrival();
  }

  *#nextArrival(): Coroutine<void> {
    // To Deno a listener is no reason to keep the program going; a task that waits for it is.
    this.#hold = setInterval(() => {}, 2 ** 31 - 1);
    try {
      // A new one for each wait: a cancelled wait leaves nothing to the next.
      const signal = () => (this.#arrival = Promise.withResolvers()).promise;
      yield* until(signal); // The name is what a trace shows.
    } finally {
      clearInterval(this.#hold);
    }
  }

  /** Stops listening. Whoever waits gets {@linkcode ClosedError}. Closing twice is fine. */
  close(): void {
    this.#closed = true;
    for (const [name, listener] of this.#listeners) Deno.removeSignalListener(name, listener);
    this.#listeners = [];
    cancelAll(this.#getters);
    clearInterval(this.#hold); // The loop of the one who waits may have been stopped.
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #listen(name: Deno.Signal): void {
    const listener = () => {
      if (this.#arrived.length < SIGNALS_MAX) this.#arrived.append(name);
      this.#arrival?.resolve();
    };
    Deno.addSignalListener(name, listener);
    this.#listeners.push([name, listener]);
  }
}

/** Runs `coro` in a scope that is one of `scopes` meanwhile; undefined if that was cancelled. */
function inOneOf<T>(scopes: Set<CancelScope>, coro: Coroutine<T>): Coroutine<T | undefined> {
  return cancelScope(function* (scope) {
    scopes.add(scope);
    try {
      return yield* coro;
    } finally {
      scopes.delete(scope);
    }
  });
}

function cancelAll(scopes: Set<CancelScope>): void {
  for (const scope of scopes) scope.cancel();
}

function checkSignals(names: string[]): void {
  if (names.length === 0) throw new TypeError('Cannot wait for no signal: name one, as in signal("SIGINT")');
  const wrong = names.findIndex((name) => typeof name !== "string");
  if (wrong >= 0) {
    throw new TypeError(`Cannot wait for signal ${kind(names[wrong])}: it must be a name such as "SIGINT"`);
  }
  if (typeof globalThis.Deno?.addSignalListener !== "function") {
    throw new Error(`Cannot wait for ${names.join(", ")}: this platform is not Deno, whose signals these are`);
  }
}

// -------------------------------------
// Workers
// -------------------------------------

/** How long a cancelled run waits for its thread to end, in milliseconds, before it leaves that to the platform. */
const TERMINATE_MAX = 1000;

/** Options of {@linkcode runInWorker} and {@linkcode WorkerPool.run}. */
export interface WorkerRunOptions {
  /** Which parts of the arguments are moved to the worker, not copied: an `ArrayBuffer`, say. Default: none. */
  transfer?: Transferable[] | undefined;
  /** The name of the function that a module exports. Default: `"default"`. */
  exportName?: string | undefined;
}

/** Options of {@linkcode WorkerPool}. */
export interface WorkerPoolOptions {
  /**
   * Told of an error that a worker throws between two runs; one thrown during a run, by whatever is left of an earlier one
   * too, is that run's. Default: prints it to stderr.
   */
  onError?: ((error: unknown) => void) | undefined;
}

/**
 * Runs a function in a thread of its own, so that the loop goes on while it computes, and returns its result (awaited, if
 * it is a promise). If the wait is cancelled the thread is terminated, and the loop goes on at once; Deno may take some
 * seconds to stop a computation in it, so one that has to stop at once should watch a flag in shared memory.
 *
 * The function travels as its source text: it must stand on its own and can use nothing of the file around it, only the
 * platform's globals and `await import(...)` of absolute addresses. Arguments and result are copied as by `structuredClone`,
 * the arguments when the run begins. (But where that refuses one of the platform's objects, say a `URL` or a `Headers`, Deno's
 * threads make an empty object of it: pass its text.) To run more than that, give the address of a module,
 * `new URL("./job.ts", import.meta.url)`, whose default export is called; that needs the permission to read it.
 *
 * An error thrown in the thread, or left uncaught there, is thrown here, with its name, message, stack and cause, as one of
 * the built-in classes or a plain `Error`. What it posts with `postMessage` goes nowhere; to report progress, give it a
 * `MessagePort` among the arguments and in `transfer`.
 *
 * @throws {TypeError} If `work` is neither a function that can travel nor the absolute address of a module.
 * @throws {DOMException} `DataCloneError`, if an argument cannot be copied; an `Error` of that name, if the result cannot.
 * @throws {Error} If the worker ends without a result.
 *
 * @example
 * ```ts
 * import { Loop, runInWorker } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function fibonacci(n: number): number {
 *   return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
 * }
 * assertEquals(await new Loop().run(runInWorker(fibonacci, [10])), 55);
 * ```
 */
export function runInWorker<A extends readonly any[], T>(
  work: (...args: A) => T,
  args: Readonly<A>,
  options?: WorkerRunOptions,
): Coroutine<Awaited<T>>;
/** Runs a function that needs no arguments in a thread of its own, and returns its result. */
export function runInWorker<T>(work: () => T): Coroutine<Awaited<T>>;
/**
 * Runs a function that a module exports in a thread of its own, and returns its result. `work` is the module's absolute
 * address, such as `new URL("./job.ts", import.meta.url)`; it needs the permission to read that.
 */
export function runInWorker<T = any>(
  work: URL | string,
  args?: readonly unknown[],
  options?: WorkerRunOptions,
): Coroutine<T>;
export function runInWorker(work: any, args: any = [], options: WorkerRunOptions = {}): Coroutine<any> {
  return runAlone(makeJob(work, args, options));
}

function* runAlone(job: Job): Coroutine<unknown> {
  using pool = new WorkerPool(1);
  return yield* pool._run(job);
}

/**
 * Threads that share the work they are given. One is started when it is first needed, and used again if its run returned or
 * threw: what that left in `globalThis`, the next run finds. A thread whose run was cancelled, or that left an error
 * uncaught, is ended, and another takes its place. If no thread is free, runs wait, first come first served. Idle threads
 * do not keep the program from ending.
 *
 * @example
 * ```ts
 * import { all, Loop, WorkerPool } from "@yieldloop/yieldloop";
 * import { assertEquals } from "@std/assert";
 *
 * function* main() {
 *   using pool = new WorkerPool(2);
 *   const square = (n: number) => n * n;
 *   return yield* all([pool.run(square, [3]), pool.run(square, [4]), pool.run(square, [5])]);
 * }
 * assertEquals(await new Loop().run(main()), [9, 16, 25]);
 * ```
 */
export class WorkerPool implements Disposable {
  /** How many threads there are at most. */
  readonly size: number;
  readonly #slots: Semaphore;
  readonly #idle: Thread[] = [];
  readonly #busy = new Set<Thread>();
  /** The scopes of those who wait for a thread, for `close`. */
  readonly #waiting = new Set<CancelScope>();
  /** How many tasks of each loop wait for a thread or have one. */
  readonly #users = new Map<Loop, number>();
  readonly #onError: (error: unknown) => void;
  #closed = false;

  /**
   * Makes a pool of at most `size` threads, by default as many as the machine runs at once.
   *
   * @throws {RangeError} If `size` is not a whole number from 1 up.
   * @throws {TypeError} If `onError` is not a function.
   */
  constructor(size: number = navigator.hardwareConcurrency, options: WorkerPoolOptions = {}) {
    if (!Number.isInteger(size) || size < 1) {
      throw new RangeError(`Cannot make a pool of ${kind(size)} workers: the number must be a whole one from 1 up`);
    }
    const { onError = (error) => console.error("Error in a worker after its run:", error) } = options;
    checkFunctions("make a pool of workers", { onError });
    this.size = size;
    this.#slots = new Semaphore(size);
    this.#onError = onError;
  }

  /** How many threads run something. */
  get busy(): number {
    return this.#busy.size;
  }

  /** How many threads wait for something to run. */
  get idle(): number {
    return this.#idle.length;
  }

  /**
   * Waits for a free thread and runs `work` in it, as {@linkcode runInWorker} does.
   *
   * @throws {TypeError} If `work` is neither a function that can travel nor the absolute address of a module.
   * @throws {ClosedError} If the pool is closed, or gets closed meanwhile.
   */
  run<A extends readonly any[], T>(
    work: (...args: A) => T,
    args: Readonly<A>,
    options?: WorkerRunOptions,
  ): Coroutine<Awaited<T>>;
  /** Waits for a free thread and runs a function in it that needs no arguments. */
  run<T>(work: () => T): Coroutine<Awaited<T>>;
  /** Waits for a free thread and runs a function in it that a module exports; `work` is its absolute address. */
  run<T = any>(work: URL | string, args?: readonly unknown[], options?: WorkerRunOptions): Coroutine<T>;
  run(work: any, args: any = [], options: WorkerRunOptions = {}): Coroutine<any> {
    return this._run(makeJob(work, args, options));
  }

  /** @ignore */
  *_run(job: Job): Coroutine<unknown> {
    this.#checkOpen();
    const { loop } = currentTask();
    // A thread that a task of another loop will give back comes from outside.
    if (this.#slots.value === 0) { for (const other of this.#users.keys()) loop._noteWait(other); }
    this.#users.set(loop, (this.#users.get(loop) ?? 0) + 1);
    try {
      return yield* this.#runInTurn(job);
    } finally {
      const left = this.#users.get(loop)! - 1;
      if (left > 0) this.#users.set(loop, left);
      else this.#users.delete(loop);
    }
  }

  *#runInTurn(job: Job): Coroutine<unknown> {
    using _slot = yield* inOneOf(this.#waiting, this.#slots.acquire());
    this.#checkOpen();
    const thread = this.#idle.pop() ?? (yield* this.#start());
    this.#busy.add(thread);
    const runInWorker = () => thread.perform(job);
    try {
      return yield* until(runInWorker); // The name is what a trace shows.
    } finally {
      this.#busy.delete(thread);
      if (thread.free) this.#idle.push(thread);
      else {
        const ended = thread.terminate(); // Begun at once: who returns this coroutine by force waits for nothing.
        yield* shield(until(ended), { timeout: TERMINATE_MAX });
      }
    }
  }

  /** Ends every thread. Whoever waits for a run gets {@linkcode ClosedError}. Closing twice is fine. */
  close(): void {
    this.#closed = true;
    cancelAll(this.#waiting);
    for (const thread of [...this.#idle.splice(0), ...this.#busy]) thread.terminate(closedError());
  }

  /** `close()`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  *#start(): Coroutine<Thread> {
    const { Worker } = yield* until(() => import("node:worker_threads"));
    this.#checkOpen();
    const thread: Thread = new Thread(Worker, (error) => {
      const place = this.#idle.indexOf(thread);
      if (place >= 0) this.#idle.splice(place, 1);
      this.#report(error);
    });
    return thread;
  }

  #report(error: unknown): void {
    // What the hook throws must not end the program.
    callHook(() => this.#onError(error), (hookError) => console.error("Error in a hook:", hookError));
  }

  #checkOpen(): void {
    if (this.#closed) throw closedError();
  }
}

function closedError(): ClosedError {
  return new ClosedError("Cannot run in the worker pool: it is closed");
}

// -------------------------------------
// A thread, seen from this side and from the other
// -------------------------------------

/** What a thread is sent: the text of a function, or where to find one; and what to call it with. */
interface Request {
  source?: string;
  module?: string;
  exportName: string;
  args: readonly unknown[];
}

/** A request, and which parts of it are moved. */
interface Job {
  request: Request;
  transfer: Transferable[];
}

/** What a thread answers. `stray` marks an uncaught error; `key` tells it from messages that the function posts. */
interface Answer {
  key: string;
  value?: unknown;
  thrown?: Thrown;
  stray?: boolean;
}

/** What was thrown: an error in parts that can be copied, as a copy of the error itself would lose its name. */
type Thrown = { error: ErrorParts } | { other: unknown };

interface ErrorParts {
  name: string;
  message: string;
  stack: string | undefined;
  cause: Thrown | undefined;
  /** Those of an `AggregateError`. */
  errors: Thrown[] | undefined;
}

function makeJob(work: unknown, args: readonly unknown[], options: WorkerRunOptions): Job {
  if (!Array.isArray(args)) throw new TypeError("Cannot run in a worker: the arguments must be an array");
  const { transfer = [], exportName = "default" } = options;
  if (typeof work === "function") return { request: { source: textOf(work), exportName, args }, transfer };
  if (!(work instanceof URL) && typeof work !== "string") {
    hush(work); // Perhaps the promise of a module.
    throw new TypeError(`Cannot run ${kind(work)} in a worker: it must be a function or the URL of a module`);
  }
  if (!URL.canParse(String(work))) {
    throw new TypeError(
      `Cannot run module "${work}" in a worker: its address must be absolute, as of new URL("${work}", import.meta.url)`,
    );
  }
  return { request: { module: String(work), exportName, args }, transfer };
}

function textOf(work: { name: string; constructor?: { name: string } }): string {
  const what = `Cannot run function "${work.name}" in a worker`;
  if (/Generator/.test(work.constructor?.name ?? "")) {
    throw new TypeError(`${what}: it is a generator, not a plain function`);
  }
  const source = Function.prototype.toString.call(work);
  if (/\{\s*\[native code\]\s*\}$/.test(source)) throw new TypeError(`${what}: it is native or bound, and has no text`);
  if (/^class(?![\w$])/.test(source)) throw new TypeError(`${what}: it is a class`);
  return source;
}

/** A worker that performs one job at a time. */
class Thread {
  readonly #key: string = crypto.randomUUID();
  readonly #worker: Worker;
  readonly #onStray: (error: unknown) => void;
  #job: PromiseWithResolvers<unknown> | null = null;
  #ended = false;

  constructor(Class: typeof Worker, onStray: (error: unknown) => void) {
    const worker = new Class(`(${serveJobs})(require, "${this.#key}")`, { eval: true });
    this.#worker = worker;
    this.#onStray = onStray;
    worker.unref(); // Only a job keeps the program from ending.
    worker.on("message", (message: any) => {
      if (message?.key === this.#key) this.#hear(message); // Anything else the function has posted itself.
    });
    worker.on("messageerror", (error: unknown) => this.#fail(error));
    worker.on("error", (error: unknown) => this.#fail(error));
    worker.on("exit", (code: number) => {
      this.#fail(new Error(`Cannot get a result from the worker: it has ended, with code ${code}`));
    });
  }

  /** Whether it can be given a job. */
  get free(): boolean {
    return !this.#ended && this.#job === null;
  }

  perform({ request, transfer }: Job): Promise<unknown> {
    const { promise } = this.#job = Promise.withResolvers<unknown>();
    try {
      this.#worker.postMessage(request, transfer as any);
    } catch (error) {
      this.#job = null;
      promise.catch(() => {}); // The pool may have been closed too, and nobody waits for it.
      throw error;
    }
    if (this.#job) this.#worker.ref(); // Copying an argument may run a getter, which may close the pool.
    return promise;
  }

  /** Ends the thread, and its job with `error`; without one nobody waits for the job. Resolves when the thread has ended. */
  async terminate(error?: unknown): Promise<void> {
    this.#ended = true;
    if (error !== undefined) this.#job?.reject(error);
    this.#job = null;
    await this.#worker.terminate();
  }

  #hear(answer: Answer): void {
    const error = answer.thrown && revive(answer.thrown);
    if (answer.stray) return this.#fail(error);
    this.#worker.unref();
    const job = this.#job;
    this.#job = null;
    if (answer.thrown) job?.reject(error);
    else job?.resolve(answer.value);
  }

  /** Something went wrong outside a run's own error: it cannot be used again. */
  #fail(error: unknown): void {
    if (this.#ended) return;
    if (!this.#job) this.#onStray(error);
    this.#job?.reject(error); // Here, as the error may be undefined.
    this.terminate();
  }
}

const BUILTIN: Record<string, ErrorConstructor> = {
  EvalError,
  RangeError,
  ReferenceError,
  SyntaxError,
  TypeError,
  URIError,
};

function revive(thrown: Thrown): unknown {
  return "error" in thrown ? reviveError(thrown.error) : thrown.other;
}

function reviveError({ name, message, stack, cause, errors }: ErrorParts): Error {
  const Class = Object.hasOwn(BUILTIN, name) ? BUILTIN[name] : Error;
  const options = cause && { cause: revive(cause) };
  const error = errors ? new AggregateError(errors.map(revive), message, options) : new Class(message, options);
  const set = (key: string, value: unknown) =>
    Object.defineProperty(error, key, { value, configurable: true, writable: true });
  if (error.name !== name) set("name", name);
  if (stack !== undefined) set("stack", stack);
  return error;
}

/** What runs in the thread. It gets there as text, which needs no permission, and can use nothing else of this file. */
function serveJobs(require: any, key: string): void {
  const port = require("node:worker_threads").parentPort;
  const process = require("node:process");
  (globalThis as any).self ??= globalThis; // As in every other thread: this kind comes without.
  const known = new Map<string, (...args: any[]) => unknown>();
  // As text: a registry that scans for imports would warn of one whose address it cannot know.
  const load: (module: string) => Promise<any> = (0, eval)("(module) => import(module)");

  async function find({ source, module, exportName }: Request): Promise<(...args: any[]) => unknown> {
    if (source === undefined) {
      const found = (await load(module!))[exportName];
      if (typeof found === "function") return found;
      throw new TypeError(`Cannot run module ${module} in a worker: it exports no function "${exportName}"`);
    }
    if (!known.has(source)) known.set(source, compile(source));
    return known.get(source)!;
  }

  function compile(source: string): (...args: any[]) => unknown {
    try {
      return (0, eval)(`"use strict"; (${source})`); // It was written in a module.
    } catch (error) {
      const why = "its text does not stand on its own, as that of a method does not";
      throw new TypeError(`Cannot run this function in a worker: ${why}`, { cause: error });
    }
  }

  /** Causes may form circles: each error is taken apart once, and at most 64 of them. */
  function inParts(thrown: any, seen: Set<unknown> = new Set()): Thrown {
    if (!(thrown instanceof Error)) return { other: thrown };
    const { name, message, stack, cause } = thrown;
    const whole = seen.size < 64 && !seen.has(thrown);
    seen.add(thrown);
    const within = (inner: unknown) =>
      whole && inner !== undefined && (inner instanceof Error || isCopyable(inner)) ? inParts(inner, seen) : undefined;
    return {
      error: {
        name: String(name),
        message: String(message),
        stack,
        cause: within(cause),
        errors: errorsOf(thrown)?.map((inner) => within(inner) ?? { other: undefined }),
      },
    };
  }

  function errorsOf(thrown: Error): unknown[] | undefined {
    try {
      return thrown instanceof AggregateError && Array.isArray(thrown.errors) ? thrown.errors : undefined;
    } catch {
      return undefined; // It throws when it is looked at.
    }
  }

  function isCopyable(value: unknown): boolean {
    try {
      structuredClone(value);
      return true;
    } catch {
      return false;
    }
  }

  function tell(thrown: unknown, stray: boolean): void {
    try {
      port.postMessage({ key, thrown: inParts(thrown), stray });
    } catch (error) {
      port.postMessage({ key, thrown: inParts(error), stray }); // What it threw cannot be copied.
    }
  }

  process.on("uncaughtException", (error: unknown) => tell(error, true));
  process.on("unhandledRejection", (error: unknown) => tell(error, true));
  // Not `port.on`: in Deno that searches all that arrives for ports, each element of an array too: a second for 5 MB.
  port.addEventListener("message", async ({ data: request }: MessageEvent<Request>) => {
    try {
      const work = await find(request);
      port.postMessage({ key, value: await work(...request.args) });
    } catch (error) {
      tell(error, false);
    }
  });
  port.addEventListener("messageerror", ({ data: cause }: MessageEvent) => {
    tell(new Error("Cannot run in a worker: what it was to be called with did not get through", { cause }), false);
  });
}
