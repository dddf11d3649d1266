// Data types by their number in a file: numpy's name, and the array that holds the elements. Where JavaScript has no such
// number, the array holds its bits.

const types = [
  ["float64", Float64Array],
  ["float32", Float32Array],
  ["float16", Uint16Array, 5, 15],
  ["bfloat16", Uint16Array, 8, 127],
  ["float8_e4m3fn", Uint8Array, 4, 7],
  ["float8_e5m2", Uint8Array, 5, 15],
  ["int64", BigInt64Array],
  ["int32", Int32Array],
  ["int16", Int16Array],
  ["int8", Int8Array],
  ["uint64", BigUint64Array],
  ["uint32", Uint32Array],
  ["uint16", Uint16Array],
  ["uint8", Uint8Array],
  ["bool", Uint8Array],
];

/** By number, 1 to 15. */
export const DTYPES = [undefined, ...types.map(([name, array, exponent, bias]) => ({ name, array, exponent, bias }))];

/** Whether elements can become float32 without loss. */
export const widens = (dtype) => dtype.exponent !== undefined || dtype.array === Float32Array;

const tables = new Map();

/** The numbers of all patterns of a type of 8 or 16 bits. */
function tableOf({ name, array, exponent, bias }) {
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
    if (name === "float8_e4m3fn") {
      if (pattern === half - 1) value = NaN;
    } else if (field === 2 ** exponent - 1) {
      value = rest === 0 ? Infinity : NaN;
    }
    table[pattern] = value;
    table[half + pattern] = -value;
  }
  tables.set(name, table);
  return table;
}

/** Elements as float32. */
export function widened(values, dtype) {
  if (dtype.array === Float32Array) return values;
  const table = tableOf(dtype);
  const out = new Float32Array(values.length);
  for (let k = 0; k < out.length; k++) out[k] = table[values[k]];
  return out;
}
