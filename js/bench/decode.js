// Seconds that decoding a file takes in the calling thread: the best of some rounds. For Node and for browsers.

import { compile, useModule } from "../src/core.js";
import { open } from "../src/index.js";

export async function seconds(data, { rounds, simd = true, threads = 0 }) {
  useModule(await compile(simd));
  let best = Infinity;
  for (let round = 0; round < rounds; round++) {
    const file = await open(data);
    const start = performance.now();
    await file.all({ threads });
    best = Math.min(best, performance.now() - start);
    await file.close();
  }
  return best / 1000;
}
