/** Rules N1-N10, N13, N15 and C7 for stream sockets: one battery, run against every transport. */
import net from "node:net";
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  type Addr,
  all,
  BusyError,
  Cancelled,
  cancelScope,
  checkpoint,
  ClosedError,
  connect,
  connectTls,
  type Coroutine,
  failAfter,
  listen,
  type Listener,
  listenTls,
  type Loop,
  readWait,
  sleep,
  type Socket,
  taskGroup,
  TimeoutError,
  until,
  WouldBlock,
  writeWait,
} from "../mod.ts";
import {
  accept,
  battery,
  connected,
  memory,
  numbers,
  pattern,
  readAll,
  readExactly,
  removeSocketFile,
  run,
  sameBytes,
  tcp,
  tls,
  tlsTransport,
  transports,
  unix,
} from "./net_transports.ts";
import { needs } from "./permissions.ts";
import { bytes, platformTurn, text, thrownBy } from "./world.ts";

const MB = 1_000_000;
const withListener = transports.filter((transport) => transport.open);

function portOf(listener: Listener): number {
  return (listener.addr as Deno.NetAddr).port;
}

/** Turns of the loop and of the platform, until what was begun has got as far as it can by itself. */
function* settle(): Coroutine {
  for (let i = 0; i < 3; i++) yield* sleep(1);
}

// ---- Bytes in order ----------------------------------------------------------------------------------------------

battery("N1 10 MB each way at once arrive exact, whatever the sizes of reads and writes", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(10 * MB);
  const ok = yield* all([
    sendUneven(loop, client, data, 7),
    sendUneven(loop, server, data, 11),
    receiveUneven(loop, server, data, 13),
    receiveUneven(loop, client, data, 17),
  ]);
  assertEquals(ok, [undefined, undefined, true, true] as unknown[]);
});

function* sendUneven(loop: Loop, sock: Socket, data: Uint8Array, seed: number): Coroutine {
  const sizes = numbers(seed, 300_000);
  for (let at = 0; at < data.length;) {
    const size = sizes.next().value;
    yield* loop.sockSendall(sock, data.subarray(at, at + size));
    at += size;
  }
  yield* sock.closeWrite();
}

function* receiveUneven(loop: Loop, sock: Socket, data: Uint8Array, seed: number): Coroutine<boolean> {
  const sizes = numbers(seed, 100_000);
  const buffer = new Uint8Array(50_000);
  let at = 0;
  while (true) {
    const size = sizes.next().value;
    const chunk = size & 1
      ? yield* loop.sockRecv(sock, size)
      : buffer.subarray(0, yield* loop.sockRecvInto(sock, buffer.subarray(0, Math.min(size, buffer.length))));
    if (chunk.length === 0) return at === data.length;
    if (!sameBytes(chunk, data.subarray(at, at + chunk.length))) return false;
    at += chunk.length;
  }
}

battery("N1 what sockSendall was given may be changed as soon as it returns", function* ({ loop, client, server }) {
  const data = bytes("before");
  yield* loop.sockSendall(client, data);
  data.fill(0);
  assertEquals(text(yield* readExactly(loop, server, 6)), "before");
});

battery("N1 a view handed out by recv is never written again", function* ({ loop, client, server }) {
  const views: { view: Uint8Array; copy: Uint8Array }[] = [];
  const buffer = new Uint8Array(90);
  for (let i = 0; i < 200; i++) {
    yield* loop.sockSendall(client, pattern(100).fill(i));
    const view = yield* loop.sockRecv(server, 10);
    views.push({ view, copy: view.slice() });
    // The rest is copied out, so that its place in the slab is used again.
    for (let rest = 100 - view.length; rest > 0;) rest -= yield* loop.sockRecvInto(server, buffer);
  }
  for (const { view, copy } of views) assertEquals(view, copy);
});

battery(
  "N1 what comes in one piece is received in one piece, the first message too",
  function* ({ loop, client, server }) {
    for (const length of [1000, 5000, 10_000]) {
      const reader = loop.createTask(loop.sockRecv(server, 10_000));
      yield* settle();
      yield* loop.sockSendall(client, pattern(length));
      assertEquals(yield* reader.join(), pattern(length));
      const answered = loop.createTask(loop.sockRecv(client, 10_000));
      yield* settle();
      yield* loop.sockSendall(server, pattern(length));
      assertEquals(yield* answered.join(), pattern(length));
    }
  },
);

battery("N1 to send nothing sends nothing and ends nothing", function* ({ loop, client, server }) {
  const nothing = new Uint8Array(0);
  yield* loop.sockSendall(client, nothing);
  assertEquals(client.send(nothing), 0);
  const reader = loop.createTask(loop.sockRecv(server, 10));
  yield* settle();
  assert(!reader.done);
  yield* loop.sockSendall(client, bytes("x"));
  yield* loop.sockSendall(client, nothing);
  assertEquals(text(yield* reader.join()), "x");
  client.close();
  assertInstanceOf(yield* thrownBy(loop.sockSendall(client, nothing)), ClosedError);
  assertEquals((yield* loop.sockRecv(server, 10)).length, 0);
});

battery("N1 recv takes no more than it was asked for, and leaves the rest", function* ({ loop, client, server }) {
  yield* loop.sockSendall(client, bytes("abcdef"));
  assertEquals(text(yield* loop.sockRecv(server, 2)), "ab");
  assertEquals(text(server.recv(1)), "c");
  const buffer = new Uint8Array(2);
  assertEquals(server.recvInto(buffer), 2);
  assertEquals(text(buffer), "de");
  assertEquals(text(server.recv(100)), "f");
  assertThrows(() => server.recv(1), WouldBlock, `Cannot recv on ${server}: nothing has arrived`);
});

// ---- The end of a stream -----------------------------------------------------------------------------------------

