/** Rule N11: TLS. That its sockets behave as the others do, `net_test.ts` shows. */
import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import {
  BusyError,
  cancelScope,
  checkpoint,
  ClosedError,
  connect,
  connectTls,
  type ConnectTlsOptions,
  type Coroutine,
  failAfter,
  listen,
  type Listener,
  listenTls,
  type ListenTlsOptions,
  type Loop,
  readWait,
  sleep,
  type Socket,
  socketPair,
  startTls,
  type StartTlsOptions,
  TimeoutError,
} from "../mod.ts";
import { readAll, readExactly, run, tls } from "./net_transports.ts";
import { needs } from "./permissions.ts";
import { bytes, text, thrownBy } from "./world.ts";

const granted = needs({ net: true, read: true });
const LOCAL = { hostname: "127.0.0.1", port: 0 };

function to(listener: Listener<Deno.NetAddr>): { hostname: string; port: number } {
  return { hostname: "127.0.0.1", port: listener.addr.port };
}

/** Answers every connection with what it sent, in capitals, until the listener is closed. */
function* shout(loop: Loop, listener: Listener): Coroutine {
  try {
    while (true) {
      const [sock] = yield* loop.sockAccept(listener);
      loop.createTask(shoutTo(loop, sock));
    }
  } catch (error) {
    if (!(error instanceof ClosedError)) throw error;
  }
}

function* shoutTo(loop: Loop, sock: Socket): Coroutine {
  using _closed = sock;
  try {
    while (true) {
      const data = yield* loop.sockRecv(sock, 1000);
      if (data.length === 0) return;
      yield* loop.sockSendall(sock, bytes(text(data).toUpperCase()));
    }
  } catch (error) {
    if (!(error instanceof Error) || error.name === "Cancelled") throw error; // A bad handshake ends its connection only.
  }
}

function* ask(loop: Loop, client: Socket, question: string): Coroutine<string> {
  yield* loop.sockSendall(client, bytes(question));
  return text(yield* readExactly(loop, client, question.length));
}

Deno.test("N11 a handshake, bytes both ways, a clean end", granted, () =>
  run(function* (loop) {
    using listener = listenTls({ ...LOCAL, ...tls.server });
    loop.createTask(shout(loop, listener));
    const client = yield* connectTls({ ...to(listener), caCerts: [tls.ca] });
    assertEquals(yield* ask(loop, client, "hello"), "HELLO");
    yield* client.closeWrite();
    assertEquals((yield* readAll(loop, client)).length, 0);
    client.close();
  }));

Deno.test("N11 both sides learn the protocol they agreed on", granted, () =>
  run(function* (loop) {
    using listener = listenTls({ ...LOCAL, ...tls.server, alpnProtocols: ["one", "two"] });
    const accepting = loop.createTask((function* () {
      const [sock] = yield* loop.sockAccept(listener);
      return { sock, ...yield* sock.handshake() };
    })());
    const client = yield* connectTls({ ...to(listener), caCerts: [tls.ca], alpnProtocols: ["three", "two"] });
    assertEquals(yield* client.handshake(), { alpnProtocol: "two" });
    const server = yield* accepting.join();
    assertEquals(server.alpnProtocol, "two");
    client.abort();
    server.sock.abort();
  }));

Deno.test("N11 connectTls: its addresses are whole, and what it was given reaches Deno", granted, async () => {
  const real = Deno.connect;
  const given: unknown[] = [];
  Deno.connect = ((options: Deno.ConnectOptions) => {
    given.push(options);
    return real(options);
  }) as typeof Deno.connect;
  try {
    await run(function* (loop) {
      using listener = listenTls({ ...LOCAL, ...tls.server });
      loop.createTask(shout(loop, listener));
      using client = yield* connectTls({ ...to(listener), caCerts: [tls.ca], autoSelectFamily: false });
      assertEquals(client.remoteAddr, listener.addr);
      assertEquals(client.localAddr.transport, "tcp");
      assertEquals((given[0] as { autoSelectFamily: boolean }).autoSelectFamily, false);
      // TLS is over TCP, whatever else is said; and options may be inherited.
      const inherited = Object.create({ ...to(listener), caCerts: [tls.ca] });
      (yield* connectTls(Object.assign(inherited, { transport: "unix", path: "/nowhere" }))).abort();
    });
  } finally {
    Deno.connect = real;
  }
});

