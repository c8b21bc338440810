/**
 * Rule N14: datagrams; and `reusePort`, which Deno has under the same flag. Without the flag `--unstable-net` this file
 * tests what is said then, and runs itself once more with it.
 */
import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import {
  type Addr,
  BusyError,
  checkpoint,
  ClosedError,
  connect,
  type Coroutine,
  datagram,
  type DatagramConnection,
  DatagramSocket,
  DefaultSelector,
  EVENT_READ,
  EVENT_WRITE,
  listen,
  type Listener,
  Loop,
  sleep,
  WouldBlock,
} from "../mod.ts";
import { run } from "./net_transports.ts";
import { needs } from "./permissions.ts";
import { bytes, text, thrownBy } from "./world.ts";

const flagged = "listenDatagram" in Deno;
const granted = needs({ net: true });
const LOCAL = { hostname: "127.0.0.1", port: 0 };

/** Deno lets go of the file when the receive that was in flight has heard of the end: some turns later. */
function* bind(port: number): Coroutine<DatagramSocket> {
  for (;;) {
    try {
      return datagram({ hostname: "127.0.0.1", port });
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
      yield* sleep(1);
    }
  }
}

// ---- With the flag -----------------------------------------------------------------------------------------------

if (flagged) {
  Deno.test(
    "N14 a socket of Deno's own can be taken over, as one that is to join a multicast group",
    granted,
    () =>
      run(function* (loop) {
        using own: DatagramSocket = new DatagramSocket(Deno.listenDatagram({ transport: "udp", ...LOCAL }));
        using other = datagram(LOCAL);
        yield* loop.sockSendto(other, bytes("hello"), own.addr);
        assertEquals(yield* loop.sockRecvfrom(own, 100), [bytes("hello"), other.addr]);
      }),
  );

  Deno.test("N14 datagrams arrive whole, with the address of their sender", granted, () =>
    run(function* (loop) {
      using left = datagram(LOCAL);
      using right = datagram(LOCAL);
      assert(left.addr.port > 0); // As types go it has one.
      for (const word of ["one", "", "three"]) {
        assertEquals(yield* loop.sockSendto(left, bytes(word), right.addr), word.length);
      }
      for (const word of ["one", "", "three"]) {
        const [data, addr] = yield* loop.sockRecvfrom(right, 100);
        assertEquals(text(data), word);
        assertEquals(addr, left.addr);
      }
      yield* loop.sockSendto(right, bytes("back"), left.addr);
      assertEquals(text((yield* loop.sockRecvfrom(left, 100))[0]), "back");
    }));

  Deno.test(
    "N14 what is no transport, or no address to send to, is refused where it is written",
    granted,
    () =>
      run(function* (loop) {
        for (const transport of ["tcp", "unixpacket", null]) {
          assertThrows(() => datagram({ port: 0, transport } as any), TypeError, "transport");
        }
        using socket = datagram({ ...LOCAL, transport: undefined });
        const { port } = socket.addr as Deno.NetAddr;
        const wrong = [undefined, null, "127.0.0.1", LOCAL, { port }, { hostname: "127.0.0.1" }, {
          hostname: "127.0.0.1",
          port: "80",
        }];
        const elsewhere = { transport: "unix", path: "elsewhere.sock" };
        for (const addr of [...wrong, elsewhere, { hostname: "127.0.0.1", port: 65536 + port }]) {
          const error = yield* thrownBy(loop.sockSendto(socket, bytes("lost"), addr as any));
          assert(error instanceof TypeError || error instanceof RangeError, String(error));
          assertStringIncludes(error.message, "Cannot send to");
        }
        yield* loop.sockSendto(socket, bytes("found"), socket.addr);
        assertEquals(text((yield* loop.sockRecvfrom(socket, 10))[0]), "found");
      }),
  );

  Deno.test("N14 options of datagram may be inherited", granted, () => {
    using socket = datagram(Object.create(LOCAL));
    assertEquals((socket.addr as Deno.NetAddr).hostname, "127.0.0.1");
  });

  Deno.test("N14 IPv6 works as IPv4 does", granted, () =>
    run(function* (loop) {
      using left = datagram({ hostname: "::1", port: 0 });
      using right = datagram({ hostname: "::1", port: 0 });
      yield* loop.sockSendto(left, bytes("six"), right.addr);
      const [data, addr] = yield* loop.sockRecvfrom(right, 100);
      assertEquals(text(data), "six");
      assertEquals(addr, left.addr);
    }));

  Deno.test("N14 a port is free soon after close(), with a receive in flight too", granted, () =>
    run(function* (loop) {
      let port = 0;
      for (let i = 0; i < 5; i++) {
        const socket = yield* bind(port);
        port = (socket.addr as Deno.NetAddr).port;
        const waiting = loop.createTask(thrownBy(loop.sockRecvfrom(socket, 10)));
        yield* sleep(1);
        socket.close();
        assertInstanceOf(yield* waiting.join(), ClosedError);
      }
    }));

  Deno.test("N14 without a hostname all addresses are received at, as documented, and as with listen", granted, () => {
    using socket = datagram({ port: 0 });
    assertEquals((socket.addr as Deno.NetAddr).hostname, "0.0.0.0");
    using listener = listen({ port: 0 });
    assertEquals(listener.addr.hostname, "0.0.0.0");
    for (const options of [undefined, null, 25000] as never[]) {
      assertThrows(() => datagram(options), TypeError, `Cannot receive on ${options}: it takes options`);
    }
  });

  Deno.test(
    "N14 of a datagram that is longer than asked for the rest is lost, the next is whole",
    granted,
    () =>
      run(function* (loop) {
        using left = datagram(LOCAL);
        using right = datagram(LOCAL);
        yield* loop.sockSendto(left, bytes("too long"), right.addr);
        yield* loop.sockSendto(left, bytes("next"), right.addr);
        assertEquals(text((yield* loop.sockRecvfrom(right, 3))[0]), "too");
        assertEquals(text((yield* loop.sockRecvfrom(right, 100))[0]), "next");
      }),
  );

  Deno.test(
    "N14 the largest datagram arrives, a larger one is refused where it was sent",
    granted,
    () =>
      run(function* (loop) {
        using left = datagram(LOCAL);
        using right = datagram(LOCAL);
        yield* loop.sockSendto(left, new Uint8Array(65507), right.addr);
        assertEquals((yield* loop.sockRecvfrom(right, 70_000))[0].length, 65507);
        assertInstanceOf(yield* thrownBy(loop.sockSendto(left, new Uint8Array(65508), right.addr)), Error);
        assertInstanceOf(yield* thrownBy(loop.sockSendto(left, new Uint8Array(65537), right.addr)), RangeError);
        assertEquals(yield* loop.sockSendto(left, bytes("on"), right.addr), 2);
      }),
  );

  Deno.test("N14 a cancelled sockRecvfrom leaves the datagram to the next", granted, () =>
    run(function* (loop) {
      using left = datagram(LOCAL);
      using right = datagram(LOCAL);
      const first = loop.createTask(loop.sockRecvfrom(right, 100));
      yield* sleep(1);
      first.cancel();
      yield* first.wait();
      yield* loop.sockSendto(left, bytes("keep"), right.addr);
      assertEquals(text((yield* loop.sockRecvfrom(right, 100))[0]), "keep");
    }));

  Deno.test(
    "N14 a second receiver gets BusyError; close() wakes the first with ClosedError",
    granted,
    () =>
      run(function* (loop) {
        const sock = datagram(LOCAL);
        const first = loop.createTask(thrownBy(loop.sockRecvfrom(sock, 100)));
        yield* sleep(1);
        assertInstanceOf(yield* thrownBy(loop.sockRecvfrom(sock, 100)), BusyError);
        sock.close();
        sock.close();
        assertInstanceOf(yield* first.join(), ClosedError);
        for (const use of [() => sock.recvfrom(1), () => sock.sendto(bytes("x"), sock.addr), () => sock.sent()]) {
          assertThrows(use, ClosedError, "it is closed");
        }
      }),
  );

  Deno.test("N14 a port in use is AddrInUse, one out of range a RangeError", granted, () => {
    using sock = datagram(LOCAL);
    const { port } = sock.addr as Deno.NetAddr;
    const { AddrInUse } = Deno.errors;
    assertThrows(
      () => datagram({ hostname: "127.0.0.1", port }),
      AddrInUse,
      `receive on 127.0.0.1 port ${port}: Address`,
    );
    assertThrows(() => datagram({ port: 65536 }), RangeError, "Cannot receive on port 65536");
  });

  Deno.test("N8 with reusePort two listeners share a port", granted, () =>
    run(function* (loop) {
      using first = listen({ ...LOCAL, reusePort: true });
      const { port } = first.addr as Deno.NetAddr;
      using second = listen({ hostname: "127.0.0.1", port, reusePort: true });
      const served = new Set<Listener>();
      for (const listener of [first, second]) {
        loop.createTask((function* () {
          while (true) {
            const [sock] = yield* loop.sockAccept(listener);
            served.add(listener);
            sock.close();
          }
        })());
      }
      for (let i = 0; i < 100 && served.size < 2; i++) {
        const client = yield* connect({ port });
        yield* loop.sockRecv(client, 1);
        client.close();
      }
      assertEquals(served.size, 2);
    }));
}

