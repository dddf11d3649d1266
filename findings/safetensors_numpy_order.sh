#!/usr/bin/env bash
# safetensors.numpy saves an array in Fortran order with its elements permuted.
#
# `save` and `save_file` write the array's memory as it lies and the array's shape beside it, without a look at the
# strides. A transposed weight matrix (`w.T`) or `np.asfortranarray(w)` comes back with the right shape and the values in
# other places, without an error. The docstring asks for contiguous tensors, which arrays in Fortran order are for NumPy,
# but nothing checks it; safetensors.torch refuses such tensors. `np.ascontiguousarray` before saving avoids it.
#
# Seen 2026-11-28 with safetensors 0.8.0, numpy 2.4.6:
#     saved  [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
#     loaded [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
#     saved  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#     loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, load_file, save, save_file

w = np.arange(6, dtype=np.float32).reshape(2, 3)
for array in (np.asfortranarray(w), w.T):
    save_file({"w": array}, "w.safetensors")
    loaded = load_file("w.safetensors")["w"]
    print("saved ", array.tolist())
    print("loaded", loaded.tolist())
    assert loaded.shape == array.shape
    assert not np.array_equal(loaded, array)
    assert np.array_equal(loaded.ravel(), array.ravel(order="K"))  # the order in memory
    assert np.array_equal(load(save({"w": array}))["w"], loaded)
    assert np.array_equal(load(save({"w": np.ascontiguousarray(array)}))["w"], array)
PYTHON
