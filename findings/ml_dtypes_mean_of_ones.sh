#!/usr/bin/env bash
# The mean of 1000 bfloat16 ones is 0.2559, by np.mean on an ml_dtypes array.
#
# NumPy's reductions widen float16 sums, but know nothing of ml_dtypes: a sum is accumulated in the narrow type, from left to
# right. It stops where adding 1 no longer changes it, at 256 in bfloat16, and at 16 in float8_e4m3fn. `np.dot` of the
# same array is right, and `dtype=np.float32` makes sum and mean right.
#
# Seen 2026-11-28 with ml_dtypes 0.6.0, numpy 2.4.6:
#     float16        sum 1000.0  mean 1.0
#     bfloat16       sum 256.0  mean 0.255859375  dot 1000.0
#     float8_e4m3fn  sum 16.0  mean 0.015625
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import ml_dtypes
import numpy as np

expected = {
    np.float16: (1000.0, 1.0),
    ml_dtypes.bfloat16: (256.0, 0.255859375),
    ml_dtypes.float8_e4m3fn: (16.0, 0.015625),
}
for dtype, (total, mean) in expected.items():
    ones = np.ones(1000, dtype)
    line = f"{np.dtype(dtype).name:14} sum {float(ones.sum())}  mean {float(ones.mean())}"
    assert (float(ones.sum()), float(ones.mean())) == (total, mean)
    assert float(ones.mean(dtype=np.float32)) == 1.0
    if dtype is ml_dtypes.bfloat16:
        line += f"  dot {float(np.dot(ones, ones))}"
        assert float(np.dot(ones, ones)) == 1000.0
    print(line)
PYTHON
