// Seconds that decoding a file takes in the calling thread: the best of some rounds. For Node, where they are the processor's,
// and for browsers, which tell only those of the clock.

import { compile, useModule } from "../src/core.js";
import { open } from "../src/index.js";

const milliseconds = () => {
  const used = globalThis.process?.cpuUsage?.();
  return used ? (used.user + used.system) / 1000 : performance.now();
};

export async function seconds(data, { rounds, simd = true, threads = 0 }) {
  useModule(await compile(simd));
  let best = Infinity;
  for (let round = 0; round < rounds; round++) {
    const file = await open(data);
    const start = milliseconds();
    await file.all({ threads });
    best = Math.min(best, milliseconds() - start);
    await file.close();
  }
  return best / 1000;
}
