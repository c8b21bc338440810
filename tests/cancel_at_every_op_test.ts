/**
 * Cancellation, timeouts and errors at every op of programs that use groups, queues, locks, conditions, sockets,
 * timeouts and shields together. What is checked after each run is in every_op.ts.
 */
import { assert } from "@std/assert";
import {
  all,
  checkpoint,
  ClosedError,
  type Coroutine,
  Event,
  failAfter,
  LifoQueue,
  moveOnAfter,
  PriorityQueue,
  race,
  shield,
  sleep,
  type Socket,
  taskGroup,
  TimeoutError,
  until,
} from "../mod.ts";
import { type Scenario, testAtEveryOp } from "./every_op.ts";

function bytes(n: number): Uint8Array {
  return Uint8Array.from({ length: n }, (_, i) => i);
}

/** Runs `body`, and closes `queue` when it has ended, so that who gets from it ends too. */
function* closing(queue: { close(): void }, body: Coroutine<unknown>): Coroutine<void> {
  try {
    yield* body;
  } finally {
    queue.close();
  }
}

const SCENARIOS: Record<string, Scenario> = {
  *"producers and consumers around a bounded queue"(lab) {
    const queue = lab.queue<number>(2);
    function* produce(from: number): Coroutine<void> {
      for (let i = 0; i < 3; i++) yield* lab.put(queue, from + i);
    }
    yield* taskGroup(function* (group) {
      for (let i = 0; i < 2; i++) group.createTask(lab.tidy(lab.drain(queue, () => sleep(1))));
      yield* closing(queue, all([lab.tidy(produce(0)), lab.tidy(produce(10))]));
    });
  },

  *"two locks, taken in order by three tasks"(lab) {
    const left = lab.lock();
    const right = lab.lock();
    let inside = 0;
    function* move(): Coroutine<void> {
      using _left = yield* left.acquire();
      yield* checkpoint();
      using _right = yield* right.acquire();
      assert(++inside === 1, "two tasks hold one lock");
      try {
        yield* sleep(1);
      } finally {
        inside--;
      }
    }
    yield* all([lab.tidy(move()), lab.tidy(move()), lab.tidy(move())]);
  },

  *"jobs with slots, timeouts within timeouts, and slow cleanup"(lab) {
    const slots = lab.semaphore(2);
    function* job(ms: number): Coroutine<void> {
      using _slot = yield* slots.acquire();
      yield* lab.tidy(moveOnAfter(20, lab.tidy(moveOnAfter(10, sleep(ms)), () => sleep(3))), () => sleep(2));
    }
    yield* moveOnAfter(100, all([job(5), job(15), job(1000), job(1)]));
  },

  *"a bounded buffer of one lock and two conditions"(lab) {
    const lock = lab.lock();
    const notFull = lab.condition(lock);
    const notEmpty = lab.condition(lock);
    const buffer: number[] = [];
    function* produce(): Coroutine<void> {
      for (let i = 0; i < 3; i++) {
        using _guard = yield* lock.acquire();
        yield* notFull.waitFor(() => buffer.length < 1);
        buffer.push(i);
        notEmpty.notifyAll();
      }
    }
    function* consume(): Coroutine<void> {
      for (let i = 0; i < 3; i++) {
        using _guard = yield* lock.acquire();
        yield* notEmpty.waitFor(() => buffer.length > 0);
        buffer.shift();
        notFull.notifyAll();
      }
    }
    // One that is cancelled leaves the other to wait: the timeout ends that.
    yield* moveOnAfter(50, all([produce(), consume(), produce(), consume()].map((coro) => lab.tidy(coro))));
  },

  *"an echo over a pair of sockets, with half-close"(lab) {
    const [client, server] = lab.pair();
    function* serve(): Coroutine<void> {
      using sock = server;
      for (let data = yield* lab.recv(sock, 4); data.length > 0; data = yield* lab.recv(sock, 4)) {
        yield* lab.send(sock, data);
      }
    }
    function* talk(): Coroutine<void> {
      using sock = client;
      yield* lab.send(sock, bytes(6));
      yield* sock.closeWrite();
      while ((yield* lab.recv(sock, 100)).length > 0);
    }
    yield* failAfter(1000, all([lab.tidy(serve()), lab.tidy(talk())]));
  },

  *"writers that share a socket by a lock, and a reader with a deadline for each read"(lab) {
    const [near, far] = lab.pair();
    const lock = lab.lock();
    function* write(sock: Socket): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* lab.send(sock, bytes(3));
      yield* lab.send(sock, bytes(2));
    }
    yield* taskGroup(function* (group) {
      group.createTask(lab.tidy((function* () {
        using sock = far;
        while ((yield* failAfter(100, lab.recv(sock, 3))).length > 0) yield* checkpoint();
      })()));
      using sock = near;
      yield* all([lab.tidy(write(sock)), lab.tidy(write(sock))]);
    });
  },

  *"a proxy: socket to queue to socket"(lab) {
    const [source, inlet] = lab.pair();
    const [outlet, sink] = lab.pair();
    const queue = lab.queue<Uint8Array>(1);
    function* feed(): Coroutine<void> {
      using sock = source;
      for (const n of [3, 1, 2]) yield* lab.send(sock, bytes(n));
    }
    function* read(): Coroutine<void> {
      using sock = inlet;
      for (let data = yield* lab.recv(sock, 2); data.length > 0; data = yield* lab.recv(sock, 2)) {
        yield* lab.put(queue, data);
      }
    }
    function* write(): Coroutine<void> {
      using sock = outlet;
      yield* lab.drain(queue, (data) => lab.send(sock, data));
    }
    function* collect(): Coroutine<void> {
      using sock = sink;
      while ((yield* lab.recv(sock, 100)).length > 0);
    }
    yield* moveOnAfter(500, all([lab.tidy(feed()), closing(queue, read()), lab.tidy(write()), lab.tidy(collect())]));
  },

  *"groups in groups, siblings born while a group drains"(lab) {
    const lock = lab.lock();
    function* leaf(): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* sleep(2);
    }
    yield* taskGroup(function* (outer) {
      outer.createTask(lab.tidy(leaf(), () => sleep(1)));
      yield* taskGroup(function* (inner) {
        inner.createTask(lab.tidy((function* () {
          yield* sleep(1);
          outer.createTask(lab.tidy(leaf()));
          inner.createTask(lab.tidy(leaf(), () => checkpoint()));
        })()));
      });
      yield* checkpoint();
    });
  },

  *"a race whose losers clean up with a lock and a socket"(lab) {
    const lock = lab.lock();
    const [here, there] = lab.pair();
    using _here = here;
    using _there = there;
    function* lose(): Coroutine<string> {
      using _guard = yield* lock.acquire();
      yield* sleep(1000);
      return "loser";
    }
    function* listen(): Coroutine<string> {
      yield* lab.recv(there, 10);
      return "bytes";
    }
    const winner = yield* race([
      lab.tidy(lose(), () => sleep(1)),
      lab.tidy(listen(), () => checkpoint()),
      lab.tidy((function* () {
        yield* sleep(1);
        yield* lab.send(here, bytes(1));
        yield* sleep(1000);
        return "sender";
      })()),
    ]);
    assert(["bytes", "sender", "loser"].includes(winner));
  },

  *"shields in shields, timeouts in shields, shields in timeouts"(lab) {
    const lock = lab.lock();
    function* critical(): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* moveOnAfter(5, sleep(100));
      yield* shield(sleep(1), { timeout: 50 });
    }
    yield* moveOnAfter(
      40,
      lab.tidy(
        all([
          lab.tidy(critical(), () => shield(moveOnAfter(2, sleep(3)), { timeout: 1 })),
          lab.tidy(shield(critical()), () => shield(checkpoint())),
          lab.tidy(moveOnAfter(3, lab.tidy(shield(moveOnAfter(10, critical())), () => sleep(1)))),
        ]),
        () => moveOnAfter(2, sleep(100)),
      ),
    );
  },

  *"a server that says when it has started, and its clients"(lab) {
    const requests = lab.queue<number>(1);
    const answered = new Event();
    function* server(started: (name: string) => void): Coroutine<void> {
      yield* sleep(1);
      started("ready");
      yield* lab.drain(requests, function* (n) {
        yield* checkpoint();
        if (n === 2) answered.set();
      });
    }
    yield* taskGroup(function* (group) {
      yield* closing(
        requests,
        (function* () {
          yield* group.start<string>((started) => closing(requests, lab.tidy(server(started), checkpoint)));
          for (let n = 1; n <= 2; n++) yield* lab.put(requests, n);
          yield* moveOnAfter(10, answered.wait());
        })(),
      );
      group.cancel();
    });
  },

  *"readers and a writer, with a lock of their own on a condition"(lab) {
    const condition = lab.condition();
    let readers = 0;
    let writing = false;
    function* read(): Coroutine<void> {
      {
        using _guard = yield* condition.acquire();
        yield* condition.waitFor(() => !writing);
        readers++;
      }
      try {
        yield* sleep(1);
        assert(!writing, "a reader and a writer at once");
      } finally {
        yield* shield(leave(() => readers--));
      }
    }
    function* write(): Coroutine<void> {
      using _guard = yield* condition.acquire();
      yield* condition.waitFor(() => readers === 0);
      writing = true;
      try {
        yield* sleep(1);
      } finally {
        writing = false;
        condition.notifyAll();
      }
    }
    function* leave(how: () => void): Coroutine<void> {
      how();
      using _guard = yield* condition.acquire();
      condition.notifyAll();
    }
    yield* moveOnAfter(50, all([lab.tidy(read()), lab.tidy(write()), lab.tidy(read())]));
  },

  *"queues that sort, with taskDone and join"(lab) {
    const jobs = lab.queue(3, new PriorityQueue<number>(3));
    const results = lab.queue(2, new LifoQueue<number>(2));
    yield* moveOnAfter(
      50,
      taskGroup(function* (group) {
        const worker = group.createTask(lab.tidy((function* () {
          for (;;) {
            const job = yield* lab.get(jobs);
            try {
              yield* lab.put(results, job);
            } finally {
              jobs.taskDone();
            }
          }
        })()));
        group.createTask(lab.tidy(lab.drain(results, () => sleep(1))));
        for (const job of [3, 1, 2]) yield* lab.put(jobs, job);
        yield* jobs.join();
        worker.cancel();
        results.close();
      }),
    );
  },

  *"tasks of the loop, joined, waited for and cancelled, whose cleanup needs a lock"(lab) {
    const lock = lab.lock();
    function* child(): Coroutine<string> {
      yield* sleep(3);
      return "child";
    }
    function* locked(): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* checkpoint();
    }
    const quick = lab.loop.createTask(lab.tidy(child(), locked));
    const slow = lab.loop.createTask(lab.tidy(sleep(1000), locked));
    yield* lab.tidy(
      (function* () {
        yield* sleep(1);
        slow.cancel("enough");
        yield* slow.wait();
        yield* quick.join();
      })(),
      locked,
    );
  },

  *"promises, with their signals, and callbacks from outside"(lab) {
    const event = new Event();
    const queue = lab.queue<number>(0);
    let listening = 0;
    const fetched = (value: number, turns: number) => (signal: AbortSignal) =>
      new Promise<number>((resolve, reject) => {
        listening++;
        const stop = () => {
          listening--;
          signal.removeEventListener("abort", abort);
        };
        const abort = () => (stop(), reject(signal.reason));
        signal.addEventListener("abort", abort);
        const wait = (n: number): void => {
          if (signal.aborted) return;
          if (n > 0) setImmediate(wait, n - 1);
          else (stop(), event.set(), resolve(value));
        };
        wait(turns);
      });
    function* load(value: number): Coroutine<void> {
      yield* lab.put(queue, yield* until(fetched(value, value)));
    }
    yield* moveOnAfter(
      500,
      all([lab.tidy(load(1)), lab.tidy(load(2)), lab.tidy(load(3)), moveOnAfter(100, event.wait())]),
    );
    assert(listening === 0, "an abort was not heard");
  },

  *"errors on purpose that a group reports and the program survives"(lab) {
    const lock = lab.lock();
    function* fail(ms: number): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* sleep(ms);
      throw new TimeoutError("on purpose");
    }
    try {
      yield* all([lab.tidy(fail(1), () => sleep(1)), lab.tidy(sleep(100), () => sleep(2))]);
    } catch (error) {
      const errors = error instanceof AggregateError ? error.errors : [error];
      lab.handled.push(...errors);
      if (!errors.every((error) => error instanceof TimeoutError || error instanceof ClosedError)) throw error;
    }
    yield* checkpoint();
  },
};

testAtEveryOp(SCENARIOS, {
  cancel: "C1 C2 C6 C7 G4",
  timeout: "T1 T2 T5",
  error: "G2 G3 S2",
});
