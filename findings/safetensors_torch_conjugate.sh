#!/usr/bin/env bash
# safetensors.torch saves a conjugated tensor without the conjugation.
#
# A conjugate in PyTorch is the same storage with a bit set on the tensor. `save` writes the storage and ignores the
# bit, so `z.conj()` comes back as `z`. The same holds for the negative bit, which `z.conj().imag` carries: with one
# element such a view counts as contiguous, and it comes back with the other sign. There is no error and no warning.
# torch.save keeps both. `resolve_conj()` and `resolve_neg()` before saving avoid it.
#
# Seen 2026-11-28 with safetensors 0.8.0, torch 2.13.0:
#     conj()       saved [(1-2j), (3+4j)], loaded [(1+2j), (3-4j)]
#     conj().imag  saved [-2.0], loaded [2.0]
#     torch.save   loaded [(1-2j), (3+4j)]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import io

import torch
from safetensors.torch import load, save

z = torch.tensor([1 + 2j, 3 - 4j])
conjugate = z.conj()
loaded = load(save({"x": conjugate}))["x"]
print("conj()       saved", conjugate.tolist(), "loaded", loaded.tolist())
assert conjugate.tolist() == [1 - 2j, 3 + 4j]
assert loaded.tolist() == z.tolist() != conjugate.tolist()

imaginary = z[:1].conj().imag
loaded = load(save({"x": imaginary}))["x"]
print("conj().imag  saved", imaginary.tolist(), "loaded", loaded.tolist())
assert imaginary.is_neg() and imaginary.is_contiguous()
assert imaginary.tolist() == [-2.0] and loaded.tolist() == [2.0]

resolved = load(save({"x": conjugate.resolve_conj(), "y": imaginary.resolve_neg()}))
assert resolved["x"].tolist() == [1 - 2j, 3 + 4j] and resolved["y"].tolist() == [-2.0]

file = io.BytesIO()
torch.save(conjugate, file)
file.seek(0)
loaded = torch.load(file, weights_only=True)
print("torch.save   loaded", loaded.tolist())
assert loaded.tolist() == conjugate.tolist()
PYTHON
