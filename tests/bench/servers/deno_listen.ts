// The least a Deno program can do to listen: what `start.ts` compares with.
const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(`listening on 127.0.0.1:${listener.addr.port}`);
const conn = await listener.accept();
conn.close();
