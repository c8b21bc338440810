// The first server anybody writes: it serves one client to the end while the next one has to wait.
// Terminal 1:  deno run --allow-net examples/echo_blocking.ts
// Terminals 2 and 3:  nc 127.0.0.1 25000   (what you type in 3 is answered once you have pressed Ctrl-C in 2)

async function echoServer(port: number): Promise<void> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port });
  console.log("listening on", show(listener.addr));
  while (true) {
    const client = await listener.accept().catch(gone);
    if (!client) continue;
    console.log("connect from", show(client.remoteAddr));
    await echoHandler(client).catch(console.error); // Nobody else is served until this returns.
  }
}

async function echoHandler(client: Deno.Conn): Promise<void> {
  using _ = client;
  const buffer = new Uint8Array(GOT.length + 10000);
  buffer.set(GOT); // What is read goes behind it, so that the answer needs no copy.
  while (true) {
    const n = await client.read(buffer.subarray(GOT.length));
    if (n === null) break;
    await sendall(client, buffer.subarray(0, GOT.length + n));
  }
  console.log("connection closed");
}

const GOT = new TextEncoder().encode("Got: ");

async function sendall(client: Deno.Conn, data: Uint8Array): Promise<void> {
  for (let sent = 0; sent < data.length;) sent += await client.write(data.subarray(sent));
}

/** A client may have gone before it was accepted, which is no reason to stop. */
function gone(error: unknown): null {
  if (error instanceof Deno.errors.NotConnected || error instanceof Deno.errors.ConnectionAborted) return null;
  throw error;
}

function show({ hostname, port }: Deno.NetAddr): string {
  return `${hostname}:${port}`;
}

if (import.meta.main) await echoServer(Number(Deno.args[0] ?? 25000));
