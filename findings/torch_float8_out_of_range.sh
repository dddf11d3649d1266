#!/usr/bin/env bash
# PyTorch and ml_dtypes turn the same float32 into different float8 where the type has no such value.
#
# For float8_e4m3fn PyTorch saturates: everything above 464, infinity included, becomes 448, so that an overflow leaves no
# trace. ml_dtypes gives NaN. PyTorch itself is of two minds: its other three 8-bit types do not saturate, an overflow is
# infinity in float8_e5m2 and NaN in both FNUZ types. For float8_e8m0fnu, which has neither a sign nor a zero,
# PyTorch drops the sign (-1 becomes 1) and makes 0 the smallest power of two. ml_dtypes gives NaN for both.
#
# Seen 2026-11-28 with torch 2.13.0, ml_dtypes 0.6.0, numpy 2.4.6:
#     float8_e4m3fn    [464.0, 465.0, inf, -inf]  torch [448.0, 448.0, 448.0, -448.0]  ml_dtypes [448.0, nan, nan, nan]
#     float8_e5m2      [100000.0, inf]  torch [inf, inf]  ml_dtypes [inf, inf]
#     float8_e4m3fnuz  [100000.0, inf]  torch [nan, nan]  ml_dtypes [nan, nan]
#     float8_e5m2fnuz  [100000.0, inf]  torch [nan, nan]  ml_dtypes [nan, nan]
#     float8_e8m0fnu   [-1.0, 0.0]  torch [1.0, 5.877471754111438e-39]  ml_dtypes [nan, nan]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import math
import warnings

import ml_dtypes
import numpy as np
import torch

warnings.simplefilter("ignore")
inf, nan = math.inf, math.nan
cases = [
    ("float8_e4m3fn", [464.0, 465.0, inf, -inf], [448.0, 448.0, 448.0, -448.0], [448.0, nan, nan, nan]),
    ("float8_e5m2", [100000.0, inf], [inf, inf], [inf, inf]),
    ("float8_e4m3fnuz", [100000.0, inf], [nan, nan], [nan, nan]),
    ("float8_e5m2fnuz", [100000.0, inf], [nan, nan], [nan, nan]),
    ("float8_e8m0fnu", [-1.0, 0.0], [1.0, 2.0**-127], [nan, nan]),
]
for name, values, by_torch, by_ml_dtypes in cases:
    # One element, and many, which take the vectorised path.
    for repeat in (1, 64):
        tensor = torch.tensor(values * repeat).to(getattr(torch, name)).float().numpy()
        array = np.array(values * repeat, np.float32).astype(getattr(ml_dtypes, name)).astype(np.float32)
        np.testing.assert_array_equal(tensor, np.array(by_torch * repeat, np.float32))
        np.testing.assert_array_equal(array, np.array(by_ml_dtypes * repeat, np.float32))
    few = len(values)
    print(f"{name:16} {values}  torch {tensor[:few].tolist()}  ml_dtypes {array[:few].tolist()}")
PYTHON
