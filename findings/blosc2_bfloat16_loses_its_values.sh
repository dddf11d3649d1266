#!/usr/bin/env bash
# Blosc2's unpack_tensor gives back a bfloat16 array as records without fields: every element is ().
#
# `pack_tensor`, `pack_array2` and `save_tensor` store the type as NumPy's description of it, which for ml_dtypes is a nameless
# field of raw bytes. Read back, this becomes a structured type of 2 bytes with no field, so that all elements print as an
# empty tuple, and nothing raises. Shape and size are right, and the bytes are still below (`.view(ml_dtypes.bfloat16)`).
# The older `pack_array`, which pickles, returns bfloat16.
#
# Seen 2026-11-28 with blosc2 4.14.1, ml_dtypes 0.6.0, numpy 2.4.6:
#     pack_tensor  dtype {'names': [], 'formats': [], 'offsets': [], 'itemsize': 2} values [(), (), ()]
#     pack_array2  dtype {'names': [], 'formats': [], 'offsets': [], 'itemsize': 2} values [(), (), ()]
#     pack_array   dtype bfloat16 values [1.0, 2.0, 3.0]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    blosc2==4.14.1 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import blosc2
import ml_dtypes
import numpy as np

array = np.array([1, 2, 3], ml_dtypes.bfloat16)
pairs = {
    "pack_tensor": (blosc2.pack_tensor, blosc2.unpack_tensor),
    "pack_array2": (blosc2.pack_array2, blosc2.unpack_array2),
    "pack_array": (blosc2.pack_array, blosc2.unpack_array),
}
for name, (pack, unpack) in pairs.items():
    restored = unpack(pack(array))
    print(f"{name:12} dtype {restored.dtype} values {restored.tolist()}")
    if name == "pack_array":
        assert restored.dtype == array.dtype and restored.tolist() == [1.0, 2.0, 3.0]
    else:
        assert restored.dtype.names == () and restored.dtype.itemsize == 2
        assert restored.tolist() == [(), (), ()]
        assert restored.view(ml_dtypes.bfloat16).tolist() == [1.0, 2.0, 3.0]
PYTHON
