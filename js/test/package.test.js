import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const JS = fileURLToPath(new URL("..", import.meta.url));

test("each module is at most 200 kB after gzip", () => {
  for (const name of ["deepcabac.wasm", "deepcabac.simd.wasm"]) {
    assert.ok(gzipSync(readFileSync(join(JS, "lib", name))).length <= 200_000);
  }
});

test("the package has what it needs, and needs nothing else", () => {
  const run = execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: JS, encoding: "utf8" });
  const files = JSON.parse(run)[0].files.map(({ path }) => path);
  for (const path of ["lib/deepcabac.wasm", "lib/deepcabac.simd.wasm", "src/index.js", "src/worker.js", "README.md"]) {
    assert.ok(files.includes(path), path);
  }
  assert.ok(files.every((path) => /^(src\/|lib\/|README|LICENSE|package\.json)/.test(path)), String(files));
  const { dependencies, version } = JSON.parse(readFileSync(join(JS, "package.json")));
  assert.equal(dependencies, undefined);
  const cargo = readFileSync(join(JS, "..", "Cargo.toml"), "utf8");
  assert.equal(/^version = "(.*)"$/m.exec(cargo)[1], version);
});

test("an installed package works, by its name", () => {
  const folder = mkdtempSync(join(tmpdir(), "deepcabac-"));
  try {
    const run = (...command) => execFileSync(command[0], command.slice(1), { cwd: folder, encoding: "utf8" });
    writeFileSync(join(folder, "package.json"), '{"private": true, "type": "module"}');
    const packed = run("npm", "pack", "--silent", JS).trim();
    run("npm", "install", "--silent", "--offline", "--no-audit", "--no-fund", packed);
    const data = JSON.stringify(join(JS, "..", "tests", "golden", "fine.dcb"));
    const program = `
      import { open } from "deepcabac";
      import { readFileSync } from "node:fs";
      const file = await open(readFileSync(${data}));
      console.log((await file.all({ threads: 2 })).size, typeof (await import("deepcabac/onnx")).restoreOnnx);`;
    writeFileSync(join(folder, "main.js"), program);
    // It ends by itself: idle workers do not keep a program alive.
    assert.equal(run("node", "main.js"), "2 function\n");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const tsc = join(JS, "node_modules", "typescript", "bin", "tsc");

test("the types are those of a strict program", { skip: existsSync(tsc) ? false : "npm install was not run in js/" }, () => {
  const options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2024,dom,dom.asynciterable"];
  execFileSync("node", [tsc, ...options, "test/types.ts"], { cwd: JS, stdio: "inherit" });
});
