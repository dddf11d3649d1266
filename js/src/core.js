// The Rust core as a WebAssembly instance: its calls, with bytes in and bytes out. src/wasm.rs is the other side.

import { DamagedFileError, LimitError, UnsupportedError, WrongKindError } from "./errors.js";

const ERRORS = [undefined, DamagedFileError, WrongKindError, UnsupportedError, LimitError];

// A module with one function, which gives a vector of 128 bits.
const VECTOR = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];

/** Whether this engine has WebAssembly's SIMD instructions. */
export const hasSimd = () => WebAssembly.validate(new Uint8Array(VECTOR));

let compiled;

/** The compiled module, for any number of instances. */
export function loadModule() {
  compiled ??= compile(hasSimd()).catch((error) => {
    compiled = undefined;
    throw error;
  });
  return compiled;
}

/** For tests and benchmarks: another module for all files opened from now on. */
export function useModule(module) {
  compiled = Promise.resolve(module);
}

/** Compiles the build with or without SIMD. */
export async function compile(simd) {
  // Written out, so that bundlers see both files.
  const url = simd
    ? new URL("../lib/deepcabac.simd.wasm", import.meta.url)
    : new URL("../lib/deepcabac.wasm", import.meta.url);
  if (url.protocol === "file:") {
    const { readFile } = await import(/* @vite-ignore */ /* webpackIgnore: true */ nodeModule("fs/promises"));
    return WebAssembly.compile(await readFile(url));
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** The name of a module of Node's, which bundlers for browsers do not follow. */
export const nodeModule = (name) => `node:${name}`;

/** One instance, which reads one file. */
export class Core {
  static async create(module) {
    return new Core(await WebAssembly.instantiate(module, {}));
  }

  constructor(instance) {
    this.exports = instance.exports;
    this.broken = false; // a trap: the instance must not be used again
  }

  /** Calls a function with pieces of bytes as its input. Its result is a copy. */
  call(name, input, ...numbers) {
    const length = input.reduce((sum, piece) => sum + piece.length, 0);
    const { exports } = this;
    try {
      const room = length < 2 ** 31 ? exports.dc_room(length) : 0;
      if (length > 0 && room === 0) throw new LimitError(`${length} bytes are more than WebAssembly has room for`);
      let end = room >>> 0;
      for (const piece of input) {
        this.bytes(end, piece.length).set(piece);
        end += piece.length;
      }
      const status = exports[name](...numbers);
      const result = this.bytes(exports.dc_result() >>> 0, exports.dc_result_length()).slice();
      if (status === 0) return result;
      throw new ERRORS[status](new TextDecoder().decode(result));
    } catch (error) {
      if (!(error instanceof WebAssembly.RuntimeError)) throw error;
      this.broken = true;
      throw new DamagedFileError(`the file cannot be decoded: ${error.message}`);
    }
  }

  /** A view of the instance's memory, good until the next call. */
  bytes(start, length) {
    return new Uint8Array(this.exports.memory.buffer, start, length);
  }

  /** The checksum and the place of the index, from the first bytes of a file. */
  header(head) {
    const view = new DataView(this.call("dc_header", [head]).buffer);
    return { crc: view.getUint32(0, true), start: view.getFloat64(4, true), end: view.getFloat64(12, true) };
  }

  /** The plain index from the stored one. */
  plain(stored, crc, maxBytes) {
    return this.call("dc_plain", [stored], crc, maxBytes ?? -1);
  }

  /** Parses a plain index and keeps it. */
  parse(plain, start) {
    return described(this.call("dc_parse", [plain], start));
  }

  /** The same for levels on their own. */
  levels(data) {
    return described(this.call("dc_levels", [data])).tensors[0];
  }

  /**
   * Decodes chunks, given as [number of a tensor, number of a chunk]; `code` has the pieces of their bytes. Calls `take` with
   * the number of each and its values, a view that is good until `take` returns.
   */
  decode(chunks, code, take) {
    const words = new Uint32Array([chunks.length, ...chunks.flat()]);
    const places = new Uint32Array(this.call("dc_decode", [new Uint8Array(words.buffer), ...code]).buffer);
    chunks.forEach((_, k) => take(k, this.bytes(places[2 * k], places[2 * k + 1])));
  }
}

/** What an index says, from what `dc_parse` wrote. */
function described(bytes) {
  const view = new DataView(bytes.buffer);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let at = 0;
  const u8 = () => view.getUint8(at++);
  const u32 = () => view.getUint32((at += 4) - 4, true);
  const f64 = () => view.getFloat64((at += 8) - 8, true);
  const blob = () => {
    const length = u32();
    return bytes.subarray(at, (at += length));
  };
  const kind = decoder.decode(blob());
  const extra = blob().slice();
  const tensors = [];
  for (let count = u32(); count > 0; count--) {
    const name = decoder.decode(blob());
    const [code, whole, method] = [u8(), u8(), u8()];
    const shape = Array.from({ length: u8() }, f64);
    const [tied, chunkSize, lanes] = [f64(), f64(), u32()];
    const chunks = Array.from({ length: u32() }, () => ({ offset: f64(), length: f64() }));
    tensors.push({ name, code, whole, method, shape, tied, chunkSize, lanes, chunks });
  }
  return { kind, extra, tensors };
}
