// What takes too long is cut short: one by one, as a whole, and with cleanup that gets its time all the same.
// Type:  deno run examples/timeouts.ts         (at the end: how long a request may take, in milliseconds)
// Every block that is cut short releases what it holds before its deadline is reported: watch "hang up".
import { all, cancelScope, type Coroutine, failAfter, Loop, moveOnAfter, shield, sleep, TimeoutError } from "../mod.ts";

/** A request that takes `ms` milliseconds, and whose line has to be hung up properly. */
function* request(name: string, ms: number): Coroutine<string> {
  try {
    yield* sleep(ms);
    return `${name} answered`;
  } finally {
    yield* shield(sleep(2), { timeout: 100 }); // Out of reach of every deadline but its own.
    console.log(`hang up ${name}`);
  }
}

/** Too late is an error. */
function* strict(limit: number): Coroutine {
  try {
    console.log(yield* failAfter(limit, request("slow", 10 * limit)));
  } catch (error) {
    if (!(error instanceof TimeoutError)) throw error;
    console.log(`strict: ${error.message}`);
  }
}

/** Too late is an answer like another. */
function* lenient(limit: number): Coroutine {
  const answer = yield* moveOnAfter(limit, request("slower", 20 * limit));
  console.log(`lenient: ${answer ?? "no answer, and on we go"}`);
}

/** A deadline for several requests together, moved while they run: whoever makes progress gets more time. */
function* patient(limit: number): Coroutine {
  const answers = yield* cancelScope(function* (scope) {
    const first = yield* request("first", limit / 2);
    scope.deadline += 10 * limit;
    return [first, ...yield* all([request("second", 2 * limit), request("third", limit)])];
  }, { timeout: 2 * limit });
  console.log(`patient: ${answers?.join(", ") ?? "no answers"}`);
}

function* main(limit: number): Coroutine {
  yield* strict(limit);
  yield* lenient(limit);
  yield* patient(limit);
}

if (import.meta.main) await new Loop().run(main(Number(Deno.args[0] ?? 200)));