battery("N2 half-close: the peer sees the end and still sends", function* ({ loop, client, server }) {
  yield* loop.sockSendall(client, bytes("request"));
  yield* client.closeWrite();
  yield* client.closeWrite(); // Twice is fine.
  assertEquals(text(yield* readAll(loop, server)), "request");
  for (let i = 0; i < 3; i++) assertEquals((yield* loop.sockRecv(server, 10)).length, 0);
  assertEquals(yield* loop.sockRecvInto(server, new Uint8Array(1)), 0);
  assertEquals(server.recv(1).length, 0);
  yield* loop.sockSendall(server, bytes("answer"));
  server.close();
  assertEquals(text(yield* readAll(loop, client)), "answer");
});

battery("N2 an end that closeWrite has sent is seen, though close() follows with input unread", function* (scene) {
  const { loop, client, server } = scene;
  yield* loop.sockSendall(client, new Uint8Array(30_000));
  yield* loop.sockRecv(server, 1);
  yield* server.closeWrite();
  server.close();
  assertEquals((yield* loop.sockRecv(client, 10)).length, 0);
});

battery("N2 send after closeWrite is a BrokenPipe", function* ({ loop, client }) {
  yield* client.closeWrite();
  const error = yield* thrownBy(loop.sockSendall(client, bytes("more")));
  assertInstanceOf(error, Deno.errors.BrokenPipe);
  assertStringIncludes(error.message, "its write side was closed");
});

battery("N2 closeWrite ends the stream after the last byte of 5 MB, and the echo still comes", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(5 * MB);
  const [, , echo] = yield* all([
    (function* () {
      yield* loop.sockSendall(client, data);
      yield* client.closeWrite();
    })(),
    (function* () {
      while (true) {
        const chunk = yield* loop.sockRecv(server, 100_000);
        if (chunk.length === 0) break;
        yield* loop.sockSendall(server, chunk);
      }
      server.close();
    })(),
    readAll(loop, client),
  ]);
  assert(sameBytes(echo as Uint8Array, data));
});

battery("N2 a cancelled closeWrite has ended nothing, a later one delivers all first", function* (scene) {
  const { loop, client, server } = scene;
  const first = yield* fill(client);
  const ending = loop.createTask(client.closeWrite());
  yield* settle();
  assert(!ending.done);
  ending.cancel();
  yield* ending.wait();
  const [, got] = yield* all([
    (function* () {
      yield* loop.sockSendall(client, bytes("last"));
      yield* client.closeWrite();
    })(),
    readAll(loop, server),
  ]);
  assertEquals((got as Uint8Array).length, first + 4);
  assertEquals(text((got as Uint8Array).subarray(-4)), "last");
});

battery("N2 closeWrite while another task is sending is refused", function* ({ loop, client, server }) {
  const sender = loop.createTask(loop.sockSendall(client, pattern(20 * MB)));
  yield* settle();
  assertInstanceOf(yield* thrownBy(client.closeWrite()), BusyError);
  yield* readExactly(loop, server, 20 * MB);
  yield* sender.join();
  yield* client.closeWrite();
});

battery("N2 while a task waits in closeWrite another may not send, and the first goes on", function* (scene) {
  const { loop, client, server } = scene;
  const sent = yield* fill(client);
  const ending = loop.createTask(client.closeWrite());
  yield* settle();
  assertInstanceOf(yield* thrownBy(failAfter(1000, loop.sockSendall(client, pattern(MB)))), BusyError);
  assertEquals((yield* readAll(loop, server)).length, sent);
  yield* ending.join();
});

/** Sends until nothing more goes: the peer does not read. Says how many bytes that were. */
function* fill(sock: Socket): Coroutine<number> {
  const data = new Uint8Array(65536);
  let sent = 0;
  for (let idle = 0; idle < 3;) {
    try {
      sent += sock.send(data);
      idle = 0;
    } catch (error) {
      assertInstanceOf(error, WouldBlock);
      idle++;
      yield* sleep(1);
    }
  }
  return sent;
}

// ---- One at a time -----------------------------------------------------------------------------------------------

battery("N3 a second reader gets BusyError, the first is served", function* ({ loop, client, server }) {
  const first = loop.createTask(loop.sockRecv(server, 10));
  yield* checkpoint();
  const error = yield* thrownBy(loop.sockRecv(server, 10));
  assertInstanceOf(error, BusyError);
  assertEquals(error.message, `Cannot recv on ${server}: another task is already waiting to read it`);
  yield* loop.sockSendall(client, bytes("x"));
  assertEquals(text(yield* first.join()), "x");
});

battery("N3 who waits to read waits on if what has arrived goes to another", function* ({ loop, client, server }) {
  const waiting = loop.createTask(loop.sockRecv(server, 10));
  yield* checkpoint();
  yield* loop.sockSendall(client, bytes("for the other"));
  for (let taken = 0; taken === 0;) {
    try {
      taken = server.recv(100).length; // It does not wait, so nobody is busy.
    } catch (error) {
      assertInstanceOf(error, WouldBlock);
      yield* checkpoint();
    }
  }
  for (let turns = 0; turns < 10; turns++) yield* checkpoint();
  assert(!waiting.done);
  yield* loop.sockSendall(client, bytes("for it"));
  assertEquals(text(yield* waiting.join()), "for it");
});

battery("N3 a second writer gets BusyError at any moment, the first is served", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(2 * MB);
  const first = loop.createTask(loop.sockSendall(client, data));
  const reading = loop.createTask(readExactly(loop, server, data.length));
  yield* checkpoint();
  let refused = 0;
  while (!first.done) {
    const error = yield* thrownBy(loop.sockSendall(client, bytes("intruder")));
    assertInstanceOf(error, BusyError);
    refused++;
    yield* sleep(0);
  }
  assert(refused > 0);
  assert(sameBytes(yield* reading.join(), data));
});

for (const transport of withListener) {
  Deno.test(
    `N3 a second acceptor gets BusyError, the first is served (${transport.name})`,
    needs(transport.needs),
    () =>
      run(function* (loop) {
        const { listener, dial } = transport.open!();
        const first = loop.createTask(accept(loop, listener));
        yield* checkpoint();
        const error = yield* thrownBy(loop.sockAccept(listener));
        assertInstanceOf(error, BusyError);
        assertEquals(
          error.message,
          `Cannot accept from ${listener}: another task is already waiting to accept from it`,
        );
        const client = yield* dial();
        (yield* first.join()).abort();
        client.abort();
        removeSocketFile(listener);
        listener.close();
      }),
  );
}

