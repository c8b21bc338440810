// The echo server as one writes it for Deno: async/await, and one buffer for each connection, of 64 KiB unless told.
const size = Number(Deno.args[0] ?? 65536);
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(`listening on 127.0.0.1:${listener.addr.port}`);

async function echo(conn: Deno.Conn): Promise<void> {
  using _ = conn;
  const buffer = new Uint8Array(size);
  while (true) {
    const n = await conn.read(buffer);
    if (n === null) break;
    let sent = 0;
    while (sent < n) sent += await conn.write(buffer.subarray(sent, n));
  }
}

for await (const conn of listener) echo(conn).catch((error) => console.error(error));
