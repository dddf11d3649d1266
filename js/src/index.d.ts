/** The typed array of a tensor's data type. Where JavaScript has no such number, it holds the elements' bits. */
export type Values =
  | Float64Array<ArrayBuffer>
  | Float32Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>;

/**
 * A data type, as numpy and ml_dtypes call it. Of float16 and bfloat16 a `Uint16Array` has the bits, of narrower floats and bool
 * a `Uint8Array`. Elements of types narrower than a byte take a byte. Of complex numbers the array has real and imaginary parts
 * in turn.
 */
export type Dtype =
  | "float64" | "float32" | "float16" | "bfloat16" | "float8_e4m3fn" | "float8_e5m2"
  | "int64" | "int32" | "int16" | "int8" | "uint64" | "uint32" | "uint16" | "uint8" | "bool"
  | "complex64" | "complex128" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e4m3b11fnuz" | "float8_e4m3"
  | "float8_e3m4" | "float8_e8m0fnu" | "float6_e2m3fn" | "float6_e3m2fn" | "float4_e2m1fn"
  | "int4" | "uint4" | "int2" | "uint2";

/** What a file says about one tensor. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  /** Its dimensions; the last one varies fastest. */
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly size: number;
  /** Bytes once decoded. */
  readonly nbytes: number;
  /** Bytes in the file; 0 if it is tied or equal to another one. */
  readonly codedBytes: number;
  /** The name of the tensor that it is under another name, or null. */
  readonly tiedTo: string | null;
  /** The name of an earlier tensor of whose values it has a copy, or null. */
  readonly equalTo: string | null;
}

export interface OpenOptions {
  /**
   * Most bytes that the index, a tensor, or all tensors together may take; of a stream or response also the file itself.
   * What needs more gives a {@link LimitError}. Default: no limit.
   */
  maxBytes?: number;
  /** Called with the bytes that have arrived, and those of the file, while a response or a stream is read. */
  onDownload?: (received: number, total: number) => void;
}

export interface DecodeOptions {
  /** `"float32"`: float16, bfloat16 and float8 become a `Float32Array`, without loss. Other types stay as they are. */
  as?: "float32";
  /**
   * Number of workers; 0 decodes in the calling thread. Default: the processor's cores, at most 8, and none for fewer than
   * a million elements. Where no worker can be started, the calling thread decodes.
   */
  threads?: number;
  /** Called with the bytes that are decoded, and those of all that was asked for. */
  onProgress?: (done: number, total: number) => void;
  /** Stops decoding; the error is the signal's reason. */
  signal?: AbortSignal;
}

/** A .dcb file whose index has been read and checked. */
export class DeepCabacFile {
  private constructor();
  /** All tensors, in the file's order. */
  readonly tensors: readonly TensorInfo[];
  /** The kind of checkpoint that the file was made from, such as `"onnx"`; empty for arrays. */
  readonly kind: string;
  /** What a checkpoint of this kind holds besides tensors; of `"onnx"`, the graph without its weights. */
  readonly extra: Uint8Array<ArrayBuffer>;
  /** Decodes one tensor. Throws {@link OptionError} if there is none of this name. */
  get(name: string, options: DecodeOptions & { as: "float32" }): Promise<Values>;
  get(name: string, options?: DecodeOptions): Promise<Values>;
  /** Decodes all tensors, by name. Tied ones share their array. */
  all(options?: DecodeOptions): Promise<Map<string, Values>>;
  /** The same one by one, in the file's order, each as soon as it is there: of a download, before its end. */
  items(options?: DecodeOptions): AsyncGenerator<[name: string, values: Values], void, void>;
  /** Ends workers and an unfinished download. */
  close(): Promise<void>;
}

/** What a file's bytes may come from. Bytes are not copied, so they must not change while the file is in use. */
export type Input = ArrayBufferLike | ArrayBufferView | Blob | Response | ReadableStream<Uint8Array>;

/**
 * Opens a .dcb file: reads its index, checks it, and decodes nothing yet.
 *
 * A .dcb file's index is at its end. Of a `Response` it is asked for by a range request, so that tensors are there while
 * the download goes on. If the server does not answer such requests, and of a `ReadableStream`, it comes last.
 *
 * Throws {@link DamagedFileError}, {@link UnsupportedError}, {@link LimitError} or {@link OptionError}.
 */
export function open(input: Input, options?: OpenOptions): Promise<DeepCabacFile>;

/**
 * Decodes what Python's `deepcabac.encode` returned: an array of int32 without a file around it.
 *
 * Throws {@link DamagedFileError}, {@link UnsupportedError} or {@link LimitError}.
 */
export function decodeLevels(
  input: ArrayBufferLike | ArrayBufferView,
  options?: OpenOptions,
): Promise<{ shape: readonly number[]; levels: Int32Array<ArrayBuffer> }>;

/** All errors caused by bad input or bad arguments. */
export class DeepCabacError extends Error {}
/** The bytes are not what a writer of this format wrote: truncated, altered, or another format. */
export class DamagedFileError extends DeepCabacError {}
/** The file does not begin as a .dcb file does. */
export class WrongKindError extends DamagedFileError {}
/** The file is well formed, but uses a version or feature that this release does not read, such as updates. */
export class UnsupportedError extends DeepCabacError {}
/** Decoding would need more memory than `maxBytes`, or than there is. */
export class LimitError extends DeepCabacError {}
/** An argument makes no sense. */
export class OptionError extends DeepCabacError {}
