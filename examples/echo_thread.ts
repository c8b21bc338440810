// A thread for each connection: a Worker answers each client, really in parallel with all the others.
// Terminal 1:  deno run --allow-net examples/echo_thread.ts     Terminals 2 and 3:  nc 127.0.0.1 25000
// Type "burn 3000" in 2: its Worker computes for three seconds. Type in 3 meanwhile: the answer comes at once.
//
// A Deno socket cannot be handed to a Worker: neither cloned nor transferred. So this thread does the reading and
// writing for all, and the bytes travel: the memory of each chunk moves to the Worker, that of the answer moves back.

async function echoServer(port: number): Promise<void> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port });
  console.log("listening on", show(listener.addr));
  while (true) {
    const client = await listener.accept().catch(gone);
    if (!client) continue;
    console.log("connect from", show(client.remoteAddr));
    serve(client).catch(console.error);
  }
}

/** Runs in the Worker. It gets there as text, which needs no permission, and so can use nothing else of this file. */
function echoHandler(): void {
  const got = new TextEncoder().encode("Got: ");
  const thread = self as unknown as Worker; // What `self` is in there.
  thread.onmessage = ({ data }: MessageEvent<Uint8Array>) => {
    const burn = data.length < 20 && /^burn (\d{1,4})\s*$/.exec(new TextDecoder().decode(data));
    for (const end = performance.now() + Number(burn && burn[1]); performance.now() < end;);
    const answer = new Uint8Array(got.length + data.length);
    answer.set(got);
    answer.set(data, got.length);
    thread.postMessage(answer, [answer.buffer]);
  };
}

const handlerUrl = URL.createObjectURL(new Blob([`(${echoHandler})()`], { type: "text/javascript" }));

async function serve(client: Deno.Conn): Promise<void> {
  using _ = client;
  const worker = new Worker(handlerUrl, { type: "module" });
  try {
    while (true) {
      const buffer = new Uint8Array(10000);
      const n = await client.read(buffer);
      if (n === null) break;
      await sendall(client, await ask(worker, buffer.subarray(0, n)));
    }
  } finally {
    worker.terminate();
  }
  console.log("connection closed");
}

function ask(worker: Worker, data: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = (event) => {
      event.preventDefault(); // An error in one thread must not end the program.
      reject(new Error(event.message));
    };
    worker.postMessage(data, [data.buffer]);
  });
}

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
