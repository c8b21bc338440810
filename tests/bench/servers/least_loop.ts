// The least loop that has this API over Deno's promises: generators yield what they wait for and are stepped in turn, what
// `recv` returns is the caller's to keep, what `send` was given may be changed at once. There are no tasks, no cancelling,
// no errors, no fairness and no bound on memory: it is the floor for a loop that has them. The arguments are how much it
// reads at a time, 65536 by default, and `into` to read into one buffer for each connection.

type Op = readonly [name: string, sock: Socket];
type Coroutine<T = void> = Generator<Op, T, void>;

let ready: Coroutine[] = [];
let wake = () => {};

function makeReady(coro: Coroutine): void {
  ready.push(coro);
  wake();
}

/** How much is read, and sent, at a time at most. */
const SLAB = Number(Deno.args[0] ?? 65536);
/** Buffers that nothing is leaving from. */
const pool: Uint8Array<ArrayBuffer>[] = [];

class Socket {
  #slab = new Uint8Array(SLAB);
  #from = 0;
  #to = 0;
  #last = 0;
  #eof = false;
  #out: Uint8Array<ArrayBuffer> | null = null;
  #leaving = 0;
  #writer: Coroutine | null = null;

  constructor(readonly conn: Deno.Conn) {}

  readWait(coro: Coroutine): void {
    if (this.#to > 0 && SLAB - this.#to <= Math.max(this.#last, SLAB / 4)) { // A message cut in two is held back by TCP.
      this.#slab = new Uint8Array(SLAB);
      this.#from = this.#to = 0;
    }
    this.conn.read(this.#slab.subarray(this.#to)).then((n) => {
      if (n === null) this.#eof = true;
      else this.#to += this.#last = n;
      makeReady(coro);
    });
  }

  recv(): Uint8Array {
    const data = this.#eof ? this.#slab.subarray(0, 0) : this.#slab.subarray(this.#from, this.#to);
    this.#from = this.#to;
    return data;
  }

  recvInto(buffer: Uint8Array): number {
    const length = this.#eof ? 0 : this.#to;
    buffer.set(this.#slab.subarray(0, length));
    this.#from = this.#to = 0;
    return length;
  }

  writeWait(coro: Coroutine): void {
    if (this.#out === null) makeReady(coro);
    else this.#writer = coro;
  }

  send(data: Uint8Array): void {
    this.#out = pool.pop() ?? new Uint8Array(SLAB);
    this.#out.set(data);
    this.#leaving = data.length;
    this.#write(this.#out, 0);
  }

  #write(out: Uint8Array<ArrayBuffer>, from: number): void {
    this.conn.write(out.subarray(from, this.#leaving)).then((n) => {
      if (from + n < this.#leaving) return this.#write(out, from + n);
      pool.push(out);
      this.#out = null;
      if (this.#writer) makeReady(this.#writer);
      this.#writer = null;
    });
  }
}

const ops = new Map<string, (coro: Coroutine, sock: Socket) => void>([
  ["read_wait", (coro, sock) => sock.readWait(coro)],
  ["write_wait", (coro, sock) => sock.writeWait(coro)],
]);

function* recv(sock: Socket): Coroutine<Uint8Array> {
  yield ["read_wait", sock];
  return sock.recv();
}

function* recvInto(sock: Socket, buffer: Uint8Array): Coroutine<number> {
  yield ["read_wait", sock];
  return sock.recvInto(buffer);
}

function* send(sock: Socket, data: Uint8Array): Coroutine {
  yield ["write_wait", sock];
  sock.send(data);
}

function* echo(sock: Socket): Coroutine {
  while (true) {
    const data = yield* recv(sock);
    if (data.length === 0) break;
    yield* send(sock, data);
  }
  sock.conn.close();
}

function* echoFromBuffer(sock: Socket): Coroutine {
  const buffer = new Uint8Array(SLAB);
  while (true) {
    const n = yield* recvInto(sock, buffer);
    if (n === 0) break;
    yield* send(sock, buffer.subarray(0, n));
  }
  sock.conn.close();
}

async function loop(): Promise<void> {
  while (true) {
    const now = ready;
    ready = [];
    for (const coro of now) {
      const { done, value } = coro.next();
      if (!done) ops.get(value[0])!(coro, value[1]);
    }
    if (ready.length === 0) await new Promise<void>((resolve) => wake = resolve);
  }
}

const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(`listening on 127.0.0.1:${listener.addr.port}`);
loop();
const handler = Deno.args[1] === "into" ? echoFromBuffer : echo;
for await (const conn of listener) makeReady(handler(new Socket(conn)));
