// For bench/javascript.py: node bench.js ROUNDS FILE... prints, as JSON, seconds by file in Node and in Chromium, each with
// and without SIMD. Needs playwright-core of examples/web for Chromium.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { serve } from "../../examples/web/serve.js";
import { seconds } from "./decode.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

const [rounds, ...files] = process.argv.slice(2);
const options = [true, false].map((simd) => ({ rounds: Number(rounds), simd }));

const results = Object.fromEntries(files.map((file) => [file, {}]));
const key = (where, { simd }) => `${where} ${simd ? "simd" : "plain"}`;
for (const file of files) {
  const data = readFileSync(file);
  for (const option of options) results[file][key("node", option)] = await seconds(data, option);
}

const require = createRequire(new URL("../../examples/web/", import.meta.url));
const { chromium } = require("playwright-core");
const page = await serve({ folder: ROOT });
const models = await serve({ folder: dirname(files[0]) });
const browser = await chromium.launch({ executablePath: CHROMIUM, chromiumSandbox: false, args: ["--disable-gpu"] });
try {
  const tab = await browser.newPage();
  await tab.route("**/blank.html", (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await tab.route("**/models/*", async (route) => {
    const name = basename(new URL(route.request().url()).pathname);
    route.fulfill({ response: await route.fetch({ url: `http://127.0.0.1:${models.address().port}/${name}` }) });
  });
  await tab.goto(`http://127.0.0.1:${page.address().port}/blank.html`);
  for (const file of files) {
    for (const option of options) {
      results[file][key("chromium", option)] = await tab.evaluate(
        async ([name, option]) => {
          const { seconds } = await import("/js/bench/decode.js");
          const data = await (await fetch(`/models/${name}`)).arrayBuffer();
          return seconds(data, option);
        },
        [basename(file), option],
      );
    }
  }
} finally {
  await browser.close();
  page.close();
  models.close();
}
console.log(JSON.stringify(results));