// ---- Closing -----------------------------------------------------------------------------------------------------

battery("N4 close() wakes who waits to read and to write with ClosedError", function* ({ loop, client }) {
  const waiting = [
    loop.createTask(thrownBy(loop.sockRecv(client, 10))),
    loop.createTask(thrownBy(loop.sockSendall(client, new Uint8Array(20 * MB)))),
  ];
  yield* settle();
  client.close();
  for (const task of waiting) assertInstanceOf(yield* task.join(), ClosedError);
});

battery("N4 close() wakes who waits in closeWrite with ClosedError, and still delivers", function* (scene) {
  const { loop, client, server } = scene;
  const sent = yield* fill(client);
  const waiting = loop.createTask(thrownBy(client.closeWrite()));
  yield* settle();
  client.close();
  assertInstanceOf(yield* waiting.join(), ClosedError);
  assertEquals((yield* readAll(loop, server)).length, sent);
});

battery("N4 readWait by itself hears of close() too", function* ({ loop, client }) {
  const waiting = loop.createTask(thrownBy(readWait(client)));
  yield* settle();
  client.close();
  assertInstanceOf(yield* waiting.join(), ClosedError);
});

battery("N4 any use after close() is a ClosedError, and close() twice is fine", function* ({ loop, client }) {
  client.close();
  client.close();
  const uses: (() => unknown)[] = [
    () => client.recv(1),
    () => client.recvInto(new Uint8Array(1)),
    () => client.send(bytes("x")),
    () => client.setNoDelay(),
    () => client.setKeepAlive(),
  ];
  for (const use of uses) assertThrows(use, ClosedError, `${client}: it is closed`);
  const waits = [
    loop.sockRecv(client, 1),
    loop.sockSendall(client, bytes("x")),
    client.closeWrite(),
    client.handshake(),
    readWait(client),
  ];
  for (const wait of waits) assertInstanceOf(yield* thrownBy(wait), ClosedError);
  client.abort();
});

battery("N4 close() while a read is in flight ends it, and the peer sees the end", function* (scene) {
  const { loop, client, server } = scene;
  const reader = loop.createTask(loop.sockRecv(client, 10));
  yield* settle();
  reader.cancel(); // The read stays in flight without a reader.
  yield* reader.wait();
  client.close();
  assertEquals((yield* loop.sockRecv(server, 10)).length, 0);
});

for (const transport of withListener) {
  Deno.test(
    `N4 writeWait on a listener waits until it is closed (${transport.name})`,
    needs(transport.needs),
    () =>
      run(function* (loop) {
        const { listener } = transport.open!();
        const waiting = loop.createTask(thrownBy(writeWait(listener)));
        yield* settle();
        assertEquals(waiting.done, false);
        removeSocketFile(listener);
        listener.close();
        assertInstanceOf(yield* waiting.join(), ClosedError);
      }),
  );

  Deno.test(`N4 a closed listener: ClosedError for who waits and who comes (${transport.name})`, {
    ...needs(transport.needs),
  }, () =>
    run(function* (loop) {
      const { listener } = transport.open!();
      const waiting = loop.createTask(thrownBy(loop.sockAccept(listener)));
      yield* settle();
      removeSocketFile(listener);
      listener.close();
      listener.close();
      assertInstanceOf(yield* waiting.join(), ClosedError);
      assertInstanceOf(yield* thrownBy(loop.sockAccept(listener)), ClosedError);
      assertThrows(() => listener.accept(), ClosedError, "it is closed");
    }));
}

battery("N5 close() right after sockSendall of 1 MB: a slow reader gets every byte", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(MB);
  yield* deliverTo(loop, client, server, data);
});

battery("N5 close() with input unread and input still coming: a slow reader gets every byte", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(MB);
  yield* loop.sockSendall(server, pattern(100_000));
  yield* readWait(client); // It has arrived, and nobody takes it.
  yield* deliverTo(loop, client, server, data, pattern(400_000));
});

battery("N5 close() with input unread and all sent: the peer gets every byte", function* ({ loop, client, server }) {
  yield* loop.sockSendall(client, bytes("answer"));
  yield* loop.sockSendall(server, pattern(100_000));
  yield* readWait(client);
  yield* settle();
  client.close();
  yield* settle();
  assertEquals(text(yield* readAll(loop, server)), "answer");
});

battery(
  "N5 close() with input unread in the system and all sent: the peer gets every byte, and an end",
  function* (scene) {
    const { loop, client, server } = scene;
    yield* loop.sockSendall(client, bytes("question"));
    assertEquals(text(yield* loop.sockRecv(server, 100)), "question");
    yield* loop.sockSendall(client, bytes("another"));
    yield* settle();
    const answer = pattern(150_000); // more than a peer takes at once, less than the system holds
    const answering = loop.createTask((function* () {
      yield* loop.sockSendall(server, answer);
      yield* server.closeWrite();
      server.close();
    })());
    yield* settle();
    assert(sameBytes(yield* readAll(loop, client), answer));
    yield* answering.join();
  },
);

/** `from` sends `data` and closes at once; `to` reads it slowly, and sends `noise` meanwhile. */
function* deliverTo(loop: Loop, from: Socket, to: Socket, data: Uint8Array, noise?: Uint8Array): Coroutine {
  const sending = loop.createTask((function* () {
    yield* loop.sockSendall(from, data);
    from.close();
  })());
  const noisy = loop.createTask(noise ? loop.sockSendall(to, noise) : checkpoint());
  const got = new Uint8Array(data.length);
  let n = 0;
  for (let i = 0; n < data.length; i++) {
    if (i < 5) yield* sleep(2);
    const length = yield* loop.sockRecvInto(to, got.subarray(n, n + 30_000));
    assert(length > 0, `The stream ended after ${n} bytes`);
    n += length;
  }
  assertEquals((yield* loop.sockRecv(to, 1)).length, 0);
  assert(sameBytes(got, data));
  yield* sending.join();
  yield* noisy.join();
}