// ---- Without it --------------------------------------------------------------------------------------------------

if (!flagged) {
  Deno.test("N14 without --unstable-net, datagram and reusePort say what is missing", granted, () => {
    assertThrows(() => datagram(LOCAL), Deno.errors.NotSupported, "Deno needs the flag --unstable-net");
    assertThrows(
      () => listen({ ...LOCAL, reusePort: true }),
      Deno.errors.NotSupported,
      "needs the flag --unstable-net",
    );
  });

  Deno.test(
    "N14 with --unstable-net, all tests of this file pass",
    needs({ net: true, run: true, read: true }),
    async () => {
      const args = ["test", "-A", "--no-check", "--unstable-net", ...importMap(), new URL(import.meta.url).pathname];
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args, env: { NO_COLOR: "1" } })
        .output();
      const output = text(stdout) + text(stderr);
      assertEquals(code, 0, output);
      assertStringIncludes(output, "N14 datagrams arrive whole");
    },
  );
}

/** The stand-ins, if this run uses them. */
function importMap(): string[] {
  const used = import.meta.resolve("@std/assert");
  return used.startsWith("file:") ? [`--import-map=${new URL("import_map.json", used).pathname}`] : [];
}

// ---- Over a connection that the test completes -------------------------------------------------------------------

class FakeDatagrams implements DatagramConnection {
  readonly addr: Addr = { transport: "udp", hostname: "127.0.0.1", port: 1 };
  receives: { buffer: Uint8Array; resolve(got: [Uint8Array, Addr]): void; reject(error: Error): void }[] = [];
  sends: { data: Uint8Array; resolve(n: number): void; reject(error: Error): void }[] = [];
  receive(buffer: Uint8Array): Promise<[Uint8Array, Addr]> {
    const { promise, resolve, reject } = Promise.withResolvers<[Uint8Array, Addr]>();
    this.receives.push({ buffer, resolve, reject });
    return promise;
  }
  send(data: Uint8Array): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    this.sends.push({ data, resolve, reject });
    return promise;
  }
  close(): void {
    for (const pending of [...this.receives, ...this.sends]) pending.reject(new Deno.errors.BadResource("closed"));
  }
  arrive(data: string): void {
    const { buffer, resolve } = this.receives.shift()!;
    buffer.set(bytes(data));
    resolve([buffer.subarray(0, data.length), this.addr]);
  }
}

