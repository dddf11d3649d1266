// Data types by their number in a file: numpy's name, and the array that holds the elements. Where JavaScript has no such
// number, the array holds its bits; of short floats, bits of the exponent, its bias, and what the last patterns are.

const types = [
  ["float64", Float64Array],
  ["float32", Float32Array],
  ["float16", Uint16Array, 5, 15, "ieee"],
  ["bfloat16", Uint16Array, 8, 127, "ieee"],
  ["float8_e4m3fn", Uint8Array, 4, 7, "nan"],
  ["float8_e5m2", Uint8Array, 5, 15, "ieee"],
  ["int64", BigInt64Array],
  ["int32", Int32Array],
  ["int16", Int16Array],
  ["int8", Int8Array],
  ["uint64", BigUint64Array],
  ["uint32", Uint32Array],
  ["uint16", Uint16Array],
  ["uint8", Uint8Array],
  ["bool", Uint8Array],
  ["complex64", Float32Array],
  ["complex128", Float64Array],
  ["float8_e4m3fnuz", Uint8Array, 4, 8, "unsigned zero"],
  ["float8_e5m2fnuz", Uint8Array, 5, 16, "unsigned zero"],
  ["float8_e4m3b11fnuz", Uint8Array, 4, 11, "unsigned zero"],
  ["float8_e4m3", Uint8Array, 4, 7, "ieee"],
  ["float8_e3m4", Uint8Array, 3, 3, "ieee"],
  ["float8_e8m0fnu", Uint8Array],
  ["float6_e2m3fn", Uint8Array],
  ["float6_e3m2fn", Uint8Array],
  ["float4_e2m1fn", Uint8Array],
  ["int4", Int8Array],
  ["uint4", Uint8Array],
  ["int2", Int8Array],
  ["uint2", Uint8Array],
];

/** By number, from 1 on. */
export const DTYPES = [undefined, ...types.map(([name, array, exponent, bias, last]) => ({ name, array, exponent, bias, last }))];

/** Integers of a type from the codes that they hold, a byte each, the first one in the lowest bits. */
export function packed(codes, { array }, size) {
  const out = new array(size);
  const bytes = new Uint8Array(out.buffer);
  const each = codes.length / Math.max(bytes.length, 1);
  for (let k = 0; k < bytes.length; k++) {
    for (let place = 0; place < each; place++) bytes[k] |= codes[k * each + place] << ((8 / each) * place);
  }
  return out;
}

/** Whether elements can become float32 without loss. */
export const widens = (dtype) => dtype.exponent !== undefined;

const tables = new Map();

/** The numbers of all patterns of a type of 8 or 16 bits. */
function tableOf({ name, array, exponent, bias, last }) {
  let table = tables.get(name);
  if (table) return table;
  const bits = 8 * array.BYTES_PER_ELEMENT;
  const mantissa = bits - 1 - exponent;
  const half = 2 ** (bits - 1);
  table = new Float32Array(2 * half);
  for (let pattern = 0; pattern < half; pattern++) {
    const field = pattern >> mantissa;
    const rest = (pattern & (2 ** mantissa - 1)) / 2 ** mantissa;
    let value = (rest + (field > 0 ? 1 : 0)) * 2 ** (Math.max(field, 1) - bias);
    if (last === "nan" && pattern === half - 1) value = NaN;
    if (last === "ieee" && field === 2 ** exponent - 1) value = rest === 0 ? Infinity : NaN;
    table[pattern] = value;
    table[half + pattern] = -value;
  }
  if (last === "unsigned zero") table[half] = NaN; // in place of -0
  tables.set(name, table);
  return table;
}

/** Elements as float32. */
export function widened(values, dtype) {
  const table = tableOf(dtype);
  const out = new Float32Array(values.length);
  for (let k = 0; k < out.length; k++) out[k] = table[values[k]];
  return out;
}