battery("N5 abort() drops what has not left, and the peer sees an end", function* ({ loop, client, server }) {
  const sender = loop.createTask(thrownBy(loop.sockSendall(client, new Uint8Array(20 * MB))));
  yield* settle();
  client.abort();
  assertInstanceOf(yield* sender.join(), ClosedError);
  let got = 0;
  try {
    got = (yield* readAll(loop, server)).length;
  } catch (error) {
    // Where the transport can tell a stream that was cut off, it does.
    assert(!(error instanceof TimeoutError), String(error));
  }
  assert(got < 20 * MB);
});

// ---- The end of the program ---------------------------------------------------------------------------------------

Deno.test(
  "C7 N4 what a cancelled wait leaves under way does not keep the program from ending",
  needs({ net: true, run: true }),
  async () => {
    const program = `
    import { connect, datagram, listen, Loop, moveOnAfter, until } from "${new URL("../mod.ts", import.meta.url)}";
    const loop = new Loop();
    await loop.run(function* () {
      const listener = listen({ hostname: "127.0.0.1", port: 0 });
      const client = yield* connect(listener.addr);
      const [server] = yield* loop.sockAccept(listener);
      yield* moveOnAfter(1, loop.sockAccept(listener));
      yield* moveOnAfter(1, loop.sockRecv(server, 10));
      yield* moveOnAfter(1, loop.sockRecvfrom(datagram({ hostname: "127.0.0.1", port: 0 }), 10));
      yield* loop.sockSendall(client, new Uint8Array(3)); // And still nothing is lost.
      console.log((yield* loop.sockRecv(server, 10)).length);
      yield* moveOnAfter(1, loop.sockRecv(server, 10));
    }());
    console.log("end");`;
    const args = ["eval", "--unstable-net", program];
    const command = new Deno.Command(Deno.execPath(), { args, signal: AbortSignal.timeout(20_000) });
    const { code, stdout } = await command.output();
    assertEquals([code, text(stdout)], [0, "3\nend\n"]);
  },
);

// ---- Peers that break off ----------------------------------------------------------------------------------------

battery("N6 a peer that is gone, its input unread, comes at the next op of reader and writer", function* (scene) {
  const { loop, client, server } = scene;
  yield* loop.sockSendall(server, pattern(10_000)); // Unread at the client's abort: that makes it a reset.
  yield* settle();
  const reader = loop.createTask(thrownBy(loop.sockRecv(server, 10)));
  yield* settle();
  client.abort();
  assertBroken(yield* reader.join());
  assertBroken(yield* thrownBy(loop.sockRecv(server, 10)));
  assertBroken(yield* thrownBy(sendForEver(loop, server)));
  assertBroken(yield* thrownBy(sendForEver(loop, server)));
  server.close();
}, [unix, memory]);

battery("N6 what had arrived before a reset can still be read", function* ({ loop, client, server }) {
  yield* loop.sockSendall(server, pattern(10_000)); // Unread at the client's abort: that makes it a reset.
  yield* loop.sockSendall(client, bytes("last"));
  yield* settle();
  client.abort();
  yield* settle();
  assertEquals(text(yield* loop.sockRecv(server, 10)), "last");
  assertBroken(yield* thrownBy(loop.sockRecv(server, 10)));
  server.close();
}, [unix, memory]);

/** A server's end of a connection, and the client's, which Node's sockets can reset. */
function* resettable(loop: Loop): Coroutine<{ peer: net.Socket; server: Socket }> {
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  const peer = net.connect({ host: "127.0.0.1", port: portOf(listener) });
  peer.on("error", () => {});
  const [server] = yield* loop.sockAccept(listener);
  return { peer, server };
}

Deno.test(
  "N6 a reset comes at the next op of reader and writer, again and again",
  needs({ net: true }),
  () =>
    run(function* (loop) {
      const { peer, server } = yield* resettable(loop);
      const reader = loop.createTask(thrownBy(loop.sockRecv(server, 10)));
      yield* settle();
      peer.resetAndDestroy();
      assertInstanceOf(yield* reader.join(), Deno.errors.ConnectionReset);
      assertInstanceOf(yield* thrownBy(loop.sockRecv(server, 10)), Deno.errors.ConnectionReset);
      for (let i = 0; i < 3; i++) assertBroken(yield* thrownBy(loop.sockSendall(server, bytes("x"))));
      assertBroken(yield* thrownBy(server.closeWrite()));
      server.close();
    }),
);

Deno.test(
  "N6 a reset that a write was the first to hear of is no end of the stream",
  needs({ net: true }),
  () =>
    run(function* (loop) {
      const { peer, server } = yield* resettable(loop);
      peer.write("half of it");
      yield* readWait(server);
      const half = server.recv(100); // All that has come: no read is under way now.
      peer.resetAndDestroy();
      yield* settle();
      try {
        for (;;) yield* loop.sockSendall(server, pattern(10)); // The system takes the first, and the write fails.
      } catch (error) {
        assertInstanceOf(error, Deno.errors.ConnectionReset);
      }
      assertEquals(text(half), "half of it");
      for (let i = 0; i < 3; i++) {
        assertInstanceOf(yield* thrownBy(loop.sockRecv(server, 10)), Deno.errors.ConnectionReset);
      }
      server.close();
    }),
);

Deno.test(
  "N6 a reset in the middle of a TLS connection comes at the next op of reader and writer",
  needs({ net: true, read: true }),
  () =>
    run(function* (loop) {
      using listener = listenTls({ hostname: "127.0.0.1", port: 0, ...tls.server });
      const relay = yield* until(startRelay(portOf(listener)));
      const accepting = loop.createTask(accept(loop, listener));
      const client = yield* connectTls({ hostname: "127.0.0.1", port: relay.port, caCerts: [tls.ca] });
      const server = yield* accepting.join();
      const reader = loop.createTask(thrownBy(loop.sockRecv(server, 10)));
      yield* settle();
      yield* until(relay.reset());
      assertBroken(yield* reader.join());
      assertBroken(yield* thrownBy(loop.sockRecv(server, 10)));
      for (let i = 0; i < 3; i++) assertBroken(yield* thrownBy(sendForEver(loop, server)));
      server.close();
      client.abort();
    }),
);

