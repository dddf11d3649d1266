import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import {
  DamagedFileError, DeepCabacError, LimitError, open, OptionError, WrongKindError,
} from "../src/index.js";
import { describe, EXPECTED, golden } from "./support.js";

const NAME = "types.dcb";
const data = golden(NAME);
const expected = EXPECTED[NAME].tensors;

async function decoded(input, options) {
  const file = await open(input, options);
  const tensors = describe(file, await file.all());
  await file.close();
  return tensors;
}

/** The file, a few bytes at a time. */
function stream(bytes = data, each = 1000) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(new Uint8Array(bytes.subarray(at, (at += each))));
    },
  });
}

test("a file may be bytes, a blob, a response or a stream", async () => {
  const bytes = new Uint8Array(data);
  const shifted = new Uint8Array([0, ...data]).subarray(1);
  const inputs = [bytes, bytes.buffer, new DataView(bytes.buffer), shifted, new Blob([bytes]), new Response(bytes), stream()];
  for (const input of inputs) assert.deepEqual(await decoded(input), expected);
  for (const each of [1, 31, 33, 4096]) assert.deepEqual(await decoded(stream(data, each)), expected);
});

test("anything else is refused", async () => {
  const used = new Response(data);
  await used.arrayBuffer();
  const locked = stream();
  locked.getReader();
  for (const input of [undefined, "model.dcb", 7, {}, used, locked]) await assert.rejects(open(input), OptionError);
  await assert.rejects(open(new Response("no", { status: 404 })), /404/);
  await assert.rejects(open(new Response(null)), DamagedFileError);
  await assert.rejects(open(new Blob(["hello, world, this is some text of many bytes"])), WrongKindError);
  for (const maxBytes of [-1, 0.5, "1", NaN]) await assert.rejects(open(data, { maxBytes }), OptionError);
});

test("a stream that ends early or late is damaged", async () => {
  const rejected = (bytes) => assert.rejects(decoded(stream(bytes)), DamagedFileError);
  for (const length of [0, 5, 40, data.length >> 1, data.length - 1]) await rejected(data.subarray(0, length));
  await rejected(new Uint8Array([...data, 0]));
  const endless = new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(data)) });
  await assert.rejects(decoded(endless), DamagedFileError);
  const failing = new ReadableStream({ pull: (controller) => controller.error(new TypeError("the network is down")) });
  await assert.rejects(decoded(failing), { name: "TypeError", message: "the network is down" });
});

test("maxBytes bounds the index, each tensor and all of them", async () => {
  const file = await open(data);
  const sizes = file.tensors.filter(({ tiedTo }) => tiedTo === null).map(({ nbytes }) => nbytes);
  const total = sizes.reduce((sum, size) => sum + size);
  const largest = file.tensors.find(({ nbytes }) => nbytes === Math.max(...sizes));
  assert.deepEqual(await decoded(data, { maxBytes: total }), expected);
  await assert.rejects(decoded(data, { maxBytes: total - 1 }), LimitError);
  const limited = await open(data, { maxBytes: Math.max(largest.nbytes, data.length) - 1 }).catch(() => undefined);
  if (limited && largest.nbytes >= data.length) await assert.rejects(limited.get(largest.name), LimitError);
  await assert.rejects(open(data, { maxBytes: 10 }), LimitError);
  await assert.rejects(open(stream(), { maxBytes: data.length - 1 }), LimitError);
});

test("tensors come with their name, type and shape", async () => {
  const file = await open(data);
  const of = (name) => file.tensors.find((tensor) => tensor.name === name);
  assert.equal(file.kind, "");
  assert.deepEqual(file.tensors.map(({ name }) => name), Object.keys(expected));
  const levels = of("float32/levels");
  assert.deepEqual([levels.dtype, levels.shape, levels.size, levels.nbytes], ["float32", [24, 16], 384, 1536]);
  assert.ok(levels.codedBytes > 0 && levels.codedBytes < 800);
  assert.ok((await file.get("float32/levels")) instanceof Float32Array);
  assert.deepEqual([...(await file.get("int64"))], [-(2n ** 63n), 0n, 1n, 100n, 2n ** 63n - 1n]);
  assert.deepEqual([...(await file.get("uint16"))], [0, 0, 1, 100, 65535]);
  assert.deepEqual([...(await file.get("bool"))], [1, 0, 0, 1, 1, 1]);
  assert.equal((await file.get("scalar"))[0], Math.fround(0.1));
  await assert.rejects(file.get("no such tensor"), OptionError);
  await assert.rejects(file.get("bool", { as: "float16" }), OptionError);
  await assert.rejects(file.all({ threads: -1 }), OptionError);
});

