/** The README shows what is there: its first block is the echo server, its links lead somewhere, its snippets run. */
import { assertEquals } from "@std/assert";
import { needs } from "./permissions.ts";

const ROOT = new URL("..", import.meta.url);

function read(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT));
}

function blocks(markdown: string): { language: string; text: string }[] {
  return [...markdown.matchAll(/^```(.*)\n([^]*?)^```$/gm)].map(([, language, text]) => ({ language, text }));
}

Deno.test("the README's first block is examples/echo.ts, line for line", needs({ read: true }), () => {
  assertEquals(blocks(read("README.md"))[0].text, read("examples/echo.ts"));
});

Deno.test("every other snippet of the README is one that is run", needs({ read: true }), () => {
  const code = blocks(read("README.md")).slice(1).filter(({ language }) => /^(ts|typescript|js)\b/.test(language));
  const idle = code.filter(({ language }) => language !== "ts");
  assertEquals(idle, []);
});

Deno.test("every link to a file in the docs leads to one", needs({ read: true }), () => {
  for (const page of ["README.md", "CHANGELOG.md", "tests/README.md", "tests/RULES.md", "tests/bench/README.md"]) {
    const links = [...read(page).matchAll(/\]\(([^)#:]+)(#[^)]*)?\)/g)].map(([, link]) => link);
    for (const link of links) {
      const target = new URL(link, new URL(page, ROOT));
      assertEquals([page, link, Deno.statSync(target) !== null], [page, link, true]);
    }
  }
});