/** Passes one connection on to `port` until it is told to reset that: what speaks TLS cannot be made to reset. */
function startRelay(port: number): Promise<{ port: number; reset(): Promise<void> }> {
  const there = new net.Socket();
  const relay = net.createServer((here) => {
    there.connect(port, "127.0.0.1").on("error", () => {}).on("close", () => here.destroy());
    here.on("error", () => {}).pipe(there).pipe(here);
  });
  const reset = () => {
    const closed = Promise.all([there, relay].map((end) => new Promise<void>((resolve) => end.on("close", resolve))));
    there.resetAndDestroy();
    relay.close();
    return closed.then(() => {});
  };
  return new Promise((resolve) => {
    relay.listen(0, "127.0.0.1", () => resolve({ port: (relay.address() as net.AddressInfo).port, reset }));
  });
}

battery("N6 a writer whose peer goes away hears of it", function* ({ loop, client, server }) {
  const writer = loop.createTask(thrownBy(sendForEver(loop, server)));
  yield* settle();
  client.abort();
  assertBroken(yield* writer.join());
  server.close();
});

function* sendForEver(loop: Loop, sock: Socket): Coroutine {
  while (true) yield* loop.sockSendall(sock, new Uint8Array(65536));
}

function assertBroken(error: unknown): void {
  const broken = error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe;
  assert(broken, `Expected ConnectionReset or BrokenPipe, got ${error}`);
}

for (const transport of [tcp, tlsTransport]) {
  const name =
    `N10 fifty clients that connect, send and reset before they are accepted hurt nobody (${transport.name})`;
  Deno.test(name, needs(transport.needs), () =>
    run(function* (loop) {
      const { listener, dial } = transport.open!();
      const rude = Array.from({ length: 50 }, () => {
        const peer = net.connect({ host: "127.0.0.1", port: portOf(listener) });
        peer.on("error", () => {}).on("connect", () => peer.write("x", () => peer.resetAndDestroy()));
        return new Promise<void>((resolve) => peer.on("close", () => resolve()));
      });
      yield* until(Promise.all(rude));
      const polite = loop.createTask(dial());
      const welcomed = loop.createTask(welcome(loop, listener));
      const client = yield* polite.join();
      assertEquals(text(yield* readAll(loop, client)), "welcome");
      client.close();
      welcomed.cancel();
      yield* welcomed.wait();
      listener.close();
    }));
}

/** Greets every client; one who has left, or speaks another protocol, concerns nobody. */
function* welcome(loop: Loop, listener: Listener): Coroutine {
  while (true) {
    const [sock] = yield* loop.sockAccept(listener);
    yield* quietly(loop.sockSendall(sock, bytes("welcome")));
    sock.close();
  }
}

// ---- Slow ones ---------------------------------------------------------------------------------------------------

battery("N7 a peer that does not read stops its writer", function* ({ loop, client }) {
  const data = new Uint8Array(2 ** 30); // Nobody touches its pages but what is sent.
  const sender = loop.createTask(thrownBy(loop.sockSendall(client, data)));
  yield* sleep(20);
  sender.cancel();
  const error = yield* sender.join();
  assertInstanceOf(error, Cancelled);
  assert(error.bytesSent! < 32 * MB, `${error.bytesSent} bytes were taken`);
});

// ---- Cancelled waits ---------------------------------------------------------------------------------------------

battery("C7 a cancelled sockRecv leaves the bytes to the next reader", function* ({ loop, client, server }) {
  for (const late of [false, true]) {
    const first = loop.createTask(loop.sockRecv(server, 10));
    yield* settle();
    if (late) yield* loop.sockSendall(client, bytes("keep"));
    first.cancel();
    yield* first.wait();
    if (!late) yield* loop.sockSendall(client, bytes("keep"));
    if (!late || first.cancelled) assertEquals(text(yield* readExactly(loop, server, 4)), "keep");
    else assertEquals(text(yield* first.join()), "keep"); // It had completed: then it delivers.
  }
});

battery("C2 C7 in a scope that is cancelled already nothing is sent and nothing taken", function* (scene) {
  const { loop, client, server } = scene;
  yield* loop.sockSendall(client, bytes("here"));
  assertEquals(text(yield* loop.sockRecv(server, 1)), "h"); // The rest is at hand.
  yield* cancelScope(function* (scope) {
    scope.cancel();
    const buffer = bytes("untouched");
    const ops: [string, Coroutine<unknown>][] = [
      ["sockRecv", loop.sockRecv(server, 10)],
      ["sockRecvInto", loop.sockRecvInto(server, buffer)],
      ["sockSendall", loop.sockSendall(client, bytes("never"))],
      ["sockSendall of nothing", loop.sockSendall(client, new Uint8Array(0))],
    ];
    for (const [name, op] of ops) {
      const error = yield* thrownBy(op);
      assertInstanceOf(error, Cancelled, name);
      if (name === "sockSendall") assertEquals(error.bytesSent, 0);
    }
    assertEquals(text(buffer), "untouched");
  });
  client.close();
  assertEquals(text(yield* readAll(loop, server)), "ere");
});

battery("C7 the bytesSent of a cancelled sockSendall are what the peer gets, exactly", function* (scene) {
  const { loop, client, server } = scene;
  const data = pattern(20 * MB);
  const sender = loop.createTask(thrownBy(loop.sockSendall(client, data)));
  yield* settle();
  sender.cancel();
  const error = yield* sender.join();
  assertInstanceOf(error, Cancelled);
  client.close();
  const got = yield* readAll(loop, server);
  assertEquals(got.length, error.bytesSent);
  assert(sameBytes(got, data.subarray(0, got.length)));
});

