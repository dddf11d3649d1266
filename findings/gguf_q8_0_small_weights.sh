#!/usr/bin/env bash
# GGUF's Q8_0 turns a tensor of small weights into zeros where Q4_0, with half the bits, keeps it.
#
# A block's scale is a float16: the largest magnitude over 127 in Q8_0, over 8 in Q4_0. Below 127 * 2**-25 (3.8e-6) the
# scale of Q8_0 rounds to zero, and with it the block; Q4_0 holds out down to 8 * 2**-25. The better type fails first, without
# a warning.
#
# Seen 2026-11-28 with gguf 0.19.0, numpy 2.4.6; 256 weights from -1e-6 to 1e-6, error relative to the largest:
#     Q8_0  zeros 256  error 1.00
#     Q4_0  zeros 4  error 0.24
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    gguf==0.19.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np

weights = np.linspace(-1e-6, 1e-6, 256).astype(np.float32)
seen = {}
for name in ("Q8_0", "Q4_0"):
    kind = gguf.GGMLQuantizationType[name]
    restored = gguf.quants.dequantize(gguf.quants.quantize(weights, kind), kind)
    error = float(np.abs(restored - weights).max() / np.abs(weights).max())
    seen[name] = int((restored == 0).sum()), error
    print(f"{name}  zeros {seen[name][0]}  error {error:.2f}")

assert seen["Q8_0"] == (256, 1.0)
assert seen["Q4_0"][0] == 4 and 0.2 < seen["Q4_0"][1] < 0.3
PYTHON
