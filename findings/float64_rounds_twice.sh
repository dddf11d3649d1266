#!/usr/bin/env bash
# PyTorch and ml_dtypes round float64 to narrow types twice, by way of float32; NumPy's own float16 is rounded once.
#
# A number just above the middle between two neighbours becomes exactly the middle in float32, and then goes to the even
# neighbour below. So a float64 checkpoint does not always get the nearest bfloat16, float16 or float8, and NumPy and PyTorch
# disagree about float16.
#
# Seen 2026-11-28 with torch 2.13.0, ml_dtypes 0.6.0, numpy 2.4.6; the value is 1 + u/2 + 2**-40, the nearest is 1 + u:
#     float16        u 0.0009765625  numpy 1.0009765625  torch 1.0
#     bfloat16       u 0.0078125  ml_dtypes 1.0  torch 1.0
#     float8_e4m3fn  u 0.125  ml_dtypes 1.0  torch 1.0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import ml_dtypes
import numpy as np
import torch

for name, u in (("float16", 2.0**-10), ("bfloat16", 2.0**-7), ("float8_e4m3fn", 2.0**-3)):
    library, dtype = ("numpy", np.float16) if name == "float16" else ("ml_dtypes", getattr(ml_dtypes, name))
    value = 1 + u / 2 + 2.0**-40
    assert abs(value - (1 + u)) < abs(value - 1)  # the upper neighbour is the nearest
    array = float(np.array([value]).astype(dtype)[0])
    # One element, and many, which take the vectorised path.
    tensors = {
        float(torch.tensor([value] * repeat, dtype=torch.float64).to(getattr(torch, name))[0]) for repeat in (1, 64)
    }
    print(f"{name:14} u {u}  {library} {array}  torch {' '.join(map(str, tensors))}")
    assert array == (1 + u if library == "numpy" else 1.0)
    assert tensors == {1.0}
PYTHON