for (const transport of withListener) {
  Deno.test(`C7 a cancelled sockAccept leaves the connection to the next (${transport.name})`, {
    ...needs(transport.needs),
  }, () =>
    run(function* (loop) {
      const { listener, dial } = transport.open!();
      const first = loop.createTask(loop.sockAccept(listener));
      yield* settle();
      first.cancel();
      yield* first.wait();
      const dialling = loop.createTask(dial());
      yield* settle();
      const server = yield* accept(loop, listener);
      const client = yield* dialling.join();
      yield* loop.sockSendall(client, bytes("hello"));
      assertEquals(text(yield* readExactly(loop, server, 5)), "hello");
      client.abort();
      server.abort();
      removeSocketFile(listener);
      listener.close();
    }));
}

// ---- Ports and connecting ----------------------------------------------------------------------------------------

const opened = {
  tcp: (port: number) => listen({ hostname: "127.0.0.1", port }),
  tls: (port: number) => listenTls({ hostname: "127.0.0.1", port, ...tls.server }),
};

for (const [name, open] of Object.entries(opened)) {
  Deno.test(`N8 a port is free one turn after close(), with an accept in flight too (${name})`, {
    ...needs({ net: true, read: true }),
  }, () =>
    run(function* (loop) {
      let port = 0;
      for (let i = 0; i < 10; i++) {
        const listener = open(port);
        port = portOf(listener);
        const waiting = loop.createTask(thrownBy(loop.sockAccept(listener)));
        yield* checkpoint();
        const client = yield* connect({ port });
        listener.close();
        yield* waiting.wait();
        client.abort();
        yield* sleep(1);
      }
    }));
}

Deno.test(
  "N8 a path is free one turn after close(), with an accept in flight too (unix)",
  needs(unix.needs),
  () =>
    run(function* (loop) {
      const folder = yield* until(Deno.makeTempDir());
      // What concerns TCP alone does not matter here.
      const options = { transport: "unix", path: `${folder}/sock`, reusePort: true } as const;
      for (let i = 0; i < 5; i++) {
        const listener = listen(options);
        const waiting = loop.createTask(thrownBy(loop.sockAccept(listener)));
        yield* checkpoint();
        const client = yield* connect(options);
        listener.close();
        yield* waiting.wait();
        client.abort();
        yield* sleep(1);
      }
      yield* until(Deno.remove(folder, { recursive: true }));
    }),
);

for (const transport of [tcp, unix]) { // With TLS the client would not be through with its handshake.
  Deno.test(`N8 a connection that was accepted but not taken is closed with its listener (${transport.name})`, {
    ...needs(transport.needs),
  }, () =>
    run(function* (loop) {
      const { listener, dial } = transport.open!();
      const first = loop.createTask(loop.sockAccept(listener));
      yield* settle();
      first.cancel();
      yield* first.wait();
      const client = yield* dial();
      yield* settle();
      removeSocketFile(listener);
      listener.close();
      assertEquals((yield* loop.sockRecv(client, 10)).length, 0);
      client.close();
    }));
}

Deno.test(
  "N9 connect and connectTls to a port where nobody listens: ConnectionRefused",
  needs({ net: true }),
  () =>
    run(function* () {
      const listener = listen({ hostname: "127.0.0.1", port: 0 });
      const port = portOf(listener);
      listener.close();
      yield* sleep(1);
      for (const dial of [connect, connectTls]) {
        const error = yield* thrownBy(dial({ hostname: "127.0.0.1", port }));
        assertInstanceOf(error, Deno.errors.ConnectionRefused);
        assertStringIncludes(error.message, `Cannot connect to 127.0.0.1 port ${port}: `);
        assertStringIncludes(error.stack!, "net_test.ts"); // Deno's own has no line of the program.
        assertInstanceOf(error.cause, Deno.errors.ConnectionRefused);
        assertEquals((error as { code?: string }).code, "ECONNREFUSED");
      }
      const astray = { hostname: "127.0.0.1", port, path: "/index.html" };
      assertStringIncludes((yield* thrownBy(connect(astray))).message, `connect to 127.0.0.1 port ${port}: `);
    }),
);

Deno.test(
  "N9 connect to a Unix path where nobody listens",
  needs({ net: true, read: true, write: true }),
  () =>
    run(function* () {
      const error = yield* thrownBy(connect({ transport: "unix", path: "/tmp/yieldloop-nobody-listens-here" }));
      assertInstanceOf(error, Deno.errors.NotFound);
      assertStringIncludes(error.message, "Cannot connect to /tmp/yieldloop-nobody-listens-here: ");
    }),
);

Deno.test(
  "N9 connect to what is no address says where to, whatever class Deno's error has",
  needs({ read: true, write: true }),
  () =>
    run(function* () {
      const path = `/tmp/${"a".repeat(200)}`;
      const error = (yield* thrownBy(connect({ transport: "unix", path }))) as Error;
      assertInstanceOf(error, TypeError);
      assertStringIncludes(error.message, `Cannot connect to ${path}: `);
      assertInstanceOf(error.cause, TypeError);
    }),
);

Deno.test("N9 where to is also said when Deno's error has no class of its own", async () => {
  const { connect: real } = Deno;
  Deno.connect = (() => Promise.reject(new Error("no such host"))) as never;
  try {
    for (const dial of [connect, connectTls]) {
      const error = await run(() => thrownBy(dial({ port: 1 })));
      assertEquals(String(error), "Error: Cannot connect to 127.0.0.1 port 1: no such host");
    }
  } finally {
    Deno.connect = real;
  }
});

Deno.test("N9 port 65535 is one to connect to, and what a signal was aborted with is thrown as it is", () =>
  run(function* () {
    for (const reason of [new Error("mine"), null]) {
      const attempt = connect({ hostname: "127.0.0.1", port: 65535, signal: AbortSignal.abort(reason) });
      assertStrictEquals(yield* thrownBy(attempt), reason);
    }
  }));

Deno.test("N9 connect to a name that is none", needs({ net: true }), () =>
  run(function* () {
    const error = yield* thrownBy(connect({ hostname: "no such name", port: 1 }));
    assertInstanceOf(error, Error);
    assertStringIncludes(error.message, "Cannot connect to no such name port 1: ");
    assertInstanceOf(error.cause, Error); // Deno's own, without a code.
    assert(!("code" in error));
  }));

