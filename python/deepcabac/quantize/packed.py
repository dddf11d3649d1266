"""Integers that hold several narrow codes each, as quantised checkpoints pack them.

GPTQ and AWQ have eight codes of 4 bits in an int32, others two in a byte. Codes have a distribution that a coder can
use, the integers themselves have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._parallel import Run
from ..checkpoint.base import Array, TensorSpec
from ..checkpoint.packing import packed_dtype, unpack
from . import exact
from .exact import Coded

#: Bits of a code that are tried.
WIDTHS = (4, 2, 8)
#: Bytes of a tensor from which it is looked at, and of the sample that tells.
_LEAST, _SAMPLE = 1 << 10, 1 << 16
#: Share of the bytes that coding as integers takes from which codes are tried, and taken.
_GAIN = 0.98


@dataclass(frozen=True)
class PackedCodes(Coded):
    """Integers coded as the codes that they hold."""

    bits: int = 0  #: of a code


def codes_of(array: Array, bits: int) -> Array:
    """The codes in integers, the lowest bits first.  [...] -> [..., codes in an integer], uint2, uint4 or uint8"""
    count = 8 * array.dtype.itemsize // bits
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    spec = TensorSpec("", packed_dtype(bits), (*array.shape, count))
    return raw.reshape(spec.shape) if bits == 8 else unpack(raw, spec)


def better(array: Array, coded: Coded | None, run: Run, preset: str) -> Coded | None:
    """``coded``, what integers are coded to (None: nothing smaller than they are), or their codes coded, if smaller."""
    if array.dtype.kind not in "iu" or array.nbytes < _LEAST:
        return coded
    present = array.nbytes if coded is None else coded.coded_bytes
    flat = np.ascontiguousarray(array).reshape(-1)
    sample = flat[:: max(flat.nbytes // _SAMPLE, 1)]
    sizes = {bits: _entropy(sample, bits) * array.size / 8 for bits in WIDTHS if bits < 8 * array.dtype.itemsize}
    bits = min(sizes, key=sizes.__getitem__)
    if sizes[bits] > _GAIN * present:
        return coded
    found = exact.encode(codes_of(array, bits), run, None, preset)
    if found is None or found.coded_bytes > _GAIN * present:
        return coded
    return PackedCodes(found.form, found.codes, bits)


def _entropy(sample: Array, bits: int) -> float:
    """Bits of an integer by the frequencies of the codes that it holds, which places do not share."""
    codes = codes_of(sample, bits).view(np.uint8)
    total = 0.0
    for place in codes.reshape(-1, codes.shape[-1]).T:
        counts = np.bincount(place)
        shares = counts[counts > 0] / place.size
        total -= float((shares * np.log2(shares)).sum())
    return total
