// Compiled by test/package.test.js, never run: a program that uses every public name, with the types it may expect.

import {
  DamagedFileError, decodeLevels, DeepCabacError, DeepCabacFile, LimitError, open, OptionError, type TensorInfo,
  UnsupportedError, type Values, WrongKindError,
} from "deepcabac";
import { restoreOnnx } from "deepcabac/onnx";

export async function use(response: Response, blob: Blob, stream: ReadableStream<Uint8Array>): Promise<number> {
  const file: DeepCabacFile = await open(response, { maxBytes: 1e9 });
  await open(blob);
  await open(stream);
  await open(new Uint8Array(3));
  await open(new ArrayBuffer(3));
  const info: TensorInfo = file.tensors[0]!;
  const values: Values = await file.get(info.name, { as: "float32", threads: 2 });
  const all: Map<string, Values> = await file.all({ onProgress: (done, total) => console.log(done / total) });
  for await (const [name, tensor] of file.items({ signal: AbortSignal.timeout(1000) })) console.log(name, tensor.length);
  const model: Uint8Array<ArrayBuffer> = await restoreOnnx(file, { threads: 0 });
  const { shape, levels } = await decodeLevels(model);
  const classes = [DamagedFileError, WrongKindError, UnsupportedError, LimitError, OptionError];
  const errors: DeepCabacError[] = classes.map((one) => new one("text"));
  // @ts-expect-error: names are texts
  await file.get(3);
  // @ts-expect-error: there is no such option
  await open(blob, { limit: 3 });
  await file.close();
  return values.length + all.size + shape.length + levels.length + errors.length;
}