/** Lets the other tasks run until `holds()`. */
function* untilHolds(holds: () => boolean): Coroutine {
  while (!holds()) yield* checkpoint();
}

Deno.test("N14 one datagram is held each way, and receiving reuses its buffer unseen", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  const selector = new DefaultSelector();
  selector.register(sock, EVENT_READ);
  await selector.select(0);
  const [{ buffer }] = conn.receives;
  conn.arrive("one");
  const views = [];
  for (const next of ["two", "six"]) {
    await selector.select();
    assertEquals(conn.receives.length, 0); // Not before the one that is here is taken.
    views.push(sock.recvfrom(10)[0]);
    assertThrows(() => sock.recvfrom(1), WouldBlock, "nothing has arrived");
    for (const n of [0, 1.5]) assertThrows(() => sock.recvfrom(n), RangeError, `Cannot recv ${n} bytes`);
    await selector.select(0);
    assert(conn.receives[0].buffer === buffer);
    conn.arrive(next);
  }
  assertEquals(views.map(text), ["one", "two"]);
  assertThrows(() => sock.sendto("out" as never, conn.addr), TypeError, 'Cannot send "out"');
  assertEquals(sock.sent(), 0);
  const data = bytes("out");
  assertEquals(sock.sendto(data, conn.addr), 3);
  data.fill(0);
  assertEquals(text(conn.sends[0].data), "out");
  assertThrows(() => sock.sendto(data, conn.addr), WouldBlock, "a datagram has not left yet");
  assertThrows(() => sock.sent(), WouldBlock, "it is still sending");
  sock.close();
  await selector.select(0);
  selector.close();
});

