// A file server for HTTP/1.1: GET and HEAD, connections that stay open, deadlines for slow clients.
// Terminal 1:  deno run --allow-net --allow-read examples/file_server.ts examples     (at the end: a port other than 25000)
// Terminal 2:  curl -i http://127.0.0.1:25000/echo.ts                                 (or a browser)
import {
  type Addr,
  Cancelled,
  type Coroutine,
  failAfter,
  IncompleteReadError,
  LimitError,
  listen,
  Loop,
  moveOnAfter,
  serve,
  type Socket,
  Stream,
  TimeoutError,
  until,
} from "../mod.ts";

/** How many bytes the head of a request may have. */
const HEAD_MAX = 16384;
/** How long a client may take for the head of a request, and for each part of the answer, in milliseconds. */
const PATIENCE = 20_000;

const TYPES: Record<string, string> = {
  html: "text/html; charset=utf-8",
  css: "text/css; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  ts: "application/typescript; charset=utf-8",
  json: "application/json",
  md: "text/markdown; charset=utf-8",
  txt: "text/plain; charset=utf-8",
  svg: "image/svg+xml",
  png: "image/png",
  jpg: "image/jpeg",
};

interface Request {
  method: string;
  path: string;
  /** Whether the connection stays open for another request. */
  keepAlive: boolean;
}

/** What is answered instead of a file. */
class HttpError extends Error {
  constructor(readonly status: number, text: string) {
    super(text);
  }
}

/** Reads the head of a request; null if none comes in time. At end of stream it throws. */
function* readRequest(stream: Stream): Coroutine<Request | null> {
  const head = yield* moveOnAfter(PATIENCE, stream.readUntil("\r\n\r\n"));
  if (!head) return null;
  const [first, ...fields] = new TextDecoder().decode(head).trim().split("\r\n");
  const [, method, target, version] = /^([A-Z]+) (\/\S*) HTTP\/1\.([01])$/.exec(first) ?? [];
  if (!method) throw new HttpError(400, "Bad Request");
  if (method !== "GET" && method !== "HEAD") throw new HttpError(405, "Method Not Allowed");
  const headers = new Map<string, string>();
  for (const field of fields) {
    const [, name, value] = /^([^\s:]+):(.*)$/.exec(field.toLowerCase()) ?? [];
    if (!name) throw new HttpError(400, "Bad Request");
    headers.set(name, headers.has(name) ? `${headers.get(name)}, ${value.trim()}` : value.trim());
  }
  if (headers.has("transfer-encoding") || Number(headers.get("content-length") ?? 0) !== 0) {
    throw new HttpError(413, "Content Too Large"); // A body would be taken for the next request.
  }
  const connection = (headers.get("connection") ?? "").split(/\s*,\s*/);
  return {
    method,
    path: target.split("?")[0],
    keepAlive: version === "1" ? !connection.includes("close") : connection.includes("keep-alive"),
  };
}

/** The file that a path means. Whatever the path, dots or links in it, the file lies below `root`. */
function* open(root: string, path: string): Coroutine<{ file: Deno.FsFile; size: number; type: string }> {
  try {
    const wanted = `${root}/${decodeURIComponent(path)}${path.endsWith("/") ? "index.html" : ""}`;
    const real = yield* until(Deno.realPath(wanted));
    // Opening a pipe would block us, and all the others, until somebody writes to it.
    if (real.startsWith(root.replace(/\/?$/, "/")) && (yield* until(Deno.stat(real))).isFile) {
      const file = Deno.openSync(real);
      return { file, size: file.statSync().size, type: TYPES[real.split(".").pop()!] ?? "application/octet-stream" };
    }
  } catch (error) {
    if (error instanceof Cancelled) throw error;
    if (error instanceof URIError || error instanceof TypeError) throw new HttpError(400, "Bad Request");
  }
  throw new HttpError(404, "Not Found"); // Why is nobody's business.
}

function* respond(stream: Stream, root: string, request: Request): Coroutine {
  const { method, path, keepAlive } = request;
  const { file, size, type } = yield* open(root, path);
  using _ = file;
  const connection = keepAlive ? "keep-alive" : "close";
  const head =
    `HTTP/1.1 200 OK\r\nContent-Type: ${type}\r\nContent-Length: ${size}\r\nConnection: ${connection}\r\n\r\n`;
  yield* failAfter(PATIENCE, stream.write(head));
  if (method === "HEAD") return;
  const buffer = new Uint8Array(65536);
  for (let left = size; left > 0;) {
    const n = yield* until(file.read(buffer.subarray(0, left)));
    if (n === null) throw new Error(`Cannot send all of ${path}: it has become shorter`);
    yield* failAfter(PATIENCE, stream.write(buffer.subarray(0, n)));
    left -= n;
  }
}

function* handle(sock: Socket, root: string): Coroutine {
  const stream = new Stream(sock, { limit: HEAD_MAX });
  sock.setNoDelay();
  try {
    for (let request; (request = yield* readRequest(stream)) !== null;) {
      yield* respond(stream, root, request);
      if (!request.keepAlive) return;
    }
  } catch (error) {
    if (error instanceof IncompleteReadError || error instanceof TimeoutError) return; // It has left, or fallen asleep.
    if (error instanceof LimitError) yield* refuse(stream, new HttpError(431, "Request Header Fields Too Large"));
    else if (error instanceof HttpError) yield* refuse(stream, error);
    else throw error;
  }
}

function* refuse(stream: Stream, { status, message }: HttpError): Coroutine {
  const head = `HTTP/1.1 ${status} ${message}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`;
  yield* failAfter(PATIENCE, stream.write(head));
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const [folder = ".", port = 25000] = Deno.args;
  const root = Deno.realPathSync(folder);
  const listener = listen({ hostname: "127.0.0.1", port: Number(port) });
  await new Loop().run(serve(listener, (sock) => handle(sock, root), {
    maxConnections: 1000,
    onListen: (addr) => console.log("listening on", show(addr)),
    onError: (error, addr) => console.error(addr ? show(addr) : "accept", `${error}`),
  }));
}
