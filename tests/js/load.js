// The JavaScript of the widgets as its blocks have it: scripts one after the other in one scope, no imports.

import { readFileSync } from "node:fs";
import vm from "node:vm";

const folder = new URL("../../labkit/widgets/js/", import.meta.url);

/** What these files declare, after theme.js: an expression such as "say" or "{ placed, zoomed }". */
export function load(wanted, ...names) {
  const text = ["theme", ...names].map((name) => readFileSync(new URL(`${name}.js`, folder), "utf8")).join("\n");
  const script = text.replace(/^export default .*$/gm, "");
  return vm.runInThisContext(`(() => { ${script}\nreturn (${wanted}); })()`);
}

export const cases = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf8"));
