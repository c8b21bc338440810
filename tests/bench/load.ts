/**
 * tests/bench/load.ts: the load: `redis-benchmark`, which drives any echo server, since the echo of a request is a
 * valid reply.
 */

/** The core the load runs on; the server has the other. */
const LOAD_CORE = 1;

/** One kind of load. */
export interface Load {
  connections: number;
  /** How many requests are sent before the replies are waited for. */
  pipeline: number;
  /** Bytes per message. */
  size: number;
  /** How many messages, over all connections. */
  messages: number;
}

/** What the load saw. */
export interface Seen {
  /** Messages per second. */
  rate: number;
  /** Latency in milliseconds. */
  p50: number;
  p99: number;
}

/** Drives the server on `port`. */
export async function drive(port: number, load: Load): Promise<Seen> {
  const { code, stdout, stderr } = await new Deno.Command("taskset", {
    args: [
      "-c",
      String(LOAD_CORE),
      "redis-benchmark",
      ...flags(port, load),
      "SET",
      "k",
      "v".repeat(valueSize(load.size)),
    ],
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  const row = decoder.decode(stdout).trim().split("\n").at(-1)!;
  const [rate, , , p50, , p99] = row.slice(row.lastIndexOf("k v")).split(",").slice(1).map((cell) =>
    Number(cell.replaceAll('"', ""))
  );
  if (code !== 0 || !(rate > 0)) {
    throw new Error(
      `Cannot drive port ${port}: redis-benchmark said ${decoder.decode(stderr).trim() || `exit code ${code}`}`,
    );
  }
  return { rate, p50, p99 };
}

function flags(port: number, load: Load): string[] {
  const { connections, pipeline, messages } = load;
  return [
    "--csv",
    "--precision",
    "3",
    "-p",
    `${port}`,
    "-c",
    `${connections}`,
    "-P",
    `${pipeline}`,
    "-n",
    `${messages}`,
  ];
}

/** How long the value must be for the whole request, `SET k VALUE` in the Redis protocol, to be `size` bytes. */
function valueSize(size: number): number {
  for (let digits = 1;; digits++) {
    const value = size - "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$\r\n\r\n".length - digits;
    if (String(value).length === digits) return value;
  }
}
