// Reads .dcb files. index.d.ts describes what is public.

import { Core, loadModule, nodeModule } from "./core.js";
import { DTYPES, packed, widened, widens } from "./dtypes.js";
import { DamagedFileError, LimitError, OptionError, UnsupportedError } from "./errors.js";
import { Pool } from "./pool.js";
import { bytesOf, sourceOf } from "./source.js";

export {
  DamagedFileError, DeepCabacError, LimitError, OptionError, UnsupportedError, WrongKindError,
} from "./errors.js";

// Elements that one call decodes, at least: worth a message, and short enough to show progress.
const BATCH = 3 << 18;
// Elements from which workers are worth their start.
const MANY = 1 << 20;
const MOST_THREADS = 8;

export async function open(input, { maxBytes, onDownload } = {}) {
  checkMaxBytes(maxBytes);
  const source = sourceOf(input, maxBytes, onDownload);
  try {
    const module = await loadModule();
    const core = await Core.create(module);
    const header = core.header(await source.head());
    if (!Number.isSafeInteger(header.end)) {
      throw new DamagedFileError(`damaged .dcb file: it should have ${header.end} bytes`);
    }
    const length = header.end - header.start;
    if (maxBytes !== undefined && length > maxBytes) {
      throw new LimitError(`the index takes ${length} bytes, more than maxBytes = ${maxBytes}`);
    }
    const plain = await plainIndex(core, source, header, maxBytes);
    const pool = new Pool(module, plain, header.start);
    pool.core = core;
    return new DeepCabacFile(source, pool, core.parse(plain, header.start), maxBytes);
  } catch (error) {
    await source.close();
    throw error;
  }
}

export async function decodeLevels(input, { maxBytes } = {}) {
  checkMaxBytes(maxBytes);
  const data = bytesOf(input);
  if (!data) throw new OptionError("give bytes");
  const core = await Core.create(await loadModule());
  const entry = entryOf(core.levels(data), 0, []);
  if (maxBytes !== undefined && entry.info.nbytes > maxBytes) {
    throw new LimitError(`the levels take ${entry.info.nbytes} bytes, more than maxBytes = ${maxBytes}`);
  }
  const levels = room(entry);
  for (const batch of batchesOf([entry])) {
    const places = batch.map(([, number]) => entry.chunks[number]);
    const code = places.map(({ offset, length }) => data.subarray(offset, offset + length));
    const chunks = batch.map(([, number]) => [0, number]);
    core.decode(chunks, code, (k, values) => place(levels, entry, chunks[k][1], values));
  }
  return { shape: entry.info.shape, levels };
}

function checkMaxBytes(maxBytes) {
  if (maxBytes !== undefined && !(Number.isSafeInteger(maxBytes) && maxBytes >= 0)) {
    throw new OptionError(`maxBytes must be a whole number of bytes, not ${maxBytes}`);
  }
}

/** The plain index, from a request of its own if that gives it before the end of a download. */
async function plainIndex(core, source, header, maxBytes) {
  const early = await source.earlyIndex?.(header);
  try {
    if (early) return core.plain(early, header.crc, maxBytes);
  } catch (error) {
    if (!(error instanceof DamagedFileError)) throw error; // the file has changed between the requests, perhaps
  }
  return core.plain(await source.index(header), header.crc, maxBytes);
}

export class DeepCabacFile {
  #source;
  #pool;
  #entries;
  #maxBytes;
  #closed = false;