Deno.test("N14 while a datagram leaves the socket cannot be written; a watch for that receives nothing, a second one nothing twice", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  const selector = new DefaultSelector();
  assert(selector.isReady(sock, EVENT_WRITE));
  sock.sendto(bytes("x"), conn.addr);
  assert(!selector.isReady(sock, EVENT_WRITE));
  for (const event of [EVENT_WRITE, EVENT_READ, EVENT_READ]) {
    selector.register(sock, event);
    await selector.select(0);
    selector.unregister(sock);
    assertEquals(conn.receives.length, event === EVENT_WRITE ? 0 : 1);
  }
  conn.sends[0].resolve(1);
  await selector.select(0);
  assert(selector.isReady(sock, EVENT_WRITE));
  sock.close();
  selector.close();
});

Deno.test("N14 what goes wrong is thrown to who sent or receives, once, and the socket goes on", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  const loop = new Loop();
  await loop.run((function* () {
    const sending = loop.createTask(thrownBy(loop.sockSendto(sock, bytes("x"), conn.addr)));
    const receiving = loop.createTask(thrownBy(loop.sockRecvfrom(sock, 10)));
    yield* untilHolds(() => conn.sends.length > 0 && conn.receives.length > 0);
    assertInstanceOf(yield* thrownBy(loop.sockSendto(sock, bytes("y"), conn.addr)), BusyError);
    conn.sends.shift()!.reject(new Deno.errors.NotCapable("no"));
    conn.receives.shift()!.reject(new Deno.errors.ConnectionRefused("refused"));
    assertInstanceOf(yield* sending.join(), Deno.errors.NotCapable);
    assertInstanceOf(yield* receiving.join(), Deno.errors.ConnectionRefused);
    const again = loop.createTask(loop.sockRecvfrom(sock, 10));
    yield* untilHolds(() => conn.receives.length > 0);
    conn.arrive("more");
    assertEquals(text((yield* again.join())[0]), "more");
    const cancelled = loop.createTask(thrownBy(loop.sockSendto(sock, bytes("gone"), conn.addr)));
    yield* untilHolds(() => conn.sends.length > 0);
    cancelled.cancel();
    assertEquals((yield* cancelled.join() as Generator<never, { bytesSent: number }>).bytesSent, 4);
    assert(!sock.sending);
    sock.close();
  })());
});

Deno.test("N14 C4 a sockSendto that is cancelled before its turn has handed over nothing", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  const loop = new Loop();
  sock.sendto(bytes("first"), conn.addr);
  await loop.run((function* () {
    const waiting = loop.createTask(thrownBy(loop.sockSendto(sock, bytes("second"), conn.addr)));
    yield* untilHolds(() => sock.sending);
    waiting.cancel();
    assertEquals((yield* waiting.join() as Generator<never, { bytesSent: number }>).bytesSent, 0);
  })());
  assertEquals(conn.sends.length, 1);
  sock.close();
});

Deno.test("N14 the largest datagram is handed over, a larger one is not", () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  assertThrows(() => sock.sendto(new Uint8Array(65537), conn.addr), RangeError, "a datagram has 65536 at most");
  assertEquals(sock.sendto(new Uint8Array(65536), conn.addr), 65536);
  sock.close();
});

Deno.test("N14 the buffer of a datagram that could not leave serves no other: the platform may still read it", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  sock.sendto(bytes("first"), conn.addr);
  conn.sends[0].reject(new Deno.errors.ConnectionRefused("refused"));
  await new Promise((resolve) => setImmediate(resolve));
  sock.sendto(bytes("second"), conn.addr);
  assert(conn.sends[0].data.buffer !== conn.sends[1].data.buffer);
  sock.close();
});

Deno.test("N14 a datagram goes to a path from a socket that has one, and only from there", () => {
  const addr: Addr = { transport: "unix", path: "/here" };
  const udp = new DatagramSocket(new FakeDatagrams());
  const unix = new DatagramSocket(Object.assign(new FakeDatagrams(), { addr }));
  assertThrows(() => udp.sendto(bytes("x"), addr), TypeError, 'Cannot send to path "/here"');
  assertEquals(unix.sendto(bytes("x"), addr), 1);
  for (const sock of [udp, unix]) sock.close();
});

Deno.test("N4 N14 a datagram socket that is closed as it sends tells who waits", async () => {
  const conn = new FakeDatagrams();
  const sock = new DatagramSocket(conn);
  const loop = new Loop();
  await loop.run((function* () {
    const sending = loop.createTask(thrownBy(loop.sockSendto(sock, bytes("x"), conn.addr)));
    while (conn.sends.length === 0) yield* checkpoint();
    sock.close();
    assertInstanceOf(yield* sending.join(), ClosedError);
  })());
});
