// The documented JavaScript reader on the golden files: every sample, and nothing else, with exactly the same number.
//
// Usage: golden.mjs FOLDER   (where cbor-x and fzstd are installed; the reader is written into it)
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { resolve } from "node:path";

const folder = resolve(process.argv[2]);
const document = readFileSync("schemas/src/telemetry/reader.md", "utf8");
const blocks = [...document.matchAll(/^```js\n(.*?)^```$/gms)];
if (blocks.length !== 1) throw new Error(`reader.md has ${blocks.length} js blocks, expected one`);
writeFileSync(`${folder}/reader.mjs`, blocks[0][1]);
const { samples } = await import(pathToFileURL(`${folder}/reader.mjs`));

let failures = 0;
for (const name of ["telemetry", "telemetry-foreign", "tombstone"]) {
  const found = [...samples(readFileSync(`schemas/golden/${name}.bin`))];
  const expected = name === "tombstone" ? [] : JSON.parse(readFileSync(`schemas/golden/${name}.json`, "utf8"));
  const same = (one, other) => one.every((value, at) => Object.is(value ?? null, other[at]));
  const wrong = expected.filter((row, at) => !found[at] || !same(found[at], row));
  wrong.slice(0, 5).forEach((row) => console.log(`${name}: expected ${JSON.stringify(row)}`));
  if (wrong.length || found.length !== expected.length) {
    console.log(`${name}: ${wrong.length} differ; ${found.length} read, ${expected.length} expected`);
    failures += 1;
  } else console.log(`${name}: ${found.length} samples agree to the bit`);
}
process.exitCode = failures ? 1 : 0;