  constructor(source, pool, { kind, extra, tensors }, maxBytes) {
    this.#source = source;
    this.#pool = pool;
    this.#maxBytes = maxBytes;
    this.#entries = new Map(tensors.map((tensor, number) => [tensor.name, entryOf(tensor, number, tensors)]));
    this.kind = kind;
    this.extra = extra;
    this.tensors = [...this.#entries.values()].map((entry) => entry.info);
  }

  async get(name, options = {}) {
    const entry = this.#entries.get(name);
    if (!entry) throw new OptionError(`there is no tensor called ${JSON.stringify(name)}`);
    check(options);
    const own = this.#owner(entry);
    this.#checkRoom(own);
    for await (const [, values] of this.#decode([own], options)) return asWanted(values, own, options);
  }

  async all(options = {}) {
    const tensors = new Map();
    for await (const [name, values] of this.items(options)) tensors.set(name, values);
    return tensors;
  }

  async *items(options = {}) {
    check(options);
    const entries = [...this.#entries.values()];
    const own = entries.filter((entry) => entry.tied < 0);
    const total = entries.filter((entry) => entry.method !== TIED).reduce((sum, entry) => sum + entry.info.nbytes, 0);
    if (this.#maxBytes !== undefined && total > this.#maxBytes) {
      throw new LimitError(`the tensors take ${total} bytes, more than maxBytes = ${this.#maxBytes}`);
    }
    const needed = new Set(entries.map((entry) => entry.tied));
    const kept = new Map();
    const decoded = this.#decode(own, options);
    for (const entry of entries) {
      if (entry.tied >= 0) {
        const values = kept.get(entry.tied);
        yield [entry.info.name, entry.method === TIED ? values : values.slice()];
        continue;
      }
      const values = asWanted((await decoded.next()).value[1], entry, options);
      if (needed.has(entry.number)) kept.set(entry.number, values);
      yield [entry.info.name, values];
    }
    await this.#source.finish();
    await decoded.return();
  }

  async close() {
    this.#closed = true;
    this.#pool.end("the file was closed");
    await this.#source.close();
  }

  /** The entry that has a tensor's values. */
  #owner(entry) {
    return entry.tied >= 0 ? this.#entries.get(this.tensors[entry.tied].name) : entry;
  }

  #checkRoom({ info, method }) {
    if (method === UPDATE) {
      throw new UnsupportedError(
        `tensor ${JSON.stringify(info.name)} is an update of another checkpoint: apply it with Python first`,
      );
    }
    if (this.#maxBytes !== undefined && info.nbytes > this.#maxBytes) {
      const takes = `tensor ${JSON.stringify(info.name)} takes ${info.nbytes} bytes`;
      throw new LimitError(`${takes}, more than maxBytes = ${this.#maxBytes}`);
    }
  }

  /** Decodes entries in order: yields [entry, values]. Some batches are decoded ahead. */
  async *#decode(entries, { threads, onProgress, signal }) {
    if (this.#closed) throw new OptionError("the file is closed");
    entries.forEach((entry) => this.#checkRoom(entry));
    const total = entries.reduce((sum, entry) => sum + entry.info.nbytes, 0);
    const size = entries.reduce((sum, entry) => sum + entry.parts, 0);
    const wanted = threads ?? (size < MANY ? 0 : await cores());
    const workers = wanted > 0 ? await this.#pool.grow(wanted) : 0;
    const rooms = new Map(); // number of an entry -> its values, and chunks to come
    const batches = batchesOf(entries);
    const running = [];
    let done = 0;
    const start = () => {
      const { value: batch } = batches.next();
      if (!batch) return false;
      for (const [entry] of batch) {
        if (!rooms.has(entry.number)) rooms.set(entry.number, { values: room(entry), left: entry.chunks.length });
      }
      const promise = this.#decodeBatch(batch, rooms, workers > 0);
      promise.catch(() => {}); // it is awaited later, or not at all
      running.push(promise);
      return true;
    };
    for (const entry of entries) {
      if (entry.chunks.length === 0) rooms.set(entry.number, { values: room(entry), left: 0 });
      while ((rooms.get(entry.number)?.left ?? 1) > 0) {
        while (running.length < 2 * workers + 1 && start());
        done += await running.shift();
        signal?.throwIfAborted();
        onProgress?.(done, total);
      }
      const { values } = rooms.get(entry.number);
      rooms.delete(entry.number);
      yield [entry, entry.packing ? packed(values, entry.packing, entry.info.size) : values];
    }
  }

  /** Decodes some chunks into their tensors' room. Returns the bytes of them. */
  async #decodeBatch(batch, rooms, apart) {
    const places = batch.map(([entry, number]) => entry.chunks[number]);
    const code = [];
    for (const { offset, length } of places) code.push(await this.#source.read(offset, length));
    const chunks = batch.map(([entry, number]) => [entry.number, number]);
    let bytes = 0;
    await this.#pool.decode(chunks, code, apart, (k, values) => {
      const [entry, number] = batch[k];
      const into = rooms.get(entry.number);
      place(into.values, entry, number, values);
      into.left--;
      bytes += values.length;
    });
    return bytes;
  }
}

