#!/usr/bin/env bash
# safetensors.numpy.load refuses the bfloat16 arrays that safetensors.numpy.save wrote; load_file takes them.
#
# `save` and `save_file` accept ml_dtypes arrays. `load`, which reads the same bytes from memory, raises a KeyError with the
# name of the type and nothing else. `load_file` returns bfloat16 correctly, but fails on float8 in yet another way: it
# looks for the type inside numpy, where it has never been.
#
# Seen 2026-11-28 with safetensors 0.8.0, ml_dtypes 0.6.0, numpy 2.4.6:
#     bfloat16       load: KeyError 'BF16'   load_file: [1.0, 2.0, 3.0]
#     float8_e4m3fn  load: KeyError 'F8_E4M3'   load_file: AttributeError module 'numpy' has no attribute 'float8_e4m3fn'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    safetensors==0.8.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import ml_dtypes
import numpy as np
from safetensors.numpy import load, load_file, save, save_file


def attempt(function, *arguments):
    try:
        return function(*arguments)["w"].tolist()
    except Exception as error:
        return f"{type(error).__name__} {error}"


seen = {}
for name in ("bfloat16", "float8_e4m3fn"):
    array = np.array([1, 2, 3], getattr(ml_dtypes, name))
    save_file({"w": array}, "w.safetensors")
    seen[name] = attempt(load, save({"w": array})), attempt(load_file, "w.safetensors")
    print(f"{name:14} load: {seen[name][0]}   load_file: {seen[name][1]}")

assert seen["bfloat16"] == ("KeyError 'BF16'", [1.0, 2.0, 3.0])
assert seen["float8_e4m3fn"][0] == "KeyError 'F8_E4M3'"
assert seen["float8_e4m3fn"][1].startswith("AttributeError module 'numpy' has no attribute 'float8_e4m3fn'")
PYTHON
