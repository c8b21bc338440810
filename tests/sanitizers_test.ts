/**
 * Rules N13 and N15 hold in every test by what `deno.json` switches on, and by what Deno does of itself. Here tests that
 * break them are run with that configuration, and fail.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { needs } from "./permissions.ts";

/** What is there before the test begins is not left behind by it. */
const BEFORE = `const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });\nconst listener = listen();`;

/** What a test may leave behind. */
const LEFT_BEHIND = {
  "a timer": "setTimeout(() => {}, 60_000)",
  "one of Deno's promises": "void listener.accept()",
  "a socket": "listen()",
  "an unheard rejection": "void Promise.reject(new Error('unheard'))",
};

Deno.test(
  "N13 N15 a test that leaves a timer, a promise of Deno's, a socket or a rejection behind fails",
  needs({ net: true, run: true, read: true, write: true }),
  async () => {
    assertEquals((await runTest("tidy", "")).code, 0);
    for (const [what, statement] of Object.entries(LEFT_BEHIND)) {
      const { code, output } = await runTest("untidy", statement);
      assertEquals(code, 1, `${what}: ${output}`);
      assertStringIncludes(output, "untidy");
      assertStringIncludes(output, "FAILED");
    }
  },
);

/** Runs a test of one statement as those here are run. */
async function runTest(name: string, statement: string): Promise<{ code: number; output: string }> {
  const file = await Deno.makeTempFile({ suffix: "_test.ts" });
  try {
    await Deno.writeTextFile(file, `${BEFORE}\nDeno.test("${name}", () => { ${statement}; });`);
    const config = new URL("../deno.json", import.meta.url).pathname;
    const args = ["test", "--no-check", "--allow-net", "--config", config, file];
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args }).output();
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    return { code, output: out + err };
  } finally {
    await Deno.remove(file);
  }
}
