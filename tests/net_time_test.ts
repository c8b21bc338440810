/** The one place of the shim where time is the platform's: how long a closed socket lingers. The clock is faked. */
import { assertEquals, assertFalse, assertLess } from "@std/assert";
import { FakeTime } from "@std/testing/time";
import { DefaultSelector, EVENT_READ, Loop, sleep, type Socket, socketPair } from "../mod.ts";

const SENT = 100_000;

/** What a peer gets that begins to read only `ms` milliseconds after the close. */
async function receivedAfter(ms: number): Promise<number> {
  using time = new FakeTime();
  const [left, right] = socketPair();
  left.send(new Uint8Array(SENT / 2));
  left.send(new Uint8Array(SENT / 2));
  left.close();
  await time.tickAsync(ms);
  await time.runMicrotasks();
  const received = await readToEnd(right);
  right.abort();
  return received;
}

async function readToEnd(sock: Socket): Promise<number> {
  const selector = new DefaultSelector();
  selector.register(sock, EVENT_READ);
  let received = 0;
  try {
    while (true) {
      if ((await selector.select(0)).length === 0) continue;
      const data = sock.recv(65536);
      if (data.length === 0) return received;
      received += data.length;
    }
  } finally {
    selector.close();
  }
}

Deno.test("K4 a timer that a fake of the platform's has swallowed delays no later wait", async () => {
  const selector = new DefaultSelector();
  {
    using _time = new FakeTime();
    const waiting = selector.select(1, true);
    selector.wakeup(); // The timer stays, for the next.
    await waiting;
  }
  await new Promise((resolve) => setTimeout(resolve, 2)); // By now it should have come.
  let late: ReturnType<typeof setTimeout>;
  const never = new Promise((resolve) => late = setTimeout(() => resolve("never"), 50));
  assertEquals(await Promise.race([selector.select(1, true), never]), []);
  clearTimeout(late!);
  selector.close();
});

Deno.test("K4 FakeTime does not move a loop, as the README says", async () => {
  using time = new FakeTime();
  const loop = new Loop();
  const task = loop.createTask(sleep(1e6));
  const running = loop.runForever();
  for (let i = 0; i < 3; i++) await time.tickAsync(1e6);
  assertFalse(task.done);
  task.cancel();
  await running;
});

Deno.test("N5 a peer that neither reads nor ends holds a closed socket for ten seconds, and not for longer", async () => {
  assertEquals(await receivedAfter(9_999), SENT);
  assertLess(await receivedAfter(10_000), SENT);
});
