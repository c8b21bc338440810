// The selector by hand: many clients at once, with neither tasks nor generators. This is what the loop spares you.
// Terminal 1:  deno run --allow-net examples/echo_select.ts
// Terminals 2, 3 and so on: nc 127.0.0.1 25000
import { type Addr, DefaultSelector, EVENT_READ, EVENT_WRITE, listen, type SelectorKey, type Socket } from "../mod.ts";

const selector = new DefaultSelector();

async function echoServer(port: number): Promise<void> {
  using listener = listen({ hostname: "127.0.0.1", port });
  console.log("listening on", show(listener.addr));
  selector.register(listener, EVENT_READ);
  while (true) {
    for (const [key] of await selector.select()) {
      if (key.fileobj === listener) {
        const [client, addr] = listener.accept();
        console.log("connect from", show(addr));
        selector.register(client, EVENT_READ);
      } else {
        echoHandler(key.fileobj as Socket, key);
      }
    }
  }
}

/** One step of one client. What a generator would remember between two steps has to be kept in the key. */
function echoHandler(client: Socket, key: SelectorKey): void {
  selector.unregister(client);
  try {
    if (key.events === EVENT_READ) {
      const data = client.recv(10000);
      if (data.length === 0) return hangUp(client);
      selector.register(client, EVENT_WRITE, concat(GOT, data));
    } else {
      const unsent = key.data.subarray(client.send(key.data));
      if (unsent.length > 0) selector.register(client, EVENT_WRITE, unsent);
      else selector.register(client, EVENT_READ);
    }
  } catch (error) {
    console.error(error);
    client.close();
  }
}

function hangUp(client: Socket): void {
  client.close();
  console.log("connection closed");
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

if (import.meta.main) await echoServer(Number(Deno.args[0] ?? 25000));
