// The two echo servers of asyncio's manual that the article mentions, on serve(): with a stream, and with a protocol.
// Terminal 1:  deno run --allow-net examples/echo_stream.ts     (at the end: a port other than 25000, then "protocol")
// Terminals 2, 3 and so on: nc 127.0.0.1 25000                  (type a line, and it comes back after a "Got: ")
import { type Addr, type Coroutine, listen, Loop, serve, type Socket, Stream } from "../mod.ts";

/** A stream is asked for data: the lines stand in the order in which things happen. */
function* echoStream(sock: Socket, addr: Addr): Coroutine {
  console.log("connect from", show(addr));
  const stream = new Stream(sock);
  for (let data; (data = yield* stream.read()).length > 0;) yield* stream.write(concat(GOT, data));
  console.log("connection closed");
}

/** A protocol is told of data: it answers calls, and something else does the reading and writing. */
class EchoProtocol {
  connectionMade = (addr: Addr): void => console.log("connect from", show(addr));
  dataReceived = (data: Uint8Array): Uint8Array => concat(GOT, data);
  connectionLost = (): void => console.log("connection closed");
}

function* echoProtocol(sock: Socket, addr: Addr): Coroutine {
  const protocol = new EchoProtocol();
  const stream = new Stream(sock);
  protocol.connectionMade(addr);
  for (let data; (data = yield* stream.read()).length > 0;) yield* stream.write(protocol.dataReceived(data));
  protocol.connectionLost();
}

const GOT = new TextEncoder().encode("Got: ");

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const [port = 25000, style] = Deno.args;
  const listener = listen({ hostname: "127.0.0.1", port: Number(port) });
  const onListen = (addr: Addr) => console.log("listening on", show(addr));
  await new Loop().run(serve(listener, style === "protocol" ? echoProtocol : echoStream, { onListen }));
}
