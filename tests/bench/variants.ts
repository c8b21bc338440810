/**
 * tests/bench/variants.ts: the servers that are compared, how each is started, and why one is missing.
 */

/** An echo server to measure: a program that prints `listening on HOST:PORT` and echoes. */
export interface Variant {
  /** What it is called in tables. */
  readonly name: string;
  /** The command line. */
  readonly command: readonly string[];
}

/** Ours. */
export const OURS = "yieldloop";
/** Ours too, reading into one buffer for each connection, as plain Deno does. */
export const INTO = "yieldloop, sockRecvInto";
/** What every ratio is to. */
export const BASE = "Deno async/await";
/** The floor of whatever has our API. */
export const LEAST = "least loop";
/** And of whatever reads into a buffer of the caller's by it. */
export const LEAST_INTO = "least loop, into a buffer";

const DENO = Deno.execPath();
const SERVERS = new URL("servers/", import.meta.url).pathname;

/** A server that Deno runs. */
export function onDeno(name: string, script: string, ...args: string[]): Variant {
  return { name, command: [DENO, "run", "--allow-net", SERVERS + script, ...args] };
}

/** The same server, in a V8 whose new space does not grow with what survives: each of its halves stays at a megabyte. */
export function inSmallNewSpace({ name, command: [deno, run, ...rest] }: Variant): Variant {
  return { name: `${name}, small new space`, command: [deno, run, "--v8-flags=--max-semi-space-size=1", ...rest] };
}

/** Our server, both ways to read; the one in idiomatic Deno; and the floors. */
export function fewVariants(): Variant[] {
  return [
    onDeno(OURS, "yieldloop.ts"),
    onDeno(INTO, "yieldloop.ts", "into"),
    onDeno(BASE, "deno_async.ts"),
    onDeno(LEAST, "least_loop.ts"),
    onDeno(LEAST_INTO, "least_loop.ts", "65536", "into"),
  ];
}

/** Every server this machine can run. A line on stderr, and in `skipped`, says why another is missing. */
export async function allVariants(scratch: string, skipped: string[]): Promise<Variant[]> {
  const variants = [...fewVariants(), onDeno("Deno .then()", "deno_then.ts")];
  const others: [name: string, make: () => Promise<string[]>][] = [
    ["node:net on Node", async () => [await program("node"), `${SERVERS}node_net.mjs`]],
    ["C epoll", () => compile(scratch, "gcc", ["-O2", "-o", `${scratch}/epoll`, `${SERVERS}epoll.c`])],
    ["Go", () => compile(scratch, "go", ["build", "-o", `${scratch}/echo_go`, `${SERVERS}echo.go`])],
    ["asyncio sock_*", async () => [await python(), `${SERVERS}asyncio_sock.py`]],
    ["the article's loop", async () => [await python(), `${SERVERS}article.py`]],
    ["uvloop sock_*", async () => [await python("uvloop"), `${SERVERS}asyncio_sock.py`, "uvloop"]],
    ["curio", async () => [await python("curio"), `${SERVERS}curio_sock.py`]],
    ["trio", async () => [await python("trio"), `${SERVERS}trio_stream.py`]],
  ];
  for (const [name, make] of others) await add(variants, skipped, name, make);
  return variants;
}

/** Adds a variant, if it can be made; otherwise says why not. */
export async function add(
  variants: Variant[],
  skipped: string[],
  name: string,
  make: () => Promise<string[]>,
): Promise<void> {
  try {
    variants.push({ name, command: await make() });
  } catch (error) {
    skipped.push(`${name}: ${(error as Error).message}`);
    console.error(`Skipped ${skipped.at(-1)}`);
  }
}

/** The programs' versions, for the report. */
export async function versions(): Promise<string[]> {
  const asked: [command: string, args: string[]][] = [
    [DENO, ["--version"]],
    ["node", ["--version"]],
    ["python3", ["--version"]],
    ["gcc", ["--version"]],
    ["go", ["version"]],
    ["redis-benchmark", ["--version"]],
    ["python3", ["-c", "import curio; print('curio', curio.__version__)"]],
    ["python3", ["-c", "import trio; print('trio', trio.__version__)"]],
    ["python3", ["-c", "import uvloop; print('uvloop', uvloop.__version__)"]],
  ];
  const lines: string[] = [];
  for (const [command, args] of asked) {
    const { code, stdout } = await output(command, args);
    const line = stdout.split("\n")[0];
    if (code === 0) lines.push(/^v\d/.test(line) ? `node ${line}` : line);
  }
  return lines;
}

async function compile(scratch: string, compiler: string, args: string[]): Promise<string[]> {
  await run(await program(compiler), args, { cwd: scratch, env: { GO111MODULE: "off" } });
  return [args[args.indexOf("-o") + 1]];
}

/** Runs a program that has to succeed. */
export async function run(command: string, args: string[], options?: Deno.CommandOptions): Promise<void> {
  const { code, stderr } = await output(command, args, options);
  if (code !== 0) throw new Error(`${command} failed: ${stderr.trim().split("\n")[0]}`);
}

async function program(name: string): Promise<string> {
  const { code, stdout } = await output("sh", ["-c", `command -v ${name}`]);
  if (code !== 0) throw new Error(`${name} is not installed`);
  return stdout.trim();
}

/** The interpreter itself: what stands in `PATH` may be a script that starts it, which would be measured too. */
async function python(module?: string): Promise<string> {
  const code = `import sys${module ? `, ${module}` : ""}; print(sys.executable)`;
  const result = await output(await program("python3"), ["-c", code]);
  if (result.code !== 0) throw new Error(`${module} cannot be imported by python3`);
  return result.stdout.trim();
}

async function output(command: string, args: string[], options: Deno.CommandOptions = {}) {
  try {
    const { code, stdout, stderr } = await new Deno.Command(command, { ...options, args }).output();
    return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return { code: 127, stdout: "", stderr: `${command} is not installed` };
  }
}
