// What the tests share: the golden files of the Python package, and what Python says they hold.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";

const ROOT = new URL("../../", import.meta.url);
const GOLDEN = new URL("tests/golden/", ROOT);
const ATTACKS = new URL("attacks/", ROOT);

export const golden = (name) => readFileSync(new URL(name, GOLDEN));
export const EXPECTED = JSON.parse(golden("expected.json"));
export const GOLDEN_FILES = readdirSync(GOLDEN).filter((name) => name.endsWith(".dcb"));
export const GOLDEN_LEVELS = readdirSync(GOLDEN).filter((name) => name.endsWith(".levels"));

export const attack = (name) => readFileSync(new URL(name, ATTACKS));
/** [file, class of its error in Python] of all hostile .dcb and .levels files. */
export const ATTACK_ERRORS = [
  ...readFileSync(new URL("README.md", ATTACKS), "utf8").matchAll(/^\| `([^`]*\.(?:dcb|levels))` \|.*\| `(\w+)` \|$/gm),
].map(([, name, error]) => [name, error]);
export const ATTACK_FILES = readdirSync(ATTACKS).filter((name) => /\.(dcb|levels)$/.test(name));

export const sha256 = (values) => createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex");

/** What expected.json has of each tensor. */
export function describe(file, tensors) {
  return Object.fromEntries(
    file.tensors.map(({ name, dtype, shape }) => [name, { dtype, shape: [...shape], sha256: sha256(tensors.get(name)) }]),
  );
}