Deno.test("N11 what is optional may be undefined", granted, () => {
  const none = { hostname: undefined, alpnProtocols: undefined };
  const _connecting: ConnectTlsOptions = { ...none, port: 1, caCerts: undefined };
  const _starting: StartTlsOptions = { ...none, caCerts: undefined };
  const listening: ListenTlsOptions = { ...none, ...tls.server, port: 0 };
  listenTls(listening).close();
});

Deno.test("N11 without TLS there is nothing to agree on", () =>
  run(function* (loop) {
    const [left, right] = socketPair();
    assertEquals(yield* left.handshake(), { alpnProtocol: null });
    const shaking = loop.createTask(thrownBy(right.handshake()));
    yield* checkpoint();
    right.close();
    assertInstanceOf(yield* shaking.join(), ClosedError);
    yield* cancelScope(function* (scope): Coroutine {
      scope.cancel();
      yield* left.handshake();
      throw new Error("It was not cancelled");
    });
    left.close();
  }));

Deno.test(
  "N11 a certificate that is not trusted: connectTls throws, both ends are closed, others are served",
  granted,
  () =>
    run(function* (loop) {
      using listener = listenTls({ ...LOCAL, ...tls.server });
      loop.createTask(shout(loop, listener));
      const error = yield* thrownBy(connectTls(to(listener)));
      assertInstanceOf(error, Deno.errors.InvalidData);
      assertStringIncludes(error.message, "UnknownIssuer");
      const client = yield* connectTls({ ...to(listener), caCerts: [tls.ca] });
      assertEquals(yield* ask(loop, client, "still there"), "STILL THERE");
      client.close();
    }),
);

Deno.test("N11 a certificate for another name: connectTls throws", granted, () =>
  run(function* (loop) {
    using listener = listenTls({ hostname: "127.0.0.2", port: 0, ...tls.server });
    loop.createTask(shout(loop, listener));
    const error = yield* thrownBy(connectTls({ ...to(listener), hostname: "127.0.0.2", caCerts: [tls.ca] }));
    assertInstanceOf(error, Deno.errors.InvalidData);
  }));

Deno.test("N11 a server that is told a bad key says so at listenTls", granted, () => {
  const keys = { cert: tls.server.cert, key: "no key" };
  assertThrows(() => listenTls({ ...LOCAL, ...keys }), Error, "Cannot listen on 127.0.0.1 port 0: ");
  assertThrows(() => listenTls({ port: 0, ...keys }), Error, "Cannot listen on 0.0.0.0 port 0: ");
});

Deno.test(
  "N11 a server's handshake error comes where the server waits for the client",
  granted,
  () =>
    run(function* (loop) {
      using listener = listenTls({ ...LOCAL, ...tls.server });
      const client = yield* connect(to(listener));
      const [server] = yield* loop.sockAccept(listener);
      yield* loop.sockSendall(client, bytes("GET / HTTP/1.1\r\n\r\n"));
      assertInstanceOf(yield* thrownBy(server.handshake()), Deno.errors.InvalidData);
      assertInstanceOf(yield* thrownBy(loop.sockRecv(server, 1)), Error);
      server.close();
      client.abort();
    }),
);

for (const length of [0, 70, 200]) {
  Deno.test(
    `N11 a client that stops after ${length} bytes of its handshake holds up nobody`,
    granted,
    () =>
      run(function* (loop) {
        using listener = listenTls({ ...LOCAL, ...tls.server });
        loop.createTask(shout(loop, listener));
        const stalled: Socket[] = [];
        for (let i = 0; i < 5; i++) {
          const sock = yield* connect(to(listener));
          if (length > 0) yield* loop.sockSendall(sock, hello.subarray(0, length));
          stalled.push(sock);
        }
        yield* sleep(2);
        const client = yield* connectTls({ ...to(listener), caCerts: [tls.ca] });
        assertEquals(yield* ask(loop, client, "hello"), "HELLO");
        client.close();
        for (const sock of stalled) sock.close();
      }),
  );
}

