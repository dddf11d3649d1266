// Decoding a file in the calling thread, for Node and for browsers.

import { compile, useModule } from "../src/core.js";
import { open } from "../src/index.js";

/** A function that decodes all tensors once, with the build with or without SIMD. */
export async function decoder(data, simd) {
  useModule(await compile(simd));
  const file = await open(data);
  return () => file.all({ threads: 0 });
}
