import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeLevels, DeepCabacError, open } from "../src/index.js";
import { attack, ATTACK_ERRORS, ATTACK_FILES, golden } from "./support.js";

const MIB = 2 ** 20;
// Python asks for a base; updates are not read here, whatever is given.
const OTHERS = { "update-without-base.dcb": "UnsupportedError", "changes-mega.dcb": "UnsupportedError" };

async function opened(data, options, name = ".dcb") {
  if (name.endsWith(".levels")) return decodeLevels(data, options);
  const file = await open(data, options);
  return file.all({ threads: 0 });
}

test("all hostile files are tried", () => {
  assert.deepEqual(ATTACK_ERRORS.map(([name]) => name).sort(), ATTACK_FILES.sort());
});

for (const [name, error] of ATTACK_ERRORS.map(([name, error]) => [name, name in OTHERS ? OTHERS[name] : error])) {
  test(`${name} gives a ${error}`, async () => {
    const before = process.memoryUsage();
    await assert.rejects(opened(attack(name), { maxBytes: MIB }, name), (caught) => {
      assert.ok(caught instanceof DeepCabacError, caught);
      assert.equal(caught.name, error, caught.message);
      assert.ok(!caught.message.includes("\n") && caught.message.length < 300);
      return true;
    });
    const after = process.memoryUsage();
    assert.ok(after.arrayBuffers - before.arrayBuffers < 16 * MIB);
    assert.ok(after.rss - before.rss < 64 * MIB);
    if (error !== "LimitError") await assert.rejects(opened(attack(name), {}, name), { name: error });
  });
}

test("any changed byte and any prefix gives an error, and no other", async () => {
  const data = golden("scaled.dcb").length < golden("safetensors.dcb").length ? golden("scaled.dcb") : golden("safetensors.dcb");
  const isOurs = (error) => error instanceof DeepCabacError;
  for (let at = 0; at < data.length; at++) {
    const bad = new Uint8Array(data);
    bad[at] ^= 1 << at % 8;
    await assert.rejects(opened(bad, { maxBytes: MIB }), isOurs);
    if (at % 7 === 0) await assert.rejects(opened(data.subarray(0, at), { maxBytes: MIB }), isOurs);
  }
});
