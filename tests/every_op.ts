/**
 * every_op.ts: runs a scenario again and again, and each time something else goes wrong in it.
 *
 * A first run counts the *moments* of the scenario: each op just before it begins, and each turn of the loop, when
 * every task waits or is ready. Then it runs again
 *
 * - for each moment and each task that lives at it: that task is cancelled there,
 * - for each moment: a deadline around the whole scenario passes there,
 * - for each op: an error is thrown in its place.
 *
 * After each run nothing may be left: no task, timer or socket, no lock held, no slot taken, no item or byte lost, no
 * `finally` not run, no error swallowed. The world is a simulated one, so the same moment is the same in every run.
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  Cancelled,
  type CancelScope,
  cancelScope,
  ClosedError,
  Condition,
  type Coroutine,
  Lock,
  Loop,
  type Op,
  ParkingLot,
  Queue,
  type SelectorKey,
  Semaphore,
  shield,
  type Socket,
  socketPair,
  type Task,
  TaskError,
  type TaskOptions,
  TimeoutError,
} from "../mod.ts";
import { World } from "./world.ts";

/** What goes wrong. */
export type Fault =
  | { kind: "nothing" }
  | { kind: "cancel"; moment: number; task: number }
  | { kind: "timeout"; moment: number }
  | { kind: "error"; op: number };

/** A program to be disturbed. It ends by itself, and everything it uses it gets from `lab`. */
export type Scenario = (lab: Lab) => Coroutine<unknown>;

/** The error that is thrown in the place of an op. */
export class Boom extends Error {
  override name = "Boom";
}

/** How many turns a scenario may take before it counts as endless. */
const TURNS_MAX = 5000;
/** How long it may wait for the platform, in real milliseconds. */
const PATIENCE = 1000;

interface Ledger {
  queue: Queue<any>;
  put: unknown[];
  taken: unknown[];
}

interface Wire {
  /** What was handed over, and whether that is known exactly. */
  sent: number[];
  exact: boolean;
  received: number[];
  ended: boolean;
}

/** Where a scenario gets its locks, queues and sockets from, and where the books on them are kept. */
export class Lab {
  readonly loop: Loop;
  readonly #locks: { locked: boolean }[] = [];
  readonly #semaphores: { semaphore: Semaphore; max: number }[] = [];
  readonly #ledgers = new Map<Queue<any>, Ledger>();
  readonly #sockets: Socket[] = [];
  readonly #wires = new Map<Socket, { out: Wire; in: Wire }>();
  #entered = 0;
  #left = 0;
  /** Errors that the scenario took care of itself. */
  readonly handled: unknown[] = [];

  constructor(loop: Loop) {
    this.loop = loop;
  }

  lock(): Lock {
    const lock = new Lock();
    this.#locks.push(lock);
    return lock;
  }

  condition(lock?: Lock): Condition {
    const condition = new Condition(lock);
    this.#locks.push(condition);
    return condition;
  }

  semaphore(max: number): Semaphore {
    const semaphore = new Semaphore(max);
    this.#semaphores.push({ semaphore, max });
    return semaphore;
  }

  /** Keeps the books on `queue`, by default a new one. */
  queue<T>(maxsize: number, queue: Queue<T> = new Queue<T>(maxsize)): Queue<T> {
    this.#ledgers.set(queue, { queue, put: [], taken: [] });
    return queue;
  }

  *put<T>(queue: Queue<T>, item: T): Coroutine<void> {
    yield* queue.put(item);
    this.#ledgers.get(queue)!.put.push(item);
  }

  *get<T>(queue: Queue<T>): Coroutine<T> {
    const item = yield* queue.get();
    this.#ledgers.get(queue)!.taken.push(item);
    return item;
  }

  /** Gets until the queue is closed and empty. */
  *drain<T>(queue: Queue<T>, use: (item: T) => Coroutine<void>): Coroutine<void> {
    for (;;) {
      let item: T;
      try {
        item = yield* this.get(queue);
      } catch (error) {
        if (error instanceof ClosedError) return;
        throw error;
      }
      yield* use(item);
    }
  }

  pair(): [Socket, Socket] {
    const pair = socketPair();
    const wires: Wire[] = [0, 1].map(() => ({ sent: [], exact: true, received: [], ended: false }));
    this.#sockets.push(...pair);
    this.#wires.set(pair[0], { out: wires[0], in: wires[1] });
    this.#wires.set(pair[1], { out: wires[1], in: wires[0] });
    return pair;
  }

  *send(sock: Socket, data: Uint8Array): Coroutine<void> {
    const wire = this.#wires.get(sock)!.out;
    try {
      yield* this.loop.sockSendall(sock, data);
      wire.sent.push(...data);
    } catch (error) {
      if (error instanceof Cancelled) wire.sent.push(...data.subarray(0, error.bytesSent));
      else wire.sent.push(...data);
      if (!(error instanceof Cancelled)) wire.exact = false;
      throw error;
    }
  }

