// Workers that decode chunks of one file. Where there can be none (a page's policy forbids them), the caller's thread decodes.

import { Core, nodeModule } from "./core.js";
import { DeepCabacError, errorNamed } from "./errors.js";

// Idle workers end after so many milliseconds.
const IDLE = 3000;

export class Pool {
  /** A file's plain index, and where its payload ends. */
  constructor(module, plain, start) {
    Object.assign(this, { module, plain, start });
    this.all = new Set();
    this.idle = []; // workers
    this.waiting = []; // those who wait for one
    this.core = undefined; // the caller's own instance
    this.busy = 0;
  }

  /** The caller's own instance, which has parsed the index. */
  async own() {
    if (!this.core || this.core.broken) {
      this.core = await Core.create(this.module);
      this.core.parse(this.plain, this.start);
    }
    return this.core;
  }

  /** As many workers as can be had, up to `count`; returns their number. */
  async grow(count) {
    const missing = Array.from({ length: Math.max(count - this.all.size, 0) }, () => this.startWorker());
    await Promise.allSettled(missing);
    return Math.min(this.all.size, count);
  }

  async startWorker() {
    const { module, plain, start } = this;
    const worker = await Thread.create();
    try {
      await worker.ask({ module, plain, start }, []);
    } catch (error) {
      worker.end();
      throw error;
    }
    this.all.add(worker);
    this.put(worker);
  }

  put(worker) {
    const next = this.waiting.shift();
    if (next) next(worker);
    else this.idle.push(worker);
  }

  /** A worker; undefined if there are none. */
  take() {
    if (this.all.size === 0) return undefined;
    return this.idle.pop() ?? new Promise((resolve) => this.waiting.push(resolve));
  }

  /** Decodes chunks, in a worker if `apart` and if there is one; `code` and `take` as in core.js. */
  async decode(chunks, code, apart, take) {
    this.busy++;
    clearTimeout(this.timer);
    try {
      const worker = apart ? await this.take() : undefined;
      if (worker) {
        (await this.decodeIn(worker, chunks, joined(code))).forEach((values, k) => take(k, values));
      } else {
        await new Promise((resolve) => setTimeout(resolve)); // lets the page live
        (await this.own()).decode(chunks, code, take);
      }
    } finally {
      if (--this.busy === 0) {
        this.timer = setTimeout(() => this.end(), IDLE);
        this.timer.unref?.();
      }
    }
  }

  async decodeIn(worker, chunks, code) {
    try {
      return await worker.ask({ chunks, code }, [code.buffer]);
    } finally {
      if (worker.ended) this.all.delete(worker);
      else this.put(worker);
      if (this.all.size === 0) for (const next of this.waiting.splice(0)) next(undefined);
    }
  }

  end(reason) {
    clearTimeout(this.timer);
    for (const worker of this.all) worker.end(reason);
    this.all.clear();
    this.idle = [];
    this.core = undefined;
  }
}

/** Pieces in an array of their own, which can be given away. */
function joined(pieces) {
  const bytes = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let filled = 0;
  for (const piece of pieces) {
    bytes.set(piece, filled);
    filled += piece.length;
  }
  return bytes;
}

/** A worker of a browser or of Node, which answers one question at a time. */
class Thread {
  static async create() {
    // Written out, so that bundlers see the file.
    if (typeof Worker !== "undefined") {
      return new Thread(new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "deepcabac" }));
    }
    const threads = await import(/* @vite-ignore */ /* webpackIgnore: true */ nodeModule("worker_threads"));
    return new Thread(new threads.Worker(new URL("./worker.js", import.meta.url), { name: "deepcabac" }));
  }

  constructor(worker) {
    this.worker = worker;
    this.ended = false;
    const fail = (event) => this.end(`a worker stopped: ${event?.message ?? "it could not be started"}`);
    if (worker.on) {
      worker.on("message", (data) => this.answer(data));
      worker.on("error", fail);
      worker.on("exit", () => this.end());
    } else {
      worker.onmessage = (event) => this.answer(event.data);
      worker.onerror = (event) => {
        event.preventDefault?.();
        fail(event);
      };
      worker.onmessageerror = fail;
    }
  }

  ask(question, transfer) {
    return new Promise((resolve, reject) => {
      if (this.ended) {
        reject(new DeepCabacError("a worker ended"));
        return;
      }
      this.asked = { resolve, reject };
      this.worker.ref?.();
      this.worker.postMessage(question, transfer);
    });
  }

  answer({ values, error, broken }) {
    const { resolve, reject } = this.asked;
    this.asked = undefined;
    this.worker.unref?.(); // an idle worker does not keep a program alive
    if (broken) this.end();
    if (error) reject(errorNamed(error.name, error.message));
    else resolve(values);
  }

  end(reason) {
    this.ended = true;
    this.asked?.reject(new DeepCabacError(reason ?? "a worker ended"));
    this.asked = undefined;
    this.worker.terminate();
  }
}