/** The first bytes of a handshake: a record of 512 bytes with the beginning of a greeting, and then some. */
const hello = new Uint8Array(512);
hello.set([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);

Deno.test(
  "N4 close() wakes who waits in handshake, or in closeWrite before it, with ClosedError",
  granted,
  () =>
    run(function* (loop) {
      using listener = listenTls({ ...LOCAL, ...tls.server });
      using _silent = yield* connect(to(listener));
      const [server] = yield* loop.sockAccept(listener);
      const waiting = [server.handshake(), server.closeWrite()].map((coro) => loop.createTask(thrownBy(coro)));
      yield* sleep(1);
      server.close();
      for (const task of waiting) assertInstanceOf(yield* task.join(), ClosedError);
    }),
);

Deno.test("N11 a server gives a handshake its deadline with failAfter", granted, () =>
  run(function* (loop) {
    using listener = listenTls({ ...LOCAL, ...tls.server });
    const client = yield* connect(to(listener));
    const [server] = yield* loop.sockAccept(listener);
    assertInstanceOf(yield* thrownBy(failAfter(5, server.handshake())), TimeoutError);
    server.abort();
    client.abort();
  }));

Deno.test(
  "N11 a connectTls cancelled in the middle of its handshake leaves nothing behind",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL); // It accepts, and never answers.
      const dialling = loop.createTask(connectTls({ ...to(listener), caCerts: [tls.ca] }));
      const [server] = yield* loop.sockAccept(listener);
      yield* sleep(2);
      dialling.cancel();
      yield* dialling.wait();
      assert(dialling.cancelled);
      server.abort(); // Only now does Deno let go of the connection; we cannot make it.
    }),
);

Deno.test(
  "N9 a connectTls cancelled before anybody has accepted it leaves no attempt to connect",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen({ ...LOCAL, tcpBacklog: 1 });
      const waiting = [yield* connect(to(listener)), yield* connect(to(listener))]; // There is room for no more.
      const dialling = loop.createTask(connectTls(to(listener)));
      for (let n = 0; n < 3; n++) yield* checkpoint(); // It has begun.
      dialling.cancel();
      yield* dialling.wait();
      assert(dialling.cancelled);
      for (const sock of waiting) sock.abort();
    }),
);

Deno.test("N11 a client may bring a certificate of its own", granted, () =>
  run(function* (loop) {
    using listener = listenTls({ ...LOCAL, ...tls.server });
    loop.createTask(shout(loop, listener));
    const client = yield* connectTls({ ...to(listener), ...tls.server, caCerts: [tls.ca] });
    assertEquals(yield* ask(loop, client, "hello"), "HELLO");
    client.abort();
  }));

Deno.test("N11 options that are none are refused before anything is connected", granted, () =>
  run(function* () {
    for (const options of [{ caCerts: "x" }, { caCerts: null }, { alpnProtocols: 5 }, { hostname: 5 }]) {
      const error = yield* thrownBy(connectTls({ port: 9, ...options } as any));
      assertInstanceOf(error, TypeError);
      assertStringIncludes(error.message, "Cannot start TLS with");
    }
    for (const port of [0, 65536, "443"] as number[]) {
      const error = yield* thrownBy(connectTls({ port }));
      assertInstanceOf(error, RangeError);
      assertStringIncludes(error.message, "Cannot connect to port");
    }
    assertThrows(() => listenTls({ port: 65536, ...tls.server }), RangeError, "Cannot listen on port 65536");
    assertStringIncludes(
      String(yield* thrownBy(connectTls(null as never))),
      "Cannot connect to null: it takes options",
    );
    assertThrows(() => listenTls(null as never), TypeError, "Cannot listen on null: it takes options");
  }));

Deno.test(
  "N11 certificates that cannot be read fail connectTls, and no connection is left",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      const caCerts = ["-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----"];
      const dialling = loop.createTask(thrownBy(connectTls({ ...to(listener), caCerts })));
      const [server] = yield* loop.sockAccept(listener);
      assertInstanceOf(yield* dialling.join(), Error);
      assertEquals((yield* readAll(loop, server)).length, 0);
      server.close();
    }),
);

