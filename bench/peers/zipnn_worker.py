"""Compress a file with ZipNN 0.5.4, decompress it again, and print what it took, as one line of JSON.

    ZIPNN_PYTHON bench/peers/zipnn_worker.py FILE float32|float16|bfloat16 [--repeat N]

ZIPNN_PYTHON belongs to an environment of its own (``pip install zipnn==0.5.4``), for ZipNN brings PyTorch along. The
data type is told to it, and everything else is its default: one thread, a Huffman code for each byte of a value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Code the file, check what comes back, print sizes and the best times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    data = arguments.file.read_bytes()
    with contextlib.redirect_stdout(sys.stderr):
        from zipnn import ZipNN

        encode = decode = float("inf")
        for _ in range(arguments.repeat):
            codec = ZipNN(input_format="byte", bytearray_dtype=arguments.dtype)
            given = bytearray(data)  # it may alter what it is given
            start = time.perf_counter()
            code = codec.compress(given)
            middle = time.perf_counter()
            back = codec.decompress(code)
            end = time.perf_counter()
            encode, decode = min(encode, middle - start), min(decode, end - middle)
    if bytes(back) != data:
        raise SystemExit("ZipNN did not give the file back")
    print(json.dumps({"bytes": len(code), "encode_seconds": encode, "decode_seconds": decode}))


if __name__ == "__main__":
    main()
