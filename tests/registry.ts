/**
 * tests/registry.ts: a package registry on this machine, and a plain file server.
 *
 * It serves what `deno publish` would upload, no file more, in the layout that Deno asks of JSR: for a package
 * `/@scope/name/meta.json` with its versions, `/@scope/name/VERSION_meta.json` with its exports and the checksums of its
 * files, and the files. `JSR_URL` tells a program to look here.
 */

const ROOT = new URL("..", import.meta.url);

/** A package as it stands in a registry. */
export interface Package {
  name: string;
  version: string;
  exports: Record<string, string>;
  /** By path, which begins with a slash. */
  files: Map<string, Uint8Array<ArrayBuffer>>;
}

/** This package, with exactly the files that a publish would upload. */
export async function thisPackage(): Promise<Package> {
  const { name, version, exports } = JSON.parse(await Deno.readTextFile(new URL("deno.json", ROOT)));
  const files: Package["files"] = new Map();
  for (const path of await uploadedFiles()) {
    files.set(`/${path}`, await Deno.readFile(new URL(path, ROOT)));
  }
  return { name, version, exports, files };
}

/** The paths that `deno publish` would upload, as its dry run lists them. */
async function uploadedFiles(): Promise<string[]> {
  const { success, stderr, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["publish", "--dry-run", "--allow-dirty", "--no-check"],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const text = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("\n");
  if (!success) throw new Error(`Cannot tell what would be published: ${text}`);
  const urls = text.matchAll(/^ +(file:\S+) \(/gm);
  return [...urls].map(([, url]) => url.slice(ROOT.href.length));
}

/** A server of files by path. It ends with the block that is `using` it. */
export class FileServer implements AsyncDisposable {
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  readonly #files: Map<string, Uint8Array<ArrayBuffer>>;
  /** The paths that were asked for and are not there. */
  readonly missing: string[] = [];

  constructor(files: Map<string, Uint8Array<ArrayBuffer>>) {
    this.#files = files;
    this.#server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => this.#answer(request));
  }

  /** A server of packages, for `JSR_URL`. */
  static async registry(packages: Package[]): Promise<FileServer> {
    const files: Package["files"] = new Map();
    for (const one of packages) await addPackage(files, one);
    return new FileServer(files);
  }

  /** Where it is. */
  get url(): string {
    return `http://127.0.0.1:${this.#server.addr.port}/`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }

  #answer(request: Request): Response {
    const path = new URL(request.url).pathname;
    const body = this.#files.get(path);
    if (!body) {
      this.missing.push(path);
      return new Response("Not found", { status: 404 });
    }
    return new Response(body, { headers: { "content-type": contentType(path) } });
  }
}

async function addPackage(files: Package["files"], { name, version, exports, files: own }: Package): Promise<void> {
  const manifest: Record<string, { size: number; checksum: string }> = {};
  for (const [path, bytes] of own) {
    manifest[path] = { size: bytes.length, checksum: await checksum(bytes) };
    files.set(`/${name}/${version}${path}`, bytes);
  }
  const [scope, short] = name.slice(1).split("/");
  files.set(`/${name}/meta.json`, json({ scope, name: short, latest: version, versions: { [version]: {} } }));
  files.set(`/${name}/${version}_meta.json`, json({ manifest, exports }));
}

async function checksum(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return `sha256-${new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex()}`;
}

function json(value: unknown): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(value));
}

function contentType(path: string): string {
  if (path.endsWith(".ts")) return "application/typescript";
  return path.endsWith(".json") ? "application/json" : "text/plain";
}
