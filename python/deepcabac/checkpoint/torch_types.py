"""PyTorch's data types, and what stands for them in numpy. Needs no PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import BFLOAT16, EXACT_DTYPES, FLOAT8_E4M3FN, FLOAT8_E5M2, TensorSpec

#: PyTorch's name of each type, and of the storage class for it in files, which only the older types have.
TYPES: dict[np.dtype[Any], tuple[str, str | None]] = {
    np.dtype("<f8"): ("float64", "DoubleStorage"),
    np.dtype("<f4"): ("float32", "FloatStorage"),
    np.dtype("<f2"): ("float16", "HalfStorage"),
    BFLOAT16: ("bfloat16", "BFloat16Storage"),
    FLOAT8_E4M3FN: ("float8_e4m3fn", None),
    FLOAT8_E5M2: ("float8_e5m2", None),
    np.dtype("<i8"): ("int64", "LongStorage"),
    np.dtype("<i4"): ("int32", "IntStorage"),
    np.dtype("<i2"): ("int16", "ShortStorage"),
    np.dtype("i1"): ("int8", "CharStorage"),
    np.dtype("<u8"): ("uint64", None),
    np.dtype("<u4"): ("uint32", None),
    np.dtype("<u2"): ("uint16", None),
    np.dtype("u1"): ("uint8", "ByteStorage"),
    np.dtype("?"): ("bool", "BoolStorage"),
    np.dtype("<c8"): ("complex64", "ComplexFloatStorage"),
    np.dtype("<c16"): ("complex128", "ComplexDoubleStorage"),
}
for _name in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
    if _name in EXACT_DTYPES:
        TYPES[EXACT_DTYPES[_name]] = (_name, None)
_DTYPE_OF_NAME = {name: dtype for dtype, (name, _) in TYPES.items()}

#: Two to a byte, the first one lowest; PyTorch counts bytes.
PAIRS, PAIR = "float4_e2m1fn_x2", EXACT_DTYPES.get("float4_e2m1fn")
if PAIR is not None:
    TYPES[PAIR] = (PAIRS, None)
#: Types that are stored as their bytes.
ONLY_TORCH = ("complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")


def spec_of_torch(name: str, tensor: Any) -> TensorSpec | None:
    """What a tensor of PyTorch is in numpy; None if it is of an unknown type."""
    word, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if word == PAIRS and PAIR is not None and shape:
        return TensorSpec(name, PAIR, (*shape[:-1], 2 * shape[-1]))
    if word in ONLY_TORCH:
        return TensorSpec(name, np.dtype(f"<u{tensor.element_size()}"), shape)
    dtype = _DTYPE_OF_NAME.get(word)
    return None if dtype is None else TensorSpec(name, dtype, shape)
