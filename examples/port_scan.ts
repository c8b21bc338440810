// Which ports of this machine are open: as many tasks as ports in one group, of which only a hundred knock at a time.
// Type:  deno run --allow-net examples/port_scan.ts         (or with a range at the end: 8000 9000)
// Another host may follow the range, only with its owner's leave. A port that stays silent counts as closed.
import { connect, type Coroutine, failAfter, Loop, Semaphore, taskGroup, TimeoutError } from "../mod.ts";

/** How many connections are tried at a time: each takes a file descriptor. */
const AT_ONCE = 100;
/** How long a port may stay silent, in milliseconds. */
const PATIENCE = 1000;

/** Whether somebody listens on `port`. */
function* isOpen(hostname: string, port: number): Coroutine<boolean> {
  try {
    using _sock = yield* failAfter(PATIENCE, connect({ hostname, port }));
    return true;
  } catch (error) {
    // Refused or silent; a host that does not exist, say, or a missing permission ends the whole scan instead.
    if (error instanceof Deno.errors.ConnectionRefused || error instanceof TimeoutError) return false;
    throw error;
  }
}

function* scan(hostname: string, first: number, last: number): Coroutine<number[]> {
  const open: number[] = [];
  const slots = new Semaphore(AT_ONCE);
  function* probe(port: number): Coroutine {
    using _slot = yield* slots.acquire();
    if (!(yield* isOpen(hostname, port))) return;
    console.log(`${port} is open`);
    open.push(port);
  }
  yield* taskGroup(function* (group) {
    for (let port = first; port <= last; port++) group.createTask(probe(port), { name: `port ${port}` });
  });
  return open;
}

if (import.meta.main) {
  const [first = 1, last = 10_000] = Deno.args.slice(0, 2).map(Number);
  const hostname = Deno.args[2] ?? "127.0.0.1";
  if (!(first >= 1 && last <= 65535 && first <= last)) {
    console.error("Usage: port_scan.ts [FIRST LAST [HOST]], with ports from 1 to 65535");
    Deno.exit(2);
  }
  const open = await new Loop().run(scan(hostname, first, last));
  console.log(`${hostname}: ${open.length} of ${last - first + 1} ports open`);
}
