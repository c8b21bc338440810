/**
 * net_transports.ts: the stream transports that one battery of tests runs against, and what those tests share.
 *
 * Each transport makes two sockets that are connected to each other. The pair in memory is one of them, so that it
 * behaves as the real ones do, and needs no permission.
 */
import { type Coroutine, failAfter, Loop, type Socket, taskGroup } from "../mod.ts";
import { connect, connectTls, listen, type Listener, listenTls, socketPair } from "../mod.ts";
import { type Needs, needs } from "./permissions.ts";

/** A test that takes longer, in milliseconds, hangs. */
const HANGS = 10_000;

/** A way to connect two sockets. */
export interface Transport {
  readonly name: string;
  /** What it must be granted. */
  readonly needs: Needs;
  /** Opens a listener, and says how to connect to it; null where there is no such thing. */
  readonly open: (() => { listener: Listener; dial: () => Coroutine<Socket> }) | null;
}

const port = (listener: Listener<Deno.NetAddr>) => listener.addr.port;

/** The certificates of the tests. */
export const tls = {
  get ca(): string {
    return read("ca.pem");
  },
  get server(): { cert: string; key: string } {
    return { cert: read("localhost.pem"), key: read("localhost.key") };
  },
};

function read(name: string): string {
  return Deno.readTextFileSync(new URL(`tls/${name}`, import.meta.url));
}

export const tcp: Transport = {
  name: "tcp",
  needs: { net: true },
  open() {
    const listener = listen({ hostname: "127.0.0.1", port: 0 });
    return { listener, dial: () => connect({ hostname: "127.0.0.1", port: port(listener) }) };
  },
};

export const unix: Transport = {
  name: "unix",
  needs: { net: true, read: true, write: true },
  open() {
    const path = `${Deno.makeTempDirSync()}/sock`;
    const listener = listen({ transport: "unix", path });
    return { listener, dial: () => connect({ transport: "unix", path }) };
  },
};

export const tlsTransport: Transport = {
  name: "tls",
  needs: { net: true, read: true },
  open() {
    const listener = listenTls({ hostname: "127.0.0.1", port: 0, ...tls.server });
    return {
      listener,
      dial: () => connectTls({ hostname: "127.0.0.1", port: port(listener), caCerts: [tls.ca] }),
    };
  },
};

export const memory: Transport = { name: "pair in memory", needs: {}, open: null };

/** Every one of them. */
export const transports: readonly Transport[] = [tcp, unix, tlsTransport, memory];

/** What a test's body gets. */
export interface Scene {
  loop: Loop;
  /** The two ends. */
  client: Socket;
  server: Socket;
}

/** Runs `body` in a fresh loop, and fails if it hangs. */
export function run<T>(body: (loop: Loop) => Coroutine<T>): Promise<T> {
  const loop = new Loop();
  return loop.run(failAfter(HANGS, body(loop)));
}

/** Runs `body` with two connected sockets, and takes them down whatever happened to them. */
export function runConnected<T>(transport: Transport, body: (scene: Scene) => Coroutine<T>): Promise<T> {
  return run(function* (loop) {
    const [client, server] = yield* connected(loop, transport);
    try {
      return yield* body({ loop, client, server });
    } finally {
      client.abort();
      server.abort();
    }
  });
}

/** Two sockets that are connected to each other. */
export function* connected(loop: Loop, transport: Transport): Coroutine<[client: Socket, server: Socket]> {
  if (!transport.open) return socketPair();
  const { listener, dial } = transport.open();
  try {
    return yield* taskGroup(function* (group) {
      const accepting = group.createTask(accept(loop, listener));
      const client = yield* dial();
      return [client, yield* accepting.join()] as [Socket, Socket];
    });
  } finally {
    removeSocketFile(listener);
    listener.close();
  }
}

/** Accepts one connection, its TLS handshake included. */
export function* accept(loop: Loop, listener: Listener): Coroutine<Socket> {
  const [sock] = yield* loop.sockAccept(listener);
  yield* sock.handshake();
  return sock;
}

/** Removes what a Unix socket leaves in the file system. */
export function removeSocketFile(listener: Listener): void {
  if (listener.addr.transport !== "unix") return;
  Deno.removeSync(listener.addr.path.replace(/\/sock$/, ""), { recursive: true });
}

/** Registers a test of `body` for each transport, `only` those given. */
export function battery(
  name: string,
  body: (scene: Scene) => Coroutine<void>,
  only: readonly Transport[] = transports,
): void {
  for (const transport of only) {
    Deno.test(`${name} (${transport.name})`, needs(transport.needs), () => runConnected(transport, body));
  }
}

/** `length` bytes in which every place is told from its neighbours. */
export function pattern(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >> 8) * 7 + (i >> 16)) & 255;
  return bytes;
}

/** Whole numbers from 1 to `max`, always the same ones. */
export function* numbers(seed: number, max: number): Generator<number, never> {
  let x = seed;
  while (true) {
    x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff;
    yield 1 + (x >> 8) % max;
  }
}

/** Reads until `sock` ends and returns it all. */
export function* readAll(loop: Loop, sock: Socket, maxBytes = 65536): Coroutine<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  while (true) {
    const chunk = yield* loop.sockRecv(sock, maxBytes);
    if (chunk.length === 0) break;
    chunks.push(chunk);
    length += chunk.length;
  }
  return concat(chunks, length);
}

/** Reads exactly `length` bytes. */
export function* readExactly(loop: Loop, sock: Socket, length: number): Coroutine<Uint8Array> {
  const bytes = new Uint8Array(length);
  let n = 0;
  while (n < length) {
    const got = yield* loop.sockRecvInto(sock, bytes.subarray(n));
    if (got === 0) throw new Error(`The stream ended after ${n} of ${length} bytes`);
    n += got;
  }
  return bytes;
}

function concat(chunks: Uint8Array[], length: number): Uint8Array {
  const all = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

/** Whether two arrays hold the same bytes; quicker than a deep comparison of megabytes. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
