import assert from "node:assert/strict";
import { test } from "node:test";

import { compile, hasSimd, useModule } from "../src/core.js";
import { decodeLevels, open, UnsupportedError } from "../src/index.js";
import { describe, EXPECTED, golden, GOLDEN_FILES, GOLDEN_LEVELS, sha256 } from "./support.js";

for (const name of GOLDEN_FILES) {
  test(`${name} decodes to the bits that Python has`, async () => {
    const file = await open(golden(name));
    if (name.startsWith("update")) {
      await assert.rejects(file.all(), (error) => error instanceof UnsupportedError && /update/.test(error.message));
      return;
    }
    const expected = EXPECTED[name].tensors;
    assert.deepEqual(describe(file, await file.all()), expected);
    const alone = new Map();
    for (const { name } of file.tensors) alone.set(name, await file.get(name));
    assert.deepEqual(describe(file, alone), expected);
    await file.close();
  });
}

for (const name of GOLDEN_LEVELS) {
  test(`${name} decodes to the levels that Python has`, async () => {
    const { shape, levels } = await decodeLevels(golden(name));
    assert.deepEqual([{ dtype: "int32", shape, sha256: sha256(levels) }], Object.values(EXPECTED[name].tensors));
  });
}

test("the build without SIMD gives the same bits", async () => {
  assert.ok(hasSimd());
  useModule(await compile(false));
  for (const name of GOLDEN_FILES.filter((name) => !name.startsWith("update"))) {
    const file = await open(golden(name));
    assert.deepEqual(describe(file, await file.all()), EXPECTED[name].tensors);
  }
  useModule(await compile(true));
});