for (const transport of withListener) {
  Deno.test(`N9 a cancelled or timed out connect leaves no socket behind (${transport.name})`, {
    ...needs(transport.needs),
  }, () =>
    run(function* (loop) {
      const { listener, dial } = transport.open!();
      for (let turns = 0; turns < 6; turns++) {
        const dialling = loop.createTask(dial());
        for (let i = 0; i < turns; i++) yield* checkpoint();
        if (turns === 5) yield* until(new Promise((resolve) => setImmediate(resolve)));
        dialling.cancel();
        yield* dialling.wait();
        if (!dialling.cancelled) (yield* dialling.join()).abort();
      }
      assertInstanceOf(yield* thrownBy(failAfter(0, dial())), TimeoutError);
      yield* settle(); // Connections that come late are closed when they come.
      removeSocketFile(listener);
      listener.close();
    }));
}

Deno.test("N9 connect heeds a signal of its caller too", needs({ net: true }), () =>
  run(function* (loop) {
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    const port = portOf(listener);
    const error = yield* thrownBy(connect({ port, signal: AbortSignal.abort(new Error("Enough")) }));
    assertStringIncludes(String(error), "Enough");
    // It has not even knocked: the first to come is the next one.
    using next = yield* connect({ port });
    const [accepted, addr] = yield* loop.sockAccept(listener);
    accepted.close();
    assertEquals(addr, next.localAddr);
  }));

/** Cancels `attempt` once it has begun, however slow this machine is. */
const givenUp = (attempt: Coroutine<unknown>) =>
  function* (loop: Loop): Coroutine {
    const task = loop.createTask(attempt);
    while (task.op?.[0] !== "until") yield* checkpoint();
    task.cancel();
    yield* task.wait();
  };

Deno.test("N9 a connect that is cancelled gives up its attempt, and closes what it brings too late", async () => {
  const { connect: real } = Deno;
  try {
    let given!: AbortSignal;
    Deno.connect = (({ signal }: { signal: AbortSignal }) => (given = signal, new Promise(() => {}))) as any;
    const { signal } = new AbortController();
    await run(givenUp(connect({ port: 1, signal })));
    assert(given.aborted);
    let closed = 0;
    Deno.connect = (({ signal }: { signal: AbortSignal }) => {
      const connecting = Promise.withResolvers<unknown>();
      signal.addEventListener("abort", () => connecting.resolve({ close: () => closed++ }));
      return connecting.promise;
    }) as any;
    await run(givenUp(connect({ port: 1 })));
    await platformTurn();
    assertEquals(closed, 1);
    // Deno's own has it so: it throws away what it has just made.
    const made: { closed: boolean; close(): void }[] = [];
    Deno.connect = (async ({ signal }: { signal: AbortSignal }) => {
      await new Promise((aborted) => signal.addEventListener("abort", aborted));
      const conn = { closed: false, close: () => void (conn.closed = true) };
      made.push(conn);
      signal.throwIfAborted();
      return conn;
    }) as any;
    const byCaller = new AbortController();
    const enough = new Error("Enough");
    setTimeout(() => byCaller.abort(enough), 1);
    assertStrictEquals(await run(() => thrownBy(connect({ port: 1, signal: byCaller.signal }))), enough);
    for (const dial of [connect, connectTls]) await run(givenUp(dial({ port: 1 })));
    await platformTurn();
    assertEquals(made.map(({ closed }) => closed), [true, true, true]);
    // Or it gives up, and says so in its own words.
    Deno.connect = (async ({ signal }: { signal: AbortSignal }) => {
      await new Promise((aborted) => signal.addEventListener("abort", aborted));
      throw new Deno.errors.Interrupted("operation canceled");
    }) as any;
    const again = new AbortController();
    setTimeout(() => again.abort(enough), 1);
    assertStrictEquals(await run(() => thrownBy(connect({ port: 1, signal: again.signal }))), enough);
  } finally {
    Deno.connect = real;
  }
});

Deno.test("N9 options of connect may be inherited", needs({ net: true }), () =>
  run(function* () {
    using listener = listen(Object.create({ hostname: "127.0.0.1", port: 0 }));
    (yield* connect(Object.create(listener.addr))).abort();
  }));

Deno.test("N9 mistakes are told where they are made", needs({ net: true }), () =>
  run(function* (loop) {
    for (const port of [-1, 65536, 1.5, NaN, "80"] as number[]) {
      assertThrows(() => listen({ port }), RangeError, "Cannot listen on port");
      assertInstanceOf(yield* thrownBy(connect({ port })), RangeError);
    }
    assertStringIncludes(String(yield* thrownBy(connect({ port: 0 }))), "RangeError: Cannot connect to port 0: ");
    // @ts-expect-error Without a port Deno takes any; here that would hide a mistake.
    assertThrows(() => listen({ hostname: "127.0.0.1" }), RangeError, "Cannot listen on port undefined");
    for (const transport of ["udp", "vsock", "quic"]) {
      const options = { transport, port: 0 } as never;
      assertThrows(() => listen(options), TypeError, `Cannot listen on transport "${transport}": it must be`);
      assertInstanceOf(yield* thrownBy(connect(options)), TypeError);
    }
    assertThrows(() => listen({ transport: "unix" } as never), TypeError, "Cannot listen on path undefined");
    assertInstanceOf(yield* thrownBy(connect({ transport: "unix" } as never)), TypeError);
    for (const options of [undefined, null, 25000] as never[]) {
      assertThrows(() => listen(options), TypeError, `Cannot listen on ${options}: it takes options`);
      assertStringIncludes(
        String(yield* thrownBy(connect(options))),
        `TypeError: Cannot connect to ${options}: it takes`,
      );
    }
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    const taken = { hostname: "127.0.0.1", port: portOf(listener) };
    const { AddrInUse } = Deno.errors;
    assertThrows(
      () => listen(taken),
      AddrInUse,
      `Cannot listen on 127.0.0.1 port ${taken.port}: Address already in use`,
    );
    const client = yield* connect({ port: portOf(listener) });
    assertThrows(() => client.recv(0), RangeError, "Cannot recv 0 bytes");
    assertThrows(() => client.recv(-1), RangeError);
    assertThrows(() => client.recv("5" as unknown as number), RangeError, 'Cannot recv "5" bytes');
    assertThrows(() => client.send("text" as unknown as Uint8Array), TypeError, "it must be a Uint8Array");
    assertThrows(() => client.recvInto(new Uint8Array(0)), TypeError, "an empty buffer");
    assertInstanceOf(yield* thrownBy(loop.sockSendall(client, "text" as unknown as Uint8Array)), TypeError);
    client.close();
  }));

