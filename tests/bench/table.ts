/**
 * tests/bench/table.ts: medians, and tables in Markdown.
 */

/** One part of the report. */
export interface Section {
  title: string;
  /** Paragraphs and tables, in Markdown. */
  body: string[];
  /** Rows for the table of targets. */
  targets: Target[];
}

/** A figure beside what it should be. */
export interface Target {
  what: string;
  /** What should be reached, in words. */
  wanted: string;
  /** What was measured; null or NaN if it could not be. */
  got: number | null;
  /** The unit of `got` and `floor`; none for a ratio. */
  unit?: string;
  /** What the least that could be asked for costs in the same run, where that is known. */
  floor?: number | undefined;
  /** Whether a figure is as good as it should be. */
  reaches(figure: number): boolean;
}

/** A target that is reached by a figure of at most `limit`. */
export function atMost(what: string, limit: number, got: number | null, unit = "", note = ""): Target {
  return { what, wanted: `≤ ${limit}${unit}${note}`, got, unit, reaches: (figure) => figure <= limit };
}

/** A target that is reached by a figure of at least `limit`. */
export function atLeast(what: string, limit: number, got: number | null, unit = "", note = ""): Target {
  return { what, wanted: `≥ ${limit}${unit}${note}`, got, unit, reaches: (figure) => figure >= limit };
}

/** The middle one of `values`; NaN if there are none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The median of `a[i] / b[i]`: each pair was measured side by side. */
export function pairedRatio(a: readonly number[], b: readonly number[]): number {
  return median(a.slice(0, b.length).map((value, i) => value / b[i]));
}

/** A table in Markdown: the first column to the left, figures to the right. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = rows.map((row) => row.map((cell) => typeof cell === "number" ? figure(cell) : cell));
  const widths = head.map((title, i) => Math.max(3, title.length, ...cells.map((row) => row[i].length)));
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join(" | ")} |`;
  const rule = `| ${widths.map((width, i) => i === 0 ? "-".repeat(width) : "-".repeat(width - 1) + ":").join(" | ")} |`;
  return [line(head), rule, ...cells.map(line)].join("\n");
}

/** What was skipped and why, if anything was: a paragraph for a section. */
export function skipList(skipped: readonly string[]): string[] {
  return skipped.length > 0 ? [skipped.map((line) => `- Skipped ${line}`).join("\n")] : [];
}

/** A figure with as many digits as mean something. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

/** What the columns of the table of targets say. */
export const TARGET_HEAD = ["what", "target", "measured", "floor", "reached"];

/** The table of targets. */
export function targetTable(targets: readonly Target[]): string {
  const rows = targets.map((target) => {
    const { what, wanted, got, unit = "", floor } = target;
    const measured = got !== null && !Number.isNaN(got);
    return [
      what,
      wanted,
      measured ? `${figure(got)}${unit}` : "not measured",
      floor === undefined ? "" : `${figure(floor)}${unit}`,
      measured ? verdict(target, got) : "",
    ];
  });
  return table(TARGET_HEAD, rows);
}

function verdict({ floor, reaches }: Target, got: number): string {
  if (reaches(got)) return "yes";
  return floor === undefined || reaches(floor) ? "no" : "no, nor by the floor";
}
