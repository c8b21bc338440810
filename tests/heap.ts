/**
 * tests/heap.ts: programs that look at their own heap.
 *
 * @example
 * ```ts ignore
 * assertEquals(await runWithGc("Queue", `const before = used(); ...; console.log(used() - before < 1e6)`), "true\n");
 * ```
 */

const MOD = new URL("../mod.ts", import.meta.url);
/** A program that takes longer, in milliseconds, hangs: the longest takes one or two seconds, on a busy machine ten. */
const HANGS = 60_000;

/**
 * What a program prints that imports `names` from mod.ts and can call `used()`: how many bytes of its heap are alive.
 * The test that runs it needs `run`.
 */
export async function runWithGc(names: string, program: string): Promise<string> {
  const source = `import { ${names} } from "${MOD}";
    const used = () => (gc(), Deno.memoryUsage().heapUsed);
    ${program}`;
  const args = ["eval", "--v8-flags=--expose-gc", source];
  const command = new Deno.Command(Deno.execPath(), { args, signal: AbortSignal.timeout(HANGS) });
  const { code, stdout, stderr } = await command.output();
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  if (code !== 0) throw new Error(`The program has ended with code ${code}. It printed:\n${out}\n${err}`);
  return out;
}
