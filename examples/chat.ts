// A chat: what one types, all the others see.
// Terminal 1:  deno run --allow-net examples/chat.ts     (a port other than 25000 goes at the end, 0 is any free one)
// Terminals 2, 3 and so on: nc 127.0.0.1 25000           (your name, then what you have to say; /who, /quit)
import {
  type Addr,
  all,
  ClosedError,
  type Coroutine,
  failAfter,
  LimitError,
  listen,
  Loop,
  moveOnAfter,
  Queue,
  serve,
  type Socket,
  Stream,
  taskGroup,
  TimeoutError,
  WouldBlock,
} from "../mod.ts";

/** How long a guest may take to type a name, or to read what is left at the end, in milliseconds. */
const PATIENCE = 30_000;
/** How many bytes a line may have. */
const LINE_MAX = 1000;
/** How many lines may wait for a guest who reads slowly. */
const BACKLOG = 100;
/** How long whoever says one more waits for that guest, in milliseconds; then the guest has to leave. */
const MOMENT = 200;

interface Guest {
  name: string;
  /** What is still to be shown to the guest. A line goes to many, and none of them may hold up the others. */
  lines: Queue<string>;
  /** Ends the visit at once. */
  expel: () => void;
}

const guests = new Set<Guest>();

/** The visit of one guest, from the question for a name to the end. */
export function* chat(sock: Socket): Coroutine {
  const stream = new Stream(sock, { limit: LINE_MAX });
  sock.setNoDelay();
  yield* stream.write("Your name?\n");
  const name = plain((yield* failAfter(PATIENCE, stream.readLine())) ?? "").trim();
  if (!name) return;
  announce(`* ${name} has come`);
  yield* taskGroup(function* (group) {
    const guest = { name, lines: new Queue<string>(BACKLOG), expel: () => group.cancel("too slow") };
    guests.add(guest);
    try {
      const shown = group.createTask(show(stream, guest));
      yield* listenTo(stream, guest);
      guest.lines.close(); // What was said before is still shown, to those who read it.
      yield* moveOnAfter(PATIENCE, shown.wait());
      group.cancel();
    } finally {
      guests.delete(guest);
      guest.lines.close(); // Whoever is still waiting to say something to the guest need not.
      announce(`* ${name} has left`);
    }
  });
}

/** `line` without what the terminals of others would obey, not show. */
function plain(line: string): string {
  return line.replace(/\p{Cc}/gu, " ");
}

/** From the guest to all others. */
function* listenTo(stream: Stream, guest: Guest): Coroutine {
  for (;;) {
    try {
      const line = yield* stream.readLine();
      if (line === null || line === "/quit") return;
      if (line === "/who") yield* say([guest], `* here are ${[...guests].map((other) => other.name).join(", ")}`);
      else yield* say([...guests].filter((other) => other !== guest), `${guest.name}: ${plain(line)}`);
    } catch (error) {
      if (!(error instanceof LimitError)) throw error;
      yield* say([guest], `* that was longer than ${error.limit} bytes, and nobody has seen it`);
    }
  }
}

/** From all others to the guest, until the guest's queue is closed and empty. */
function* show(stream: Stream, guest: Guest): Coroutine {
  try {
    for (;;) {
      let text = `${yield* guest.lines.get()}\n`;
      while (guest.lines.size > 0) text += `${guest.lines.getNowait()}\n`; // One write for all that waits.
      yield* stream.write(text);
    }
  } catch (error) {
    if (!(error instanceof ClosedError)) throw error;
  }
}

/** Says it to all of `listeners`, and waits a moment for those who are behind: so nobody talks faster than others read. */
function* say(listeners: Guest[], line: string): Coroutine {
  const behind = listeners.filter((guest) => !sayNow(guest, line));
  if (behind.length > 0) yield* all(behind.map((guest) => sayLater(guest, line)));
}

function* sayLater(guest: Guest, line: string): Coroutine {
  try {
    yield* failAfter(MOMENT, guest.lines.put(line));
  } catch (error) {
    if (error instanceof TimeoutError) guest.expel();
    else if (!(error instanceof ClosedError)) throw error; // The guest is about to leave.
  }
}

/** Whether it could be said, or need not be. */
function sayNow(guest: Guest, line: string): boolean {
  if (guest.lines.closed) return true;
  try {
    guest.lines.putNowait(line);
    return true;
  } catch (error) {
    if (!(error instanceof WouldBlock)) throw error;
    return false;
  }
}

/** Tells all but those who are behind who came or left: nobody has to wait, or to leave, for that. */
function announce(line: string): void {
  for (const guest of guests) sayNow(guest, line);
}

function report(error: unknown, addr?: Addr): void {
  if (error instanceof TimeoutError) return; // Somebody who never said a name.
  console.error(addr ? showAddr(addr) : "accept", error);
}

function showAddr(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const listener = listen({ hostname: "127.0.0.1", port: Number(Deno.args[0] ?? 25000) });
  const onListen = (addr: Addr) => console.log("listening on", showAddr(addr));
  await new Loop().run(serve(listener, chat, { maxConnections: 1000, onListen, onError: report }));
}
