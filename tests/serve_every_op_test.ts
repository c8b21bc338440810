/**
 * Cancellation, timeouts and errors at every op of servers and streams. What is checked after each run is in every_op.ts:
 * no socket is open, no task lives, no error was swallowed. That no byte is lost is checked here.
 */
import { assert, assertEquals } from "@std/assert";
import {
  type Addr,
  all,
  ClosedError,
  type Coroutine,
  EVENT_READ,
  failAfter,
  moveOnAfter,
  serve,
  type ServeListener,
  sleep,
  type Socket,
  Stream,
  taskGroup,
} from "../mod.ts";
import { type Lab, type Scenario, testAtEveryOp } from "./every_op.ts";
import { FakeSocket } from "./world.ts";

const ADDR = { transport: "tcp", hostname: "127.0.0.1", port: 1 } as const;

/** A listener in memory, whose clients are ends of the lab's pairs. */
class PairListener extends FakeSocket implements ServeListener<Socket> {
  readonly addr = ADDR;
  #waiting: Socket[] = [];
  #closed = false;

  /** Connects a client, and returns its end. */
  dial(lab: Lab): Socket {
    const [client, server] = lab.pair();
    if (this.#closed) {
      for (const sock of [client, server]) sock.close();
    } else {
      this.#waiting.push(server);
      this.ready = EVENT_READ;
    }
    return client;
  }

  accept(): [Socket, Addr] {
    if (this.#closed) throw new ClosedError("Cannot accept: the listener is closed");
    const sock = this.#waiting.shift()!;
    if (this.#waiting.length === 0) this.ready = 0;
    return [sock, ADDR];
  }

  close(): void {
    this.#closed = true;
    this.ready = EVENT_READ;
    for (const sock of this.#waiting.splice(0)) sock.close();
  }
}

function* shout(sock: Socket): Coroutine {
  const stream = new Stream(sock);
  for (let line; (line = yield* stream.readLine()) !== null;) yield* stream.write(`${line.toUpperCase()}\n`);
}

/** Says some words, and hears them back, in order. */
function* chat(lab: Lab, listener: PairListener, ...words: string[]): Coroutine {
  using stream = new Stream(listener.dial(lab));
  for (const word of words) {
    yield* stream.write(`${word}\n`);
    const answer = yield* stream.readLine();
    if (answer === null) return; // The server has ended.
    assertEquals(answer, word.toUpperCase());
  }
}

const SCENARIOS: Record<string, Scenario> = {
  *"a server with room for two, three clients, and an end by signal"(lab) {
    const listener = new PairListener();
    const stop = new AbortController();
    yield* taskGroup(function* (group) {
      group.createTask(lab.tidy(serve(listener, shout, { maxConnections: 2, signal: stop.signal, drainTimeout: 5 })));
      const clients = [["a", "b"], ["c"], ["d", "e"]].map((words) => lab.tidy(chat(lab, listener, ...words)));
      yield* moveOnAfter(50, all(clients));
      stop.abort();
    });
  },

  *"a server that is cancelled while its handlers are busy, and clean up"(lab) {
    const listener = new PairListener();
    const handler = (sock: Socket) => lab.tidy(shout(sock), () => sleep(3));
    yield* taskGroup(function* (group) {
      group.createTask(lab.tidy(serve(listener, handler, { drainTimeout: 2 })));
      group.createTask(lab.tidy(moveOnAfter(20, chat(lab, listener, "a", "b"))));
      group.createTask(lab.tidy(moveOnAfter(20, chat(lab, listener, "c"))));
      yield* sleep(5);
      group.cancel();
    });
  },

  *"a server inside a deadline, with a handler that fails"(lab) {
    const listener = new PairListener();
    const wrong = new ClosedError("on purpose");
    const handler = function* (sock: Socket): Coroutine {
      yield* moveOnAfter(5, shout(sock));
      throw wrong;
    };
    const onError = (error: unknown) => void lab.handled.push(error);
    yield* taskGroup(function* (group) {
      group.createTask(lab.tidy(moveOnAfter(30, serve(listener, handler, { onError, drainTimeout: 5 }))));
      yield* lab.tidy(moveOnAfter(20, chat(lab, listener, "a", "b")));
    });
  },

  *"a stream whose reader tries again after every timeout loses no byte"(lab) {
    const [client, server] = lab.pair();
    const pieces = ["o", "ne\ntw", "o\n"];
    const sent = pieces.join("");
    function* say(): Coroutine {
      using stream = new Stream(client);
      for (const piece of pieces) {
        yield* sleep(3);
        yield* stream.write(piece);
      }
    }
    function* hear(): Coroutine {
      using stream = new Stream(server);
      let heard = "";
      try {
        for (;;) {
          const line = yield* moveOnAfter(2, stream.readLine());
          if (line === null) break;
          if (line !== undefined) heard += `${line}\n`;
        }
      } finally {
        assert(sent.startsWith(heard.slice(0, -1)), `heard ${JSON.stringify(heard)}`);
      }
    }
    yield* failAfter(1000, all([lab.tidy(say()), lab.tidy(hear())]));
  },
};

testAtEveryOp(SCENARIOS, {
  cancel: "C7 N12 ST2",
  timeout: "T1 N12 ST2",
  error: "G2 N12",
});