test("short floats are their bits, or float32", async () => {
  const file = await open(data);
  const wide = new Map();
  for (const [dtype, tolerance] of [["float32", 0], ["float16", 2 ** -11], ["bfloat16", 2 ** -8], ["float8_e5m2", 2 ** -3]]) {
    const bits = await file.get(`${dtype}/levels`);
    const values = await file.get(`${dtype}/levels`, { as: "float32" });
    assert.ok(values instanceof Float32Array && values.length === 384);
    wide.set(dtype, values);
    if (dtype !== "float32") assert.equal(bits.constructor, dtype.startsWith("float8") ? Uint8Array : Uint16Array);
    assert.ok(tolerance >= 0);
  }
  const nan = await file.get("float16/nan", { as: "float32" });
  assert.ok(nan.some(Number.isNaN));
  const all = await file.all({ as: "float32" });
  assert.deepEqual(all.get("float16/levels"), wide.get("float16"));
  assert.ok(all.get("int64") instanceof BigInt64Array);
});

test("the same values on any number of threads, with progress", async () => {
  for (const threads of [0, 1, 3]) {
    const file = await open(golden("fine.dcb"));
    const seen = [];
    const tensors = await file.all({ threads, onProgress: (done, total) => seen.push([done, total]) });
    assert.deepEqual(describe(file, tensors), EXPECTED["fine.dcb"].tensors);
    const total = file.tensors.reduce((sum, { nbytes }) => sum + nbytes, 0);
    assert.deepEqual(seen.at(-1), [total, total]);
    await file.close();
  }
});

test("errors in a worker keep their class", async () => {
  const bad = new Uint8Array(data);
  bad[40] ^= 1;
  const file = await open(bad);
  await assert.rejects(file.all({ threads: 2 }), DamagedFileError);
  await file.close();
});

test("decoding can be stopped", async () => {
  const file = await open(data);
  await assert.rejects(file.all({ signal: AbortSignal.abort() }), { name: "AbortError" });
  for await (const [name] of file.items()) {
    assert.equal(name, Object.keys(expected)[0]);
    break;
  }
  await file.close();
});

/** Serves the file; the payload after the first bytes waits until `release` is called. */
async function served({ ranges, changed = false }, body) {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  const requests = [];
  const server = createServer(async (request, response) => {
    requests.push(request.headers.range);
    const range = ranges && /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    if (range) {
      const bytes = new Uint8Array(data.subarray(Number(range[1]), Number(range[2]) + 1));
      if (changed) bytes[3] ^= 1;
      response.writeHead(206, { "Content-Length": bytes.length }).end(bytes);
      return;
    }
    response.writeHead(200, { "Content-Length": data.length });
    response.write(data.subarray(0, data.length - 400));
    await gate;
    response.end(data.subarray(data.length - 400));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await body(`http://127.0.0.1:${server.address().port}/model.dcb`, release, requests);
  } finally {
    release();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

test("with range requests, tensors are handed out while the download goes on", async () => {
  await served({ ranges: true }, async (url, release, requests) => {
    const file = await open(await fetch(url));
    const items = file.items();
    assert.equal((await items.next()).value[0], Object.keys(expected)[0]);
    assert.equal(requests.length, 2);
    release();
    await items.return();
    assert.deepEqual(describe(file, await file.all()), expected);
    await file.close();
  });
});

test("without them, or with another file's index, the end of the download is waited for", async () => {
  await served({ ranges: false }, async (url, release) => {
    setTimeout(release, 50);
    assert.deepEqual(await decoded(await fetch(url)), expected);
  });
  await served({ ranges: true, changed: true }, async (url, release) => {
    setTimeout(release, 50);
    assert.deepEqual(await decoded(await fetch(url)), expected);
  });
});

test("errors are DeepCabacErrors with the class's name", () => {
  const error = new WrongKindError("so");
  assert.ok(error instanceof DamagedFileError && error instanceof DeepCabacError && error instanceof Error);
  assert.equal(String(error), "WrongKindError: so");
});
