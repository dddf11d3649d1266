// Where a file's bytes come from. A source has `read(offset, length)`, and `finish(size)`, which checks the file's size.

import { DamagedFileError, DeepCabacError, LimitError, OptionError } from "./errors.js";

const HEADER = 32;

/** Bytes that the user gave; undefined if it is something else. */
export function bytesOf(input) {
  if (ArrayBuffer.isView(input)) return new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
  const isShared = typeof SharedArrayBuffer !== "undefined" && input instanceof SharedArrayBuffer;
  return input instanceof ArrayBuffer || isShared ? new Uint8Array(input) : undefined;
}

/** The source for what the user gave. */
export function sourceOf(input, maxBytes, onDownload) {
  const bytes = bytesOf(input);
  if (bytes) return new BytesSource(bytes);
  if (typeof Blob !== "undefined" && input instanceof Blob) return new BlobSource(input);
  if (typeof Response !== "undefined" && input instanceof Response) {
    if (!input.ok) throw new DeepCabacError(`${input.url || "the response"}: the server answered ${input.status}`);
    if (input.bodyUsed || input.body?.locked) throw new OptionError("the response's body was read already");
    return input.body ? new StreamSource(input.body, maxBytes, input.url, onDownload) : new BytesSource(new Uint8Array(0));
  }
  if (typeof ReadableStream !== "undefined" && input instanceof ReadableStream) {
    if (input.locked) throw new OptionError("the stream has a reader already");
    return new StreamSource(input, maxBytes, "", onDownload);
  }
  throw new OptionError("give bytes, a Blob, a Response or a ReadableStream");
}

const wrongSize = (expected, size) =>
  new DamagedFileError(`damaged .dcb file: it should have ${expected} bytes and has ${size}`);

class BytesSource {
  constructor(bytes) {
    this.bytes = bytes;
  }

  async head() {
    return this.bytes.subarray(0, HEADER);
  }

  async index(header) {
    if (header.end !== this.bytes.length) throw wrongSize(header.end, this.bytes.length);
    return this.bytes.subarray(header.start);
  }

  async read(offset, length) {
    return this.bytes.subarray(offset, offset + length);
  }

  async finish() {}

  async close() {}
}

class BlobSource {
  constructor(blob) {
    this.blob = blob;
  }

  head() {
    return this.read(0, HEADER);
  }

  async index(header) {
    if (header.end !== this.blob.size) throw wrongSize(header.end, this.blob.size);
    return this.read(header.start, header.end - header.start);
  }

  async read(offset, length) {
    return new Uint8Array(await this.blob.slice(offset, offset + length).arrayBuffer());
  }

  async finish() {}

  async close() {}
}

/** Bytes that arrive in order. The index is at the end, so it is asked for by a request of its own where that is possible. */
class StreamSource {
  constructor(stream, maxBytes, url, onDownload) {
    this.onDownload = onDownload;
    this.reader = stream.getReader();
    this.maxBytes = maxBytes;
    this.url = url;
    this.pieces = []; // [offset, bytes]
    this.received = 0;
    this.limit = HEADER; // nothing is read beyond it
    this.ended = false;
    this.size = undefined; // of the file, once its header is there
    this.failure = undefined;
    this.waiting = []; // to be told of news
    this.pumping = false;
  }

  /** Reads on in the background. */
  async pump() {
    if (this.pumping) return;
    this.pumping = true;
    try {
      while (!this.ended && this.received < this.limit) {
        const { done, value } = await this.reader.read();
        if (done) {
          this.ended = true;
        } else if (value.length > 0) {
          this.pieces.push([this.received, value]);
          this.received += value.length;
          if (this.size !== undefined) this.onDownload?.(Math.min(this.received, this.size), this.size);
        }
        this.news();
      }
    } catch (error) {
      this.failure = error;
      this.ended = true;
      this.news();
    }
    this.pumping = false;
  }

  news() {
    for (const tell of this.waiting.splice(0)) tell();
  }

  /** Waits for so many bytes, or for the end. */
  async arrived(count) {
    while (this.received < count && !this.ended) {
      const news = new Promise((resolve) => this.waiting.push(resolve));
      this.pump();
      await news;
    }
    if (this.received < count && this.failure) throw this.failure;
  }

  async head() {
    await this.arrived(HEADER);
    return this.taken(0, Math.min(HEADER, this.received));
  }

  /** The index by a range request; undefined if there is no such thing. */
  async earlyIndex(header) {
    this.expect(header);
    if (!/^https?:/.test(this.url) || this.received >= header.end) return undefined;
    try {
      const range = `bytes=${header.start}-${header.end - 1}`;
      const response = await fetch(this.url, { headers: { Range: range } });
      if (response.status !== 206 || response.headers.get("Content-Encoding")) {
        await response.body?.cancel();
        return undefined;
      }
      const other = new StreamSource(response.body, undefined, "", undefined);
      const length = header.end - header.start;
      other.limit = length;
      return await other.read(0, length);
    } catch {
      return undefined;
    }
  }

  async index(header) {
    this.expect(header);
    return this.read(header.start, header.end - header.start);
  }

  /** Reads on in the background, now that the size of the file is known. */
  expect(header) {
    this.size = header.end;
    if (this.maxBytes !== undefined && header.end > this.maxBytes) {
      throw new LimitError(`the file takes ${header.end} bytes, more than maxBytes = ${this.maxBytes}`);
    }
    this.limit = header.end + 1; // one more shows that the file is longer
    this.pump();
  }

  async read(offset, length) {
    await this.arrived(offset + length);
    if (this.received < offset + length) throw wrongSize(this.size, this.received);
    return this.taken(offset, length);
  }

  taken(offset, length) {
    let [low, high] = [0, this.pieces.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.pieces[middle][0] <= offset) low = middle;
      else high = middle;
    }
    const out = new Uint8Array(length);
    for (let filled = 0; filled < length; low++) {
      const [start, bytes] = this.pieces[low];
      const piece = bytes.subarray(offset + filled - start, offset + length - start);
      out.set(piece, filled);
      filled += piece.length;
    }
    return out;
  }

  async finish() {
    await this.arrived(this.size + 1);
    if (this.failure) throw this.failure;
    if (this.received !== this.size) throw wrongSize(this.size, `${this.received} or more`);
  }

  async close() {
    this.ended = true;
    this.pieces = [];
    this.received = 0;
    this.news();
    await this.reader.cancel().catch(() => {});
  }
}
