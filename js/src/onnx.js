// An ONNX model from a .dcb file that was made of one: its graph, which the file carries, and its weights put back.
// The graph is handled at the level of the protobuf encoding; python/deepcabac/checkpoint/onnx_file.py says how weights are marked.

import { DamagedFileError, LimitError, OptionError } from "./errors.js";

const MOST_BYTES = 2 ** 31 - 1; // of a protobuf message
const MAX_DEPTH = 64; // of messages in messages

// The fields of each message that can lead to a weight, and the message that each holds.
const CHILDREN = {
  model: { 7: "graph", 20: "training", 25: "function" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
  training: { 1: "graph", 2: "graph" },
  function: { 7: "node", 11: "attribute" },
};
const [RAW_DATA, DIMS, DATA_TYPE, EXTERNAL_DATA, DATA_LOCATION] = [9, 1, 2, 13, 14];
const MARK = "deepcabac";
const DTYPE_NAMES = {
  1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
  11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
  18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1fn",
  24: "float8_e8m0fnu", 25: "uint2", 26: "int2", 27: "float6_e2m3fn", 28: "float6_e3m2fn",
};
// Bits of the types that a model packs, the first element lowest.
const PACKED = { uint4: 4, int4: 4, float4_e2m1fn: 4, uint2: 2, int2: 2, float6_e2m3fn: 6, float6_e3m2fn: 6 };

export async function restoreOnnx(file, options = {}) {
  if (file.kind !== "onnx") {
    throw new OptionError(`the file was made from ${file.kind || "arrays"}, not from an ONNX model`);
  }
  const weights = []; // in the order of the file's tensors
  const pieces = takeApart(file.extra, 0, file.extra.length, "model", 0, weights);
  const fits =
    weights.length === file.tensors.length &&
    weights.every(({ dtype, shape }, k) => {
      const tensor = file.tensors[k];
      return tensor.dtype === dtype && String(tensor.shape) === String(shape);
    });
  if (!fits) throw new DamagedFileError("the stored ONNX graph does not fit the stored tensors");
  const sizes = file.tensors.map(({ nbytes, size, dtype }) => (dtype in PACKED ? Math.ceil((size * PACKED[dtype]) / 8) : nbytes));
  const [flat, length] = flatten(pieces, sizes);
  if (length > MOST_BYTES) throw new LimitError(`the model takes ${length} bytes, more than one ONNX file can hold`);
  let model;
  try {
    model = new Uint8Array(length);
  } catch {
    throw new LimitError(`the model takes ${length} bytes, more than there are`);
  }
  const places = [];
  let at = 0;
  for (const piece of flat) {
    if (typeof piece === "number") {
      places.push(at);
      at += sizes[piece];
    } else {
      model.set(piece, at);
      at += piece.length;
    }
  }
  let next = 0;
  for await (const [, values] of file.items({ ...options, as: undefined })) {
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    const bits = PACKED[file.tensors[next].dtype];
    model.set(bits ? packedBits(bytes, bits) : bytes, places[next++]);
  }
  return model;
}

/** The lowest bits of some bytes, one after the other. */
function packedBits(bytes, bits) {
  const out = new Uint8Array(Math.ceil((bytes.length * bits) / 8));
  for (let k = 0; k < bytes.length; k++) {
    const [byte, place] = [(k * bits) >> 3, (k * bits) & 7];
    const value = (bytes[k] & ((1 << bits) - 1)) << place;
    out[byte] |= value;
    if (place + bits > 8) out[byte + 1] |= value >> 8;
  }
  return out;
}

const malformed = () => new DamagedFileError("the stored ONNX graph is malformed");

/** The fields of a message: where each begins, and its payload. */
function* fieldsOf(data, start, end) {
  let at = start;
  const varint = () => {
    let value = 0;
    for (let shift = 0; shift < 64; shift += 7) {
      if (at >= end) throw malformed();
      const byte = data[at++];
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
    throw malformed();
  };
  while (at < end) {
    const begin = at;
    const key = varint();
    const [number, wire] = [Math.floor(key / 8), key % 8];
    if (number === 0) throw malformed();
    let value = 0;
    if (wire === 0) value = varint();
    const length = { 0: 0, 1: 8, 2: wire === 2 ? varint() : 0, 5: 4 }[wire];
    if (length === undefined || length > end - at) throw malformed();
    const from = at;
    at += length;
    yield { number, wire, value, begin, start: from, end: at };
  }
}

const textOf = (data, { start, end }) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(data.subarray(start, end));

/** Pieces of a message: bytes to copy, and [field number, pieces] between them. Weights are gathered in order. */
function takeApart(data, start, end, kind, depth, weights) {
  if (depth > MAX_DEPTH) throw malformed();
  const pieces = [];
  let copied = start;
  for (const field of fieldsOf(data, start, end)) {
    const child = field.wire === 2 ? CHILDREN[kind][field.number] : undefined;
    if (!child) continue;
    const before = weights.length;
    const inner =
      child === "tensor"
        ? weightOf(data, field, weights)
        : takeApart(data, field.start, field.end, child, depth + 1, weights);
    if (weights.length === before) continue;
    pieces.push(data.subarray(copied, field.begin), [field.number, inner]);
    copied = field.end;
  }
  pieces.push(data.subarray(copied, end));
  return pieces;
}

/** A tensor without its mark and with room for its values, for which its number stands; undefined if it has no mark. */
function weightOf(data, { start, end }, weights) {
  const weight = { dtype: undefined, shape: [] };
  const rest = [];
  let isMarked = false;
  for (const field of fieldsOf(data, start, end)) {
    if (field.number === EXTERNAL_DATA && field.wire === 2) {
      for (const entry of fieldsOf(data, field.start, field.end)) {
        isMarked ||= entry.number === 1 && entry.wire === 2 && textOf(data, entry) === MARK;
      }
      continue;
    }
    if (field.number === DATA_LOCATION && field.wire === 0) continue;
    rest.push(data.subarray(field.begin, field.end));
    if (field.number === DIMS && field.wire === 0) weight.shape.push(field.value);
    else if (field.number === DIMS && field.wire === 2) weight.shape.push(...packed(data, field));
    else if (field.number === DATA_TYPE && field.wire === 0) weight.dtype = DTYPE_NAMES[field.value];
  }
  if (!isMarked) return undefined;
  weights.push(weight);
  return [...rest, [RAW_DATA, [weights.length - 1]]];
}

/** Varints one after the other. */
function packed(data, { start, end }) {
  const numbers = [];
  let [value, scale] = [0, 1];
  for (const byte of data.subarray(start, end)) {
    value += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) {
      numbers.push(value);
      [value, scale] = [0, 1];
    }
  }
  if (scale !== 1) throw malformed();
  return numbers;
}

/** Pieces in one list, with the heads of messages between them, and their bytes. */
function flatten(pieces, sizes) {
  const flat = [];
  let length = 0;
  for (const piece of pieces) {
    if (Array.isArray(piece)) {
      const [inner, size] = flatten(piece[1], sizes);
      const head = Uint8Array.from([...varintOf(piece[0] * 8 + 2), ...varintOf(size)]);
      flat.push(head, ...inner);
      length += head.length + size;
    } else {
      flat.push(piece);
      length += typeof piece === "number" ? sizes[piece] : piece.length;
    }
  }
  return [flat, length];
}

function varintOf(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}