Deno.test(
  "N9 a socket's addresses have the type of the transport that was asked for",
  needs({ net: true }),
  () =>
    run(function* (loop) {
      using listener = listen({ hostname: "127.0.0.1", port: 0 });
      using client = yield* connect({ hostname: "127.0.0.1", port: listener.addr.port });
      const [server, addr] = yield* loop.sockAccept(listener);
      using another = yield* connect(listener.addr);
      assertEquals(another.remoteAddr.port, listener.addr.port);
      assertEquals([client.remoteAddr.port, client.localAddr.port], [listener.addr.port, addr.port]);
      assertEquals([server.localAddr.port, server.remoteAddr.port], [listener.addr.port, addr.port]);
      const sockets: Socket[] = [client, server];
      for (const sock of sockets) sock.abort();
    }),
);

Deno.test("N9 an address is narrowed by its transport, whichever it is compared with", () => {
  const where = (a: Addr) => a.transport === "unix" || a.transport === "unixpacket" ? a.path : a.hostname;
  const addresses: (Deno.NetAddr | Deno.UnixAddr)[] = [{ transport: "udp", hostname: "::", port: 1 }, {
    transport: "unixpacket",
    path: "/s",
  }];
  assertEquals(addresses.map(where), ["::", "/s"]); // Deno's are ours.
});

Deno.test("N9 IPv6 works as IPv4 does", needs({ net: true }), () =>
  run(function* (loop) {
    using listener = listen({ hostname: "::1", port: 0 });
    const client = yield* connect({ hostname: "::1", port: portOf(listener) });
    const [server, addr] = yield* loop.sockAccept(listener);
    assertEquals(addr, client.localAddr);
    assertEquals(client.remoteAddr, listener.addr);
    client.close();
    server.close();
  }));

Deno.test("N9 N11 IPv6 works as IPv4 does, with TLS", needs(tlsTransport.needs), () =>
  run(function* (loop) {
    using listener = listenTls({ hostname: "::1", port: 0, ...tls.server });
    const accepting = loop.createTask(accept(loop, listener));
    const client = yield* connectTls({ hostname: "::1", port: portOf(listener), caCerts: [tls.ca] });
    const server = yield* accepting.join();
    yield* loop.sockSendall(client, bytes("hello"));
    assertEquals(text(yield* readExactly(loop, server, 5)), "hello");
    client.abort();
    server.abort();
  }));

// ---- Settings ----------------------------------------------------------------------------------------------------

battery("N13 settings work at any moment, also while a write is under way", function* ({ loop, client, server }) {
  client.setNoDelay();
  client.setKeepAlive(false);
  const sender = loop.createTask(loop.sockSendall(client, new Uint8Array(8 * MB)));
  yield* settle();
  client.setNoDelay(false);
  client.setKeepAlive();
  yield* readExactly(loop, server, 8 * MB);
  yield* sender.join();
  client.setNoDelay();
  client.close();
});

// ---- Every order of ends -----------------------------------------------------------------------------------------

for (const transport of [tcp, unix, tlsTransport, memory]) {
  Deno.test(`N15 no order of closing, resetting and cancelling leaves a rejection (${transport.name})`, {
    ...needs(transport.needs),
  }, async () => {
    const heard: unknown[] = [];
    const listener = (event: PromiseRejectionEvent) => {
      event.preventDefault();
      heard.push(event.reason);
    };
    addEventListener("unhandledrejection", listener);
    try {
      const every = transport === tlsTransport ? 61 : 17; // A handshake takes 40 ms.
      for (const order of permutations(["close", "abort", "peer", "reader", "writer", "half"], every)) {
        await run((loop) => endInOrder(loop, transport, order));
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    } finally {
      removeEventListener("unhandledrejection", listener);
    }
    assertEquals(heard, []);
  });
}

/** Each way out of a busy connection, in the order given, a turn apart or at once. */
function* endInOrder(loop: Loop, transport: (typeof transports)[number], order: string[]): Coroutine {
  const [client, server] = yield* connected(loop, transport);
  yield* loop.sockSendall(server, pattern(3000));
  yield* taskGroup(function* (group) {
    const reader = group.createTask(quietly(loop.sockRecv(client, 1000)));
    const writer = group.createTask(quietly(loop.sockSendall(client, new Uint8Array(2 * MB))));
    yield* checkpoint();
    const ends: Record<string, () => void> = {
      close: () => client.close(),
      abort: () => client.abort(),
      peer: () => server.abort(),
      reader: () => reader.cancel(),
      writer: () => writer.cancel(),
      half: () => void group.createTask(quietly(client.closeWrite())),
    };
    for (const [i, end] of order.entries()) {
      ends[end]();
      if ((order[0].length + i) % 2) yield* checkpoint();
    }
  });
}

function* quietly(coro: Coroutine<unknown>): Coroutine {
  try {
    yield* coro;
  } catch (error) {
    if (error instanceof Cancelled) throw error;
  }
}

/** One in `every` of the orders of `items`. */
function permutations(items: string[], every: number): string[][] {
  const all: string[][] = [];
  const walk = (done: string[], left: string[]) => {
    if (left.length === 0) all.push(done);
    for (const item of left) walk([...done, item], left.filter((other) => other !== item));
  };
  walk([], items);
  return all.filter((_, i) => i % every === 0);
}
