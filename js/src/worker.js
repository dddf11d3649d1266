// A worker: an instance of its own, to which index and chunks are sent.

import { Core, nodeModule } from "./core.js";
import { DeepCabacError } from "./errors.js";

const isNode = typeof process === "object" && typeof WorkerGlobalScope === "undefined";
const port = isNode ? (await import(/* @vite-ignore */ /* webpackIgnore: true */ nodeModule("worker_threads"))).parentPort : self;

let core;

async function answer({ module, plain, start, chunks, code }) {
  try {
    if (module) {
      core = await Core.create(module);
      core.parse(plain, start);
      return [{}];
    }
    const values = [];
    core.decode(chunks, [code], (_, view) => values.push(view.slice()));
    return [{ values }, values.map((value) => value.buffer)];
  } catch (error) {
    // An error of any other class is a bug, and ends the worker.
    if (!(error instanceof DeepCabacError)) throw error;
    return [{ error: { name: error.name, message: error.message }, broken: core?.broken ?? true }];
  }
}

// Messages that come while the port was awaited have been kept by Node; a browser's worker hands them over from here on.
const receive = async (data) => port.postMessage(...(await answer(data)));
if (isNode) port.on("message", receive);
else self.onmessage = (event) => receive(event.data);
