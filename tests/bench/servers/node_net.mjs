// The echo server on node:net.
import { createServer } from "node:net";

const server = createServer((conn) => {
  conn.on("data", (data) => {
    if (conn.write(data)) return;
    conn.pause();
    conn.once("drain", () => conn.resume());
  });
  conn.on("error", () => conn.destroy());
});
server.listen(0, "127.0.0.1", 4096, () => console.log(`listening on 127.0.0.1:${server.address().port}`));
