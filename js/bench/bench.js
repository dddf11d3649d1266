// For bench/javascript.py: node bench.js ROUNDS FILE... prints, as JSON, seconds by file in Node and in Chromium, each with
// and without SIMD: those of the processor, in Chromium of the page's thread. Needs playwright-core of examples/web.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { serve } from "../../examples/web/serve.js";
import { decoder } from "./decode.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

const [rounds, ...files] = process.argv.slice(2);

const results = Object.fromEntries(files.map((file) => [file, {}]));
const BUILDS = [["simd", true], ["plain", false]];

/** The least seconds of all rounds; `used` says how many were used so far. */
async function least(decode, used) {
  let best = Infinity;
  for (let round = 0; round < Number(rounds); round++) {
    const before = await used();
    await decode();
    best = Math.min(best, (await used()) - before);
  }
  return best;
}

const usedHere = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
for (const file of files) {
  for (const [build, simd] of BUILDS) {
    results[file][`node ${build}`] = await least(await decoder(readFileSync(file), simd), usedHere);
  }
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
  const session = await tab.context().newCDPSession(tab);
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  const usedThere = async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "TaskDuration").value;
  };
  for (const file of files) {
    for (const [build, simd] of BUILDS) {
      await tab.evaluate(
        async ([name, simd]) => {
          const { decoder } = await import("/js/bench/decode.js");
          globalThis.decode = await decoder(await (await fetch(`/models/${name}`)).arrayBuffer(), simd);
        },
        [basename(file), simd],
      );
      const decode = () => tab.evaluate(async () => void (await globalThis.decode()));
      results[file][`chromium ${build}`] = await least(decode, usedThere);
    }
  }
} finally {
  await browser.close();
  page.close();
  models.close();
}
console.log(JSON.stringify(results));
