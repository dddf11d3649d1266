import type { DecodeOptions, DeepCabacFile } from "./index.js";

/**
 * The bytes of the ONNX model that a .dcb file was made from, for `InferenceSession.create` of onnxruntime-web: the graph
 * with the file's weights in it.
 *
 * Throws what decoding throws, and OptionError if the file was not made from an ONNX model.
 */
export function restoreOnnx(file: DeepCabacFile, options?: Omit<DecodeOptions, "as">): Promise<Uint8Array<ArrayBuffer>>;
