/**
 * tests/permissions.ts: tests that stand aside.
 *
 * A bare `deno test` grants nothing and never asks. A test that opens a socket or starts a program then says what it
 * would need and stands aside; `deno test -P` grants the set in `deno.json` and runs them all, and the checks fail if
 * one stood aside.
 *
 * @example
 * ```ts ignore
 * Deno.test("N1 bytes arrive", needs({ net: true }), async () => {});
 * ```
 */

/** What a test needs: `true` for all of a kind, or the hosts, paths, variables or programs by name. */
export interface Needs {
  net?: true | string[];
  read?: true | string[];
  write?: true | string[];
  env?: true | string[];
  run?: true | string[];
  sys?: true;
}

const told = new Set<string>();

/** Options for `Deno.test`: `ignore` is set, and the reason printed once a file, if something was not granted. */
export function needs(wanted: Needs): { ignore: boolean } {
  const missing = Object.entries(wanted).filter(([kind, what]) => what && !granted(kind, what)).map(([kind]) => kind);
  if (missing.length > 0) tell(`Some tests stand aside: they need --allow-${missing.join(" --allow-")} (or -P)`);
  return { ignore: missing.length > 0 };
}

/** As {@linkcode needs}, for a test that also drives programs which are not on every machine. */
export function needsPrograms(programs: string[], wanted: Needs = { net: true }): { ignore: boolean } {
  const options = needs({ ...wanted, run: true, read: true, env: true });
  if (options.ignore) return options;
  const missing = programs.filter((program) => !hasProgram(program));
  if (missing.length > 0) tell(`Some tests stand aside: they need the programs ${missing.join(", ")}`);
  return { ignore: missing.length > 0 };
}

/** Whether a program stands in one of the folders of `PATH`. */
export function hasProgram(name: string): boolean {
  const folders = (Deno.env.get("PATH") ?? "").split(":").filter((folder) => folder);
  return folders.some((folder) => isFile(`${folder}/${name}`));
}

function granted(kind: string, what: true | string[]): boolean {
  if (what === true) return query({ name: kind } as Deno.PermissionDescriptor);
  return what.every((one) => query(descriptor(kind, one)));
}

function descriptor(kind: string, one: string): Deno.PermissionDescriptor {
  if (kind === "net") return { name: "net", host: one };
  if (kind === "env") return { name: "env", variable: one };
  if (kind === "run") return { name: "run", command: one };
  return { name: kind, path: one } as Deno.PermissionDescriptor;
}

function query(wanted: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(wanted).state === "granted";
}

function tell(line: string): void {
  if (told.has(line)) return;
  told.add(line);
  console.log(line);
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}