Deno.test(
  "N11 a name that no certificate can have fails connectTls, and no connection is left",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      const address = { ...to(listener), hostname: "127.1" }; // one to connect to, as the system reads it
      const dialling = loop.createTask(thrownBy(connectTls(address)));
      const [server] = yield* loop.sockAccept(listener);
      assertStringIncludes(String(yield* dialling.join()), "Invalid hostname: '127.1'");
      assertEquals((yield* readAll(loop, server)).length, 0);
      server.close();
    }),
);

Deno.test("N11 a certificate of ours without its key, or the key alone, is refused", granted, () =>
  run(function* () {
    const { cert, key } = tls.server;
    for (const options of [{ cert }, { key }, { cert: "" }, { key: "" }]) {
      const error = yield* thrownBy(connectTls({ port: 9, ...options } as any));
      assertInstanceOf(error, TypeError);
      assertStringIncludes(error.message, "must be specified as well");
    }
  }));

Deno.test("N11 a certificate of ours that is none is refused", granted, async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const accepted = listener.accept().then((conn) => conn.close(), () => {});
  const address = { hostname: "127.0.0.1", port: listener.addr.port };
  await run(function* () {
    for (const none of ["", "no"]) {
      assertInstanceOf(yield* thrownBy(connectTls({ ...address, cert: none, key: none })), Deno.errors.InvalidData);
    }
  });
  listener.close();
  await accepted;
});

// ---- startTls ----------------------------------------------------------------------------------------------------

/** A plain connection to a server that speaks TLS: the client has to start it. */
function* plainPair(loop: Loop): Coroutine<{ plain: Socket; listener: Listener }> {
  const listener = listenTls({ ...LOCAL, ...tls.server });
  loop.createTask(shout(loop, listener));
  return { plain: yield* connect(to(listener)), listener };
}

const TRUST = () => ({ hostname: "127.0.0.1", caCerts: [tls.ca] });

Deno.test("N11 startTls goes on with TLS, and the plain socket is closed", granted, () =>
  run(function* (loop) {
    const { plain, listener } = yield* plainPair(loop);
    const client = yield* startTls(plain, TRUST());
    assertEquals([client.localAddr, client.remoteAddr], [plain.localAddr, plain.remoteAddr]);
    assertEquals(yield* ask(loop, client, "secret"), "SECRET");
    assertInstanceOf(yield* thrownBy(loop.sockRecv(plain, 1)), ClosedError);
    plain.close();
    plain.abort();
    assertEquals(yield* ask(loop, client, "still"), "STILL");
    client.close();
    listener.close();
  }));

Deno.test(
  "N11 startTls with a reader waiting or a read in flight is refused, and nothing is lost",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      const client = yield* connect(to(listener));
      const [server] = yield* loop.sockAccept(listener);
      const reader = loop.createTask(loop.sockRecv(client, 10));
      yield* sleep(1);
      const busy = yield* thrownBy(startTls(client, TRUST()));
      assertInstanceOf(busy, BusyError);
      assertEquals(busy.message, `Cannot start TLS on ${client}: a task is waiting on it`);
      reader.cancel();
      yield* reader.wait();
      assertStringIncludes(String(yield* thrownBy(startTls(client, TRUST()))), "a read is under way");
      yield* loop.sockSendall(server, bytes("plain"));
      yield* readWait(client);
      assertStringIncludes(String(yield* thrownBy(startTls(client, TRUST()))), "5 bytes have arrived");
      assertEquals(text(yield* readExactly(loop, client, 5)), "plain");
      yield* loop.sockSendall(client, bytes("also"));
      assertEquals(text(yield* readExactly(loop, server, 4)), "also");
      client.close();
      server.close();
    }),
);

Deno.test(
  "N11 startTls goes ahead after a message of any length: no read is left under way",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      for (const length of [1, 511, 512, 513, 1024, 4096, 16_384, 20_000, 65_536]) {
        const client = yield* connect(to(listener));
        const [server] = yield* loop.sockAccept(listener);
        const reader = loop.createTask(readExactly(loop, client, length));
        yield* sleep(1);
        yield* loop.sockSendall(server, new Uint8Array(length));
        yield* reader.join();
        const starting = loop.createTask(thrownBy(startTls(client, TRUST())));
        assertEquals((yield* loop.sockRecv(server, 1))[0], 0x16, `after ${length} bytes`); // a handshake begins
        server.abort();
        assert(!((yield* starting.join()) instanceof BusyError));
      }
    }),
);

