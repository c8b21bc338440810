// Producers and consumers with a bounded queue between them: whoever is too fast waits, and nobody polls.
// Type:  deno run examples/producer_consumer.ts         (at the end: how many items each producer makes)
// A consumer that fails would end the whole group, and Ctrl-C the program: no task is left behind either way.
import { type Coroutine, Loop, Queue, sleep, taskGroup } from "../mod.ts";

interface Item {
  producer: string;
  n: number;
}

function* produce(queue: Queue<Item>, producer: string, count: number): Coroutine {
  for (let n = 1; n <= count; n++) {
    yield* queue.put({ producer, n }); // Waits while the queue is full.
    console.log(`${producer} made ${n}, ${queue.size} in the queue`);
  }
}

function* consume(queue: Queue<Item>, consumer: string): Coroutine {
  while (true) {
    const { producer, n } = yield* queue.get();
    yield* sleep(1); // Here it would work.
    console.log(`${consumer} used ${n} of ${producer}`);
    queue.taskDone();
  }
}

/** Returns how many items went through. */
function* main(count: number): Coroutine<number> {
  const queue = new Queue<Item>(3);
  const producers = ["ann", "bob"];
  yield* taskGroup(function* (group) {
    for (const name of ["xia", "yul", "zoe"]) group.createTask(consume(queue, name), { name });
    yield* taskGroup(function* (inner) {
      for (const name of producers) inner.createTask(produce(queue, name, count), { name });
    }); // Left when both have made all of theirs,
    yield* queue.join(); // and passed when each item has been used.
    group.cancel("nothing left to do"); // The consumers would wait for ever.
  });
  return producers.length * count;
}

if (import.meta.main) console.log(`${await new Loop().run(main(Number(Deno.args[0] ?? 5)))} items went through`);