  *recv(sock: Socket, maxBytes: number): Coroutine<Uint8Array> {
    const wire = this.#wires.get(sock)!.in;
    const data = yield* this.loop.sockRecv(sock, maxBytes);
    wire.received.push(...data);
    wire.ended ||= data.length === 0;
    return data;
  }

  /** Runs `body`, and `cleanup` after it, whatever happens: out of reach of every cancellation, to its end. */
  *tidy<T>(body: Coroutine<T>, cleanup?: () => Coroutine<unknown>): Coroutine<T> {
    this.#entered++;
    try {
      return yield* body;
    } finally {
      this.#left++;
      if (cleanup) yield* this.#cleanUp(cleanup);
    }
  }

  *#cleanUp(cleanup: () => Coroutine<unknown>): Coroutine<void> {
    this.#entered++;
    try {
      yield* shield(cleanup());
    } catch (error) {
      if (error instanceof Boom) this.#left++; // Nothing else may cut it short.
      throw error;
    }
    this.#left++;
  }

  /** What must be true when all is over. */
  check(): void {
    assertEquals(this.#left, this.#entered, "every finally ran, and every cleanup to its end");
    assertEquals(this.#locks.map((lock) => lock.locked), this.#locks.map(() => false), "every lock is free");
    for (const { semaphore, max } of this.#semaphores) assertEquals(semaphore.value, max, "every slot is free");
    for (const ledger of this.#ledgers.values()) checkLedger(ledger);
    for (const sock of this.#sockets) assertThrows(() => sock.recv(1), ClosedError);
    for (const { out } of this.#wires.values()) checkWire(out);
  }
}

function checkLedger({ queue, put, taken }: Ledger): void {
  const got = [...taken];
  while (queue.size > 0) got.push(queue.getNowait());
  // A plain queue keeps the order too.
  const order = queue.constructor === Queue ? (items: unknown[]) => items : (items: unknown[]) => items.toSorted();
  assertEquals(order(got), order(put), "no item is lost, doubled or overtaken");
  if (queue.closed || queue.maxsize === Infinity) return;
  for (let i = 0; i < queue.maxsize; i++) queue.putNowait(i); // throws if a slot is not free
}

function checkWire(wire: Wire): void {
  assertEquals(wire.received, wire.sent.slice(0, wire.received.length), "what arrives is what was sent");
  if (wire.ended && wire.exact) assertEquals(wire.received.length, wire.sent.length, "all of it arrives");
}

// -------------------------------------
// One run
// -------------------------------------

/** A world that says when a turn begins, and gives up on a loop that gets nowhere. */
class WatchedWorld extends World {
  onTurn: () => void = () => {};
  #nested = false;
  #turns = 0;

  #turn(): void {
    if (this.#nested) return;
    if (++this.#turns > TURNS_MAX) throw new Error("The scenario does not end");
    this.onTurn();
  }

  override poll(): [SelectorKey, number][] {
    this.#turn();
    return super.poll();
  }

  override async select(timeout?: number): Promise<[SelectorKey, number][]> {
    this.#turn();
    this.#nested = true;
    let stuck = false;
    const timer = timeout === undefined
      ? setTimeout(() => {
        stuck = true;
        this.wakeup();
      }, PATIENCE)
      : undefined;
    try {
      const events = await super.select(timeout);
      if (stuck) throw new Error("The scenario waits for ever");
      return events;
    } finally {
      this.#nested = false;
      clearTimeout(timer);
    }
  }
}

/** A loop that gives each coroutine to `drive` before it makes a task of it. */
class DrivenLoop extends Loop {
  drive: <T>(coro: Coroutine<T>) => Coroutine<T> = (coro) => coro;

  override createTask<T>(coro: Coroutine<T>, options?: TaskOptions): Task<T> {
    return super.createTask(this.drive(coro), options);
  }
}

/** What the library has to wait for, so that nothing outlives its block: no error can come from there. */
function isAwaitingTheEnd(op: Op): boolean {
  const lot = op[1];
  return op[0] === "park" && lot instanceof ParkingLot && /^(the tasks of its group|task \d+.*)$/.test(lot.name);
}

/** One run of one scenario, with one fault. */
class Trial {
  /** How many tasks lived at each moment. */
  readonly moments: number[] = [];
  /** How many ops an error could be thrown at. */
  ops = 0;
  /** Whether the fault came about. */
  struck = false;
  readonly #boom = new Boom("instead of the op");
  readonly #fault: Fault;
  readonly #world = new WatchedWorld();
  readonly #reported: unknown[] = [];
  readonly #loop: DrivenLoop;
  readonly #lab: Lab;
  #scope!: CancelScope;

  constructor(fault: Fault) {
    this.#fault = fault;
    this.#loop = new DrivenLoop({
      selector: this.#world,
      clock: this.#world,
      trace: () => this.#moment(),
      onError: (error) => this.#reported.push(error),
    });
    this.#world.onTurn = () => this.#moment();
    if (fault.kind === "error" || fault.kind === "nothing") this.#loop.drive = (coro) => this.#drive(coro);
    this.#lab = new Lab(this.#loop);
  }

  async run(scenario: Scenario): Promise<void> {
    const main = cancelScope((scope) => {
      this.#scope = scope;
      return scenario(this.#lab);
    });
    const outcome: unknown[] = [];
    try {
      await this.#loop.run(main);
    } catch (error) {
      outcome.push(error);
    }
    this.#check(outcome);
  }

  #moment(): void {
    const tasks = [...this.#loop.tasks];
    const moment = this.moments.push(tasks.length) - 1;
    const fault = this.#fault;
    if (fault.kind === "nothing" || fault.kind === "error" || fault.moment !== moment) return;
    this.struck = true;
    if (fault.kind === "cancel") tasks[fault.task].cancel("the fault");
    else if (this.#scope) this.#scope.deadline = this.#world.now();
  }

  *#drive<T>(coro: Coroutine<T>): Coroutine<T> {
    let result = coro.next();
    while (!result.done) {
      if (!isAwaitingTheEnd(result.value) && this.ops++ === (this.#fault as { op?: number }).op) {
        this.struck = true;
        result = coro.throw(this.#boom);
        continue;
      }
      let answer: unknown;
      try {
        answer = yield result.value;
      } catch (error) {
        result = coro.throw(error);
        continue;
      }
      result = coro.next(answer);
    }
    return result.value;
  }

  #check(outcome: unknown[]): void {
    const errors = [...outcome, ...this.#reported].flatMap(leaves);
    const expected = this.#fault.kind === "nothing" ? () => false : isExpected;
    for (const error of errors) if (!expected(error)) throw error;
    if (this.#fault.kind === "error" && this.struck) {
      assert([...errors, ...this.#lab.handled].includes(this.#boom), "the error was swallowed");
    }
    assertEquals([...this.#loop.tasks].map(String), [], "no task lives");
    assertEquals(this.#loop.ready.length, 0, "no task is ready");
    assertEquals(this.#loop._timers.length, 0, "no timer is set");
    assertEquals(this.#loop._parked, 0, "no task is parked");
    this.#lab.check();
  }
}

/** The errors in `error`, and what they came in the wake of. */
function leaves(error: unknown): unknown[] {
  if (error instanceof AggregateError) return error.errors.flatMap(leaves);
  if (error instanceof TaskError && error.cause) return leaves(error.cause);
  return [error];
}

const { BrokenPipe, ConnectionReset } = Deno.errors;

/** What a fault in one task may bring about in others. */
function isExpected(error: unknown): boolean {
  return [Boom, Cancelled, TimeoutError, ClosedError, BrokenPipe, ConnectionReset].some((kind) =>
    error instanceof kind
  );
}

// -------------------------------------
// All runs
// -------------------------------------

async function attempt(scenario: Scenario, fault: Fault): Promise<Trial> {
  const trial = new Trial(fault);
  try {
    await trial.run(scenario);
  } catch (error) {
    throw new Error(`With ${JSON.stringify(fault)}: ${error instanceof Error ? error.message : error}`, {
      cause: error,
    });
  }
  return trial;
}

/** Runs `scenario` undisturbed, then with every cancellation, every timeout or every error; says how many runs it took. */
async function disturb(scenario: Scenario, kind: "cancel" | "timeout" | "error"): Promise<number> {
  const { moments, ops } = await attempt(scenario, { kind: "nothing" });
  const faults: Fault[] = [];
  if (kind === "error") { for (let op = 0; op < ops; op++) faults.push({ kind, op }); }
  for (const [moment, tasks] of moments.entries()) {
    if (kind === "timeout") faults.push({ kind, moment });
    if (kind === "cancel") { for (let task = 0; task < tasks; task++) faults.push({ kind, moment, task }); }
  }
  for (const fault of faults) assert((await attempt(scenario, fault)).struck, `${JSON.stringify(fault)} never came`);
  return faults.length;
}

/** A test for each scenario and each kind of fault; `rules` are the numbers its name begins with. */
export function testAtEveryOp(
  scenarios: Readonly<Record<string, Scenario>>,
  rules: Readonly<Record<"cancel" | "timeout" | "error", string>>,
): void {
  for (const [name, scenario] of Object.entries(scenarios)) {
    for (const kind of ["cancel", "timeout", "error"] as const) {
      Deno.test(`${rules[kind]} ${kind} at every op: ${name}`, async () => {
        const runs = await disturb(scenario, kind);
        assert(runs >= 6, `only ${runs} runs`);
      });
    }
  }
}
