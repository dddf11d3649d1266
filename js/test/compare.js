// For tests/test_js.py: reads a JSON array of [path, maxBytes] from standard input, and prints what each file holds, or the
// class of its error: a JSON array.

import { readFileSync } from "node:fs";

import { DeepCabacError, open } from "../src/index.js";
import { restoreOnnx } from "../src/onnx.js";
import { describe, sha256 } from "./support.js";

const outcomes = [];
for (const [path, maxBytes] of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    const file = await open(readFileSync(path), maxBytes === null ? {} : { maxBytes });
    const outcome = { tensors: describe(file, await file.all()) };
    if (file.kind === "onnx") outcome.model = sha256(await restoreOnnx(file));
    outcomes.push(outcome);
    await file.close();
  } catch (error) {
    if (!(error instanceof DeepCabacError)) throw error;
    outcomes.push({ error: error.name });
  }
}
process.stdout.write(JSON.stringify(outcomes));
