// The least a program with a loop needs to listen: two of the modules, imported by themselves.
import { Loop } from "../../../loop.ts";
import { listen } from "../../../net.ts";

const loop = new Loop();

function* main() {
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  const [client] = yield* loop.sockAccept(listener);
  client.close();
}

await loop.run(main());
