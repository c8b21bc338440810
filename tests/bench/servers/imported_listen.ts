// `deno_listen.ts` once more, with the whole package imported and not used: what of our start is loading alone.
import "../../../mod.ts";

const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
console.log(`listening on 127.0.0.1:${listener.addr.port}`);
const conn = await listener.accept();
conn.close();
