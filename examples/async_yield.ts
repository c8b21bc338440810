// What a coroutine is: a generator that says what it waits for, and goes on when it is stepped. No loop runs here.
// Terminal:  deno run examples/async_yield.ts
// The comments show what it prints. Nothing reads a socket: an op is data, and it takes a loop to serve it.
import { Loop, readWait, type Selectable, type Socket } from "../mod.ts";

if (import.meta.main) {
  const f = readWait("somesocket");
  console.log(String(f)); // [object Generator]
  console.log(f.next().value); // [ "read_wait", "somesocket" ]
  console.log(f.next().done); // true

  // The socket operations are no more than that: wait by an op, then do what no longer blocks. Here we play the loop.
  const sock = { id: 7, recv: () => new TextEncoder().encode("hi") } as unknown as Socket;
  const g = new Loop().sockRecv(sock, 10000);
  const [op, what] = g.next().value as [string, Selectable];
  console.log(op, what.id); //    read_wait 7
  console.log(g.next().value); // Uint8Array(2) [ 104, 105 ]
}