const TIED = 1;
const UPDATE = 2;
const EQUAL = 3;

function entryOf({ name, code, whole, method, shape: stored, tied, chunkSize, lanes, chunks }, number, tensors) {
  const shape = whole ? stored.slice(0, -1) : stored;
  if (!shape.every(Number.isSafeInteger)) {
    throw new UnsupportedError(`tensor ${JSON.stringify(name)} has a dimension that JavaScript cannot count`);
  }
  const dtype = DTYPES[code];
  const size = shape.reduce((product, dimension) => product * dimension, 1);
  const parts = whole ? size * stored.at(-1) : size;
  const own = DTYPES[whole || code];
  // Of complex numbers both parts lie in one array, as they do here; codes are put together again.
  const packing = whole > 0 && whole < 16 ? own : undefined;
  const info = {
    name,
    dtype: own.name,
    shape,
    size,
    nbytes: packing ? size * own.array.BYTES_PER_ELEMENT : parts * dtype.array.BYTES_PER_ELEMENT,
    codedBytes: chunks.reduce((sum, { length }) => sum + length, 0),
    tiedTo: method === TIED ? tensors[tied].name : null,
    equalTo: method === EQUAL ? tensors[tied].name : null,
  };
  const owner = method === TIED || method === EQUAL ? tied : -1;
  return { info: Object.freeze(info), number, method, parts, dtype, packing, tied: owner, chunkSize, lanes, chunks };
}

function check({ as, threads }) {
  if (as !== undefined && as !== "float32") throw new OptionError(`as must be "float32", not ${JSON.stringify(as)}`);
  if (threads !== undefined && !(Number.isSafeInteger(threads) && threads >= 0 && threads <= 64)) {
    throw new OptionError(`threads must be a whole number from 0 to 64, not ${threads}`);
  }
}

function asWanted(values, { dtype }, { as }) {
  return as === "float32" && widens(dtype) ? widened(values, dtype) : values;
}

/** Puts the bytes of a chunk's values where they belong. */
function place(into, entry, number, values) {
  new Uint8Array(into.buffer).set(values, number * entry.chunkSize * entry.dtype.array.BYTES_PER_ELEMENT);
}

/** Memory for a tensor. */
function room({ info, dtype, parts }) {
  try {
    return new dtype.array(parts);
  } catch {
    throw new LimitError(`tensor ${JSON.stringify(info.name)} takes ${info.nbytes} bytes, more than there are`);
  }
}

/** Chunks in order, enough of them to be worth a call: arrays of [entry, number of the chunk]. */
function* batchesOf(entries) {
  let batch = [];
  let gathered = 0;
  for (const entry of entries) {
    for (let number = 0; number < entry.chunks.length; number++) {
      batch.push([entry, number]);
      gathered += Math.min(entry.chunkSize, entry.parts - number * entry.chunkSize);
      if (gathered >= BATCH && batch.length % entry.lanes === 0) {
        yield batch;
        batch = [];
        gathered = 0;
      }
    }
  }
  if (batch.length > 0) yield batch;
}

/** Processor cores to use. */
async function cores() {
  let count = globalThis.navigator?.hardwareConcurrency;
  if (!count && typeof process === "object") {
    const os = await import(/* @vite-ignore */ /* webpackIgnore: true */ nodeModule("os"));
    count = os.availableParallelism();
  }
  return Math.min(count || 1, MOST_THREADS);
}