Deno.test(
  "N11 startTls on what has TLS, or is not a TCP socket, or is closed, is refused",
  granted,
  () =>
    run(function* (loop) {
      const { plain, listener } = yield* plainPair(loop);
      const client = yield* startTls(plain, TRUST());
      assertStringIncludes(String(yield* thrownBy(startTls(client, TRUST()))), "it has TLS already");
      client.close();
      const [left, right] = socketPair();
      assertStringIncludes(String(yield* thrownBy(startTls(left, TRUST()))), "it is not a TCP socket");
      assertInstanceOf(yield* thrownBy(startTls({} as Socket)), TypeError);
      left.close();
      right.close();
      assertInstanceOf(yield* thrownBy(startTls(plain, TRUST())), ClosedError);
      listener.close();
    }),
);

Deno.test(
  "N11 startTls with options that Deno does not like throws, and the connection is closed",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      const plain = yield* connect(to(listener));
      using server = (yield* loop.sockAccept(listener))[0];
      assertInstanceOf(yield* thrownBy(startTls(plain, { hostname: "no name!" })), TypeError);
      assertEquals((yield* loop.sockRecv(server, 10)).length, 0);
    }),
);

Deno.test(
  "N11 startTls with what are no options, or on a side that was ended, is refused, and nothing is lost",
  granted,
  () =>
    run(function* (loop) {
      using listener = listen(LOCAL);
      using plain = yield* connect(to(listener));
      using server = (yield* loop.sockAccept(listener))[0];
      for (const options of [null, "localhost", { hostname: 5 }, { caCerts: "none" }, { alpnProtocols: [1] }]) {
        const error = String(yield* thrownBy(startTls(plain, options as Deno.StartTlsOptions)));
        assertStringIncludes(error, "TypeError: Cannot start TLS with");
      }
      yield* plain.closeWrite();
      assertInstanceOf(yield* thrownBy(startTls(plain)), Deno.errors.BrokenPipe);
      yield* loop.sockSendall(server, new Uint8Array(3));
      assertEquals((yield* loop.sockRecv(plain, 10)).length, 3);
      yield* server.closeWrite();
      assertEquals((yield* loop.sockRecv(server, 10)).length, 0);
      assertInstanceOf(yield* thrownBy(startTls(server)), Deno.errors.BrokenPipe);
    }),
);

Deno.test(
  "N4 close() is heard at once by who waits for a handshake, also if there is something to deliver",
  granted,
  () =>
    run(function* (loop) {
      using listener = listenTls({ ...LOCAL, ...tls.server });
      const silent = yield* connect(to(listener));
      const [server] = yield* loop.sockAccept(listener);
      const shaking = loop.createTask(thrownBy(server.handshake()));
      yield* loop.sockSendall(server, new Uint8Array(10));
      yield* sleep(1);
      server.close();
      assertInstanceOf(yield* failAfter(5000, shaking.join()), ClosedError);
      server.abort();
      silent.abort();
    }),
);

Deno.test("N11 startTls that is not trusted throws, and the connection is closed", granted, () =>
  run(function* (loop) {
    const { plain, listener } = yield* plainPair(loop);
    const error = yield* thrownBy(startTls(plain, { hostname: "127.0.0.1" }));
    assertInstanceOf(error, Deno.errors.InvalidData);
    assertStringIncludes(error.message, `Cannot start TLS on socket ${plain.id}: `);
    listener.close();
  }));

Deno.test("N11 a startTls cancelled at any moment leaves nothing behind", granted, () =>
  run(function* (loop) {
    for (let turns = 0; turns < 5; turns++) {
      const { plain, listener } = yield* plainPair(loop);
      const starting = loop.createTask(startTls(plain, TRUST()));
      for (let i = 0; i < turns; i++) yield* i < 3 ? checkpoint() : sleep(1);
      starting.cancel();
      yield* starting.wait();
      if (!starting.cancelled) (yield* starting.join()).abort();
      plain.abort();
      yield* sleep(2);
      listener.close();
    }
  }));
