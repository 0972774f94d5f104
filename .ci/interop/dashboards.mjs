// Type-checks the dashboards against Grafana's own types: writes each into a TypeScript module and runs tsc on them.
//
//   node dashboards.mjs FOLDER    FOLDER/node_modules has @grafana/schema and typescript
//
// The whole dashboard is of the package's `Dashboard`; options and custom field settings of each panel are of its kind's
// own types. JSON has no enums, so that an enum stands for its values.
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const out = resolve(process.argv[2]);
const dashboards = fileURLToPath(new URL("../../grafana/dashboards", import.meta.url));
const raw = "./node_modules/@grafana/schema/dist/types/raw/composable";

// Kind, and whether it has custom settings of its own.
const kinds = { stat: false, timeseries: true, table: true, statetimeline: true };
const imports = Object.keys(kinds).map((kind) => `import type * as ${kind} from "${raw}/${kind}/panelcfg/x/types.gen";`);
const prelude = `import type { Dashboard, AnnotationQuery, Panel, RowPanel } from "./node_modules/@grafana/schema/dist/types/index.d";
${imports.join("\n")}
type Plain<T> = T extends string ? \`\${T}\` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// What the Prometheus source adds to an annotation (PromAnnotation in its plugin).
type Annotation = Plain<AnnotationQuery> & { expr?: string; step?: string; titleFormat?: string; textFormat?: string; tagKeys?: string };
type Board = Omit<Plain<Dashboard>, "annotations" | "panels"> & { annotations: { list: Annotation[] }; panels: Plain<Panel | RowPanel>[] };
type Options<O> = Plain<Partial<O>>;
`;

const files = readdirSync(dashboards).filter((name) => name.endsWith(".json"));
if (files.length === 0) throw new Error(`no dashboards in ${dashboards}`);
const modules = [];
let panels = 0;
for (const name of files) {
  const board = JSON.parse(readFileSync(join(dashboards, name), "utf8"));
  const lines = [prelude, `export const board: Board = ${JSON.stringify(board, null, 1)};`];
  for (const panel of board.panels.filter((panel) => panel.type !== "row")) {
    const kind = panel.type.replace("-", "");
    if (!(kind in kinds)) throw new Error(`${name}: panel ${panel.title} is of kind ${panel.type}, which is not checked here`);
    lines.push(`export const options${panel.id}: Options<${kind}.Options> = ${JSON.stringify(panel.options)};`);
    const custom = panel.fieldConfig.defaults.custom;
    if (custom !== undefined) {
      if (!kinds[kind]) throw new Error(`${name}: panel ${panel.title} has custom settings, and its kind has none`);
      lines.push(`export const custom${panel.id}: Options<${kind}.FieldConfig> = ${JSON.stringify(custom)};`);
    }
    panels += 1;
  }
  const module = join(out, name.replace(".json", ".ts"));
  writeFileSync(module, lines.join("\n"));
  modules.push(module);
}
const flags = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"];
execFileSync(process.execPath, [join(out, "node_modules/typescript/bin/tsc"), ...flags, ...modules], { stdio: "inherit" });
console.log(`${files.length} dashboards with ${panels} panels are what @grafana/schema says`);
