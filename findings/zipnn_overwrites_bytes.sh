#!/usr/bin/env bash
# ZipNN's compress changes the bytes that it is given, even an immutable `bytes` object.
#
# For float32 and bfloat16 in the input format "byte", sign and exponent change places in each number, so that the exponent
# fills a byte. This happens in the caller's memory and is not undone. So the program that compresses goes on
# with wrong weights, and a comparison of the result with the input fails, although the stream holds the right values. A
# `bytes` object, which Python promises never to change, changes too. float16 is left alone. Hand it a copy.
#
# Seen 2026-11-28 with zipnn 0.5.4, torch 2.13.0:
#     float32   input unchanged: False, restored: True
#     bfloat16  input unchanged: False, restored: True
#     float16   input unchanged: True, restored: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 zipnn==0.5.4 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np

warnings.simplefilter("ignore")
from zipnn import ZipNN

weights = np.random.default_rng(0).normal(0, 0.02, 1 << 18).astype(np.float32)
arrays = {
    "float32": weights,
    "bfloat16": (weights.view(np.uint32) >> 16).astype(np.uint16),
    "float16": weights.astype(np.float16),
}
for dtype, array in arrays.items():
    given = array.tobytes()
    assert type(given) is bytes
    codec = ZipNN(input_format="byte", bytearray_dtype=dtype)
    stream = codec.compress(given)
    unchanged = given == array.tobytes()
    restored = bytes(codec.decompress(stream)) == array.tobytes()
    print(f"{dtype:9} input unchanged: {unchanged}, restored: {restored}")
    assert len(stream) < array.nbytes
    assert unchanged == (dtype == "float16")
    if not unchanged:
        bits = np.frombuffer(array.tobytes(), f"u{array.itemsize}")
        top = 8 * array.itemsize
        sign, exponent, rest = bits >> (top - 1), (bits >> (top - 9)) & 0xFF, bits & ((1 << (top - 9)) - 1)
        assert given == ((exponent << (top - 8)) | (sign << (top - 9)) | rest).astype(bits.dtype).tobytes()
    assert restored
PYTHON
