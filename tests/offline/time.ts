/**
 * A stand-in for what the tests use of `@std/testing/time`: a clock for `Date`, `setTimeout` and `setInterval` that moves
 * when it is told to. `performance.now()` and `setImmediate` stay real.
 *
 * @module
 */

interface Timer {
  due: number;
  readonly every: number | null;
  readonly run: () => void;
}

const real = {
  Date,
  setTimeout: globalThis.setTimeout,
  clearTimeout: globalThis.clearTimeout,
  setInterval: globalThis.setInterval,
  clearInterval: globalThis.clearInterval,
};

/** Takes the clock out of the hands of the platform until it is restored. */
export class FakeTime implements Disposable {
  static #current: FakeTime | null = null;
  readonly #timers = new Map<number, Timer>();
  #nextId = 1;
  #now: number;
  /** The time it began with. */
  readonly start: number;

  constructor(start: number | string | Date | null = null) {
    if (FakeTime.#current) throw new Error("Cannot fake time: it is faked already");
    this.start = start === null ? Date.now() : new Date(start).valueOf();
    this.#now = this.start;
    FakeTime.#current = this;
    this.#install();
  }

  /** The fake time, in milliseconds; setting it fires what is due by then, in order. */
  get now(): number {
    return this.#now;
  }

  set now(value: number) {
    if (value < this.#now) throw new RangeError(`Cannot set the time back from ${this.#now} to ${value}`);
    for (let next = this.#earliest(); next && next[1].due <= value; next = this.#earliest()) this.#fire(...next);
    this.#now = value;
  }

  /** Moves on by `ms` milliseconds. */
  tick(ms = 0): void {
    this.now += ms;
  }

  /** Lets pending promises settle, then moves on by `ms` milliseconds. */
  async tickAsync(ms = 0): Promise<void> {
    await this.runMicrotasks();
    this.tick(ms);
  }

  /** Moves on to the next timer, if there is one, and says whether there was. */
  next(): boolean {
    const next = this.#earliest();
    if (next) this.now = next[1].due;
    return next !== null;
  }

  /** Lets pending promises settle, then moves on to the next timer. */
  async nextAsync(): Promise<boolean> {
    await this.runMicrotasks();
    return this.next();
  }

  /** Lets pending promises settle: a moment of real time. */
  async runMicrotasks(): Promise<void> {
    await this.delay(0);
  }

  /** Waits for `ms` milliseconds of real time. */
  async delay(ms: number): Promise<void> {
    await new Promise((resolve) => real.setTimeout.call(globalThis, resolve as () => void, ms));
  }

  /** Gives the clock back to the platform. Timers that have not fired never will. */
  restore(): void {
    if (FakeTime.#current !== this) throw new Error("Cannot restore time: it is not faked");
    FakeTime.#current = null;
    Object.assign(globalThis, real);
  }

  /** Restores the time at the end of a block. */
  [Symbol.dispose](): void {
    this.restore();
  }

  #install(): void {
    const set = (repeat: boolean) => (callback: (...args: unknown[]) => void, delay = 0, ...args: unknown[]) => {
      const every = Math.max(Math.floor(delay), repeat ? 1 : 0);
      const run = () => callback(...args);
      this.#timers.set(this.#nextId, { due: this.#now + every, every: repeat ? every : null, run });
      return this.#nextId++;
    };
    const clear = (id: number) => void this.#timers.delete(id);
    Object.assign(globalThis, {
      Date: fakeDate(() => this.#now),
      setTimeout: set(false),
      setInterval: set(true),
      clearTimeout: clear,
      clearInterval: clear,
    });
  }

  /** The timer that fires next; of those due at once, the one set first. A map keeps its order of insertion. */
  #earliest(): [number, Timer] | null {
    let first: [number, Timer] | null = null;
    for (const entry of this.#timers) if (!first || entry[1].due < first[1].due) first = entry;
    return first;
  }

  #fire(id: number, timer: Timer): void {
    this.#now = timer.due;
    this.#timers.delete(id);
    if (timer.every !== null) this.#timers.set(id, { ...timer, due: timer.due + timer.every });
    timer.run();
  }
}

/** A `Date` that reads the time from `now`. */
function fakeDate(now: () => number): DateConstructor {
  return new Proxy(real.Date, {
    construct: (target, args, self) => Reflect.construct(target, args.length > 0 ? args : [now()], self),
    apply: () => new real.Date(now()).toString(),
    get: (target, key) => key === "now" ? now : Reflect.get(target, key),
  });
}
