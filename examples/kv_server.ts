// A key-value server that speaks enough of Redis's protocol for Redis's own clients. It keeps everything in memory.
// Terminal 1:  deno run --allow-net examples/kv_server.ts     (a port other than 25000 goes at the end, 0 is any free one)
// Terminal 2:  redis-cli -p 25000 set greeting hello          (or redis-benchmark -p 25000 -t set,get -P 16; or nc)
import {
  type Addr,
  type Coroutine,
  IncompleteReadError,
  LimitError,
  listen,
  Loop,
  serve,
  type Socket,
  Stream,
} from "../mod.ts";

/** How many bytes the words of a command may have together, and how many words. Whoever asks for more is not served. */
const BYTES_MAX = 1 << 20;
const WORDS_MAX = 1024;
/** How many answers may wait for each other, and how many bytes are enough to send. */
const REPLIES_MAX = 64;
const REPLIES_FULL = 16384;

const encoder = new TextEncoder();
const text = (words: string) => encoder.encode(words);
const size = (parts: Uint8Array[]) => parts.reduce((sum, part) => sum + part.length, 0);
/** Each byte is a character of its own, so that any bytes are a key. */
const latin1 = new TextDecoder("latin1");

type Words = Uint8Array[];

const store = new Map<string, Uint8Array>();

const OK = text("+OK\r\n");
const NIL = text("$-1\r\n");
const NOTHING = text("*0\r\n");
const CRLF = text("\r\n");

/** The commands: how many words each takes at least and at most, its name included, and what it answers. */
const COMMANDS: Record<string, [least: number, most: number, run: (words: Words) => Uint8Array]> = {
  PING: [1, 2, ([, word]) => word ? bulk(word) : text("+PONG\r\n")],
  ECHO: [2, 2, ([, word]) => bulk(word)],
  SET: [3, 3, ([, key, value]) => (store.set(latin1.decode(key), value.slice()), OK)],
  GET: [2, 2, ([, key]) => {
    const value = store.get(latin1.decode(key));
    return value ? bulk(value) : NIL;
  }],
  DEL: [2, WORDS_MAX, ([, ...keys]) => integer(keys.filter((key) => store.delete(latin1.decode(key))).length)],
  EXISTS: [2, WORDS_MAX, ([, ...keys]) => integer(keys.filter((key) => store.has(latin1.decode(key))).length)],
  INCR: [2, 2, ([, key]) => increment(latin1.decode(key))],
  DBSIZE: [1, 1, () => integer(store.size)],
  FLUSHALL: [1, 2, () => (store.clear(), OK)],
  COMMAND: [1, WORDS_MAX, () => NOTHING], // Redis's clients ask what there is, and are content with no answer.
  CONFIG: [2, WORDS_MAX, () => NOTHING],
};

function increment(key: string): Uint8Array {
  const before = Number(/^-?\d+$/.exec(latin1.decode(store.get(key) ?? text("0")))?.[0]);
  const value = before + 1;
  if (!Number.isSafeInteger(before) || !Number.isSafeInteger(value)) {
    return text("-ERR value is not an integer or out of range\r\n");
  }
  store.set(key, text(String(value)));
  return integer(value);
}

function bulk(data: Uint8Array): Uint8Array {
  return concat([text(`$${data.length}\r\n`), data, CRLF]);
}

function integer(n: number): Uint8Array {
  return text(`:${n}\r\n`);
}

function concat(parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(size(parts));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function answer(words: Words): Uint8Array {
  const name = latin1.decode(words[0]).toUpperCase();
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) return text(`-ERR unknown command ${JSON.stringify(name.slice(0, 100))}\r\n`);
  const [least, most, run] = command;
  if (words.length >= least && words.length <= most) return run(words);
  return text(`-ERR wrong number of arguments for '${name}' command\r\n`);
}

class ProtocolError extends Error {}

/** Reads one command; null at end of stream. */
function* readCommand(stream: Stream): Coroutine<Words | null> {
  const line = yield* stream.readLine();
  if (line === null) return null;
  if (!line.startsWith("*")) return line.split(" ").filter((word) => word).map(text);
  const words: Words = [];
  let left = BYTES_MAX;
  for (let n = count(line, "*", WORDS_MAX); n > 0; n--) {
    words.push(yield* readBulk(stream, left));
    left -= words.at(-1)!.length;
  }
  return words;
}

function* readBulk(stream: Stream, most: number): Coroutine<Uint8Array> {
  const length = count(yield* stream.readLine(), "$", most);
  const data = yield* stream.readExactly(length + 2);
  if (data[length] !== CRLF[0] || data[length + 1] !== CRLF[1]) throw new ProtocolError("expected the end of a value");
  return data.subarray(0, length);
}

function count(line: string | null, mark: string, most: number): number {
  if (line?.[0] !== mark) throw new ProtocolError(`expected '${mark}'`);
  const n = Number(line.slice(1));
  if (!/^\d+$/.test(line.slice(1)) || n > most) throw new ProtocolError(`expected a number from 0 to ${most}`);
  return n;
}

function* handle(sock: Socket): Coroutine {
  const stream = new Stream(sock);
  sock.setNoDelay();
  const replies: Uint8Array[] = [];
  try {
    for (let words; (words = yield* readCommand(stream)) !== null;) {
      if (words.length > 0) replies.push(answer(words));
      // The answers to commands that came together leave together: sending costs more than all the rest. (A client that
      // sends half a command, and waits for an answer before the other half, gets none. None of Redis's clients does.)
      const full = replies.length >= REPLIES_MAX || size(replies) >= REPLIES_FULL;
      if (stream.buffered === 0 || full) yield* stream.write(concat(replies.splice(0)));
    }
  } catch (error) {
    if (error instanceof IncompleteReadError) return yield* stream.write(concat(replies)); // It left in a command.
    if (!(error instanceof ProtocolError || error instanceof LimitError)) throw error;
    yield* stream.write(concat([...replies, text(`-ERR Protocol error: ${error.message}\r\n`)]));
  }
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const listener = listen({ hostname: "127.0.0.1", port: Number(Deno.args[0] ?? 25000) });
  await new Loop().run(serve(listener, handle, {
    onListen: (addr) => console.log("listening on", show(addr)),
    onError: (error, addr) => console.error(addr ? show(addr) : "accept", `${error}`),
  }));
}
