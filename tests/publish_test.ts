/**
 * The package as its users get it: imported from a registry, its examples run from there, and run by URL from any file
 * server. Each program starts in an empty folder with an empty cache, so that nothing of this checkout helps it.
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { needs } from "./permissions.ts";
import { FileServer, type Package, thisPackage } from "./registry.ts";
import { Client, Server } from "./server_process.ts";

const options = needs({ net: true, read: true, write: true, run: true });

/** An empty folder, and what makes a program look at `registry` with an empty cache. */
class Fresh implements AsyncDisposable {
  readonly env: Record<string, string>;
  private constructor(readonly folder: string, registry: string) {
    this.env = { JSR_URL: registry, DENO_DIR: `${folder}/cache`, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" };
  }

  static async folder(registry: string): Promise<Fresh> {
    return new Fresh(await Deno.makeTempDir({ prefix: "yieldloop_" }), registry);
  }

  /** Writes a program there and runs it; returns what it printed. */
  async run(program: string): Promise<string> {
    await Deno.writeTextFile(`${this.folder}/main.ts`, program);
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--check", "--no-prompt", "--allow-net", "main.ts"],
      cwd: this.folder,
      env: this.env,
    }).output();
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    if (!success) throw new Error(`The program failed: ${err}`);
    return out;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.folder, { recursive: true });
  }
}

const packed: { promise?: Promise<Package> } = {};

/** Asked for once: the dry run takes its time. */
function pack(): Promise<Package> {
  return packed.promise ??= thisPackage();
}

async function talkTo(server: Server): Promise<void> {
  using client = await Client.connect(server.port);
  await client.exchange(new TextEncoder().encode("hello"));
  await server.untilCount("connection closed", 1);
  assertEquals(server.out, [
    `listening on 127.0.0.1:${server.port}`,
    `connect from ${client.name}`,
    "connection closed",
  ]);
}

Deno.test("what is published is the modules, the examples and the papers, and nothing else", options, async () => {
  const { files, exports } = await pack();
  const paths = [...files.keys()];
  for (const path of paths) {
    assertMatch(path, /^\/([a-z]+\.ts|examples\/[a-z_]+\.[a-z]+|README\.md|CHANGELOG\.md|LICENSE|deno\.json)$/);
  }
  for (const needed of ["/README.md", "/LICENSE", "/CHANGELOG.md", "/deno.json"]) {
    assertEquals([needed, files.has(needed)], [needed, true]);
  }
  const modules = paths.filter((path) => path.endsWith(".ts")).map((path) => `.${path}`);
  assertEquals(Object.values(exports).sort(), modules.sort());
});

Deno.test("a program imports every entry point of jsr:@yieldloop/yieldloop from a registry", options, async () => {
  const own = await pack();
  await using registry = await FileServer.registry([own]);
  await using fresh = await Fresh.folder(registry.url);
  const entries = Object.keys(own.exports).filter((path) => !path.startsWith("./examples/"));
  const imports = entries.map((path, i) => `import * as m${i} from "jsr:${own.name}${path.slice(1)}";`);
  const out = await fresh.run(`
    ${imports.join("\n")}
    import { type Coroutine, Loop, sleep } from "jsr:@yieldloop/yieldloop@^${own.version}";
    function* main(): Coroutine<string> {
      yield* sleep(1);
      return "awake";
    }
    console.log(await new Loop().run(main()), ${entries.map((_, i) => `typeof m${i}`).join(", ")});
  `);
  assertEquals(out, `awake ${entries.map(() => "object").join(" ")}\n`);
  assertEquals(registry.missing, []);
});

Deno.test("the echo server runs from a registry: jsr:@yieldloop/yieldloop/examples/echo", options, async () => {
  await using registry = await FileServer.registry([await pack()]);
  await using fresh = await Fresh.folder(registry.url);
  await using server = await Server.start(["--no-config", "jsr:@yieldloop/yieldloop/examples/echo"], fresh.env);
  await talkTo(server);
  assertStringIncludes(server.err, registry.url);
});

Deno.test("the echo server runs by URL from a plain file server", options, async () => {
  await using files = new FileServer((await pack()).files);
  await using fresh = await Fresh.folder("http://127.0.0.1:1/"); // No registry at all.
  await using server = await Server.start(["--no-config", `${files.url}examples/echo.ts`], fresh.env);
  await talkTo(server);
  assertStringIncludes(server.err, files.url);
  assertEquals(files.missing, []);
});
