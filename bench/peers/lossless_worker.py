"""Compress the tensors of a file with a peer without loss, decompress them, and print what it took, as JSON.

    PEERS_PYTHON bench/peers/lossless_worker.py FILE zipnn|openzl|pcodec|zstd float32|float16|bfloat16 [--repeat N]

PEERS_PYTHON belongs to an environment of its own (``pip install zipnn==0.5.4 openzl==0.3.0 pcodec==1.1.0 zstandard
safetensors numpy``). Everyone has one thread and gets the floating-point tensors as one array, but pcodec, whose chunks
are tensors. Settings are the best that we found: ZipNN's default for the type; OpenZL's split into exponents, which are
entropy coded, and the rest, which is stored (bfloat16) or left to its choice (float32), and its choice for float16;
pcodec at level 8, bfloat16 as numbers of 16 bits; zstd at level 3 after the bytes were transposed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Compresses the arrays, and gives back what decompresses them.
Codec = Callable[[list[Any]], tuple[Any, Callable[[Any], Any]]]


def tensors(path: Path) -> list[Any]:
    """The floating-point tensors of a safetensors file, as flat unsigned patterns."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = []
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and about["dtype"] in ("F32", "F16", "BF16"):
            start, end = (8 + length + offset for offset in about["data_offsets"])
            found.append(np.frombuffer(data[start:end], "<u4" if about["dtype"] == "F32" else "<u2"))
    return found


def zipnn(arrays: list[Any], kind: str) -> tuple[Any, Any]:
    """ZipNN as it is by default."""
    from zipnn import ZipNN

    codec = ZipNN(input_format="byte", bytearray_dtype=kind)
    whole = bytearray(np.concatenate(arrays).tobytes())
    return lambda: codec.compress(whole), lambda code: codec.decompress(code)


def openzl(arrays: list[Any], kind: str) -> tuple[Any, Any]:
    """OpenZL with a graph for the type."""
    import openzl.ext as zl

    compressor = zl.Compressor()
    # Its node for float16 stores the rest in 16 bits.
    nodes = {"bfloat16": zl.nodes.BFloat16Deconstruct, "float32": zl.nodes.Float32Deconstruct}
    if kind in nodes:
        rest = zl.graphs.Compress() if kind == "float32" else zl.graphs.Store()
        graph = nodes[kind]()(compressor, rest(compressor), zl.graphs.Entropy()(compressor))
    else:
        graph = zl.graphs.Compress()(compressor)
    compressor.select_starting_graph(graph)
    whole = np.concatenate(arrays)

    def compress() -> bytes:
        context = zl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        return bytes(context.compress([zl.Input(zl.Type.Numeric, whole)]))

    return compress, lambda code: zl.DCtx().decompress(code)[0].content.as_nparray()


def pcodec(arrays: list[Any], kind: str) -> tuple[Any, Any]:
    """pcodec, a file for each tensor."""
    from pcodec import ChunkConfig, standalone

    config = ChunkConfig(compression_level=8)
    given = [array.view({"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[kind]) for array in arrays]
    return (
        lambda: [standalone.simple_compress(array, config) for array in given],
        lambda codes: [standalone.simple_decompress(code) for code in codes],
    )


def zstd(arrays: list[Any], kind: str) -> tuple[Any, Any]:
    """Zstandard, byte by byte."""
    import zstandard

    whole = np.concatenate(arrays)
    item = whole.itemsize

    def compress() -> bytes:
        planes = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, item).T)
        return zstandard.ZstdCompressor(level=3).compress(planes.tobytes())

    def decompress(code: bytes) -> Any:
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(code), np.uint8).reshape(item, -1)
        return np.ascontiguousarray(planes.T)

    return compress, decompress


def plain(decoded: Any) -> bytes:
    """The bytes of whatever a peer gives back."""
    if isinstance(decoded, list):
        return b"".join(part.tobytes() for part in decoded)
    return decoded.tobytes() if hasattr(decoded, "tobytes") else bytes(decoded)


def main() -> None:
    """Code the tensors, check what comes back, print sizes and the best times of the processor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("peer", choices=["zipnn", "openzl", "pcodec", "zstd"])
    parser.add_argument("dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    arrays = tensors(arguments.file)
    with contextlib.redirect_stdout(sys.stderr):
        encode = decode = float("inf")
        for _ in range(arguments.repeat):
            # ZipNN may alter what it is given.
            compress, decompress = globals()[arguments.peer](arrays, arguments.dtype)
            start = time.process_time()
            code = compress()
            middle = time.process_time()
            back = decompress(code)
            end = time.process_time()
            encode, decode = min(encode, middle - start), min(decode, end - middle)
    if plain(back) != b"".join(array.tobytes() for array in arrays):
        raise SystemExit(f"{arguments.peer} did not give the tensors back")
    size = sum(map(len, code)) if isinstance(code, list) else len(code)
    raw = sum(array.nbytes for array in arrays)
    print(json.dumps({"raw": raw, "bytes": size, "encode_seconds": encode, "decode_seconds": decode}))


if __name__ == "__main__":
    main()
