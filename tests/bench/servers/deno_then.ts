// The floor for a loop over Deno's promises: no async function, no loop, nothing but the callbacks of read and write.
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(`listening on 127.0.0.1:${listener.addr.port}`);

function echo(conn: Deno.Conn): void {
  const buffer = new Uint8Array(65536);
  const end = () => conn.close();
  const read = () => void conn.read(buffer).then(onRead, end);
  const onRead = (n: number | null) => n === null ? end() : write(0, n);
  const write = (from: number, to: number) =>
    void conn.write(buffer.subarray(from, to)).then((n) => from + n < to ? write(from + n, to) : read(), end);
  read();
}

for await (const conn of listener) echo(conn);
