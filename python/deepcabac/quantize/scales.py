"""Scales of rows and columns: quarter powers of two, the same on every machine. FORMAT.md, 6.2."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: 2^0, 2^(1/4), 2^(1/2) and 2^(3/4) as float32, by their bits: every machine has the same.
_ROOTS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], np.uint32).view(np.float32)


def scale_factors(scales: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """2^(scale / 4) as float32. All are finite and above 0: from 2^-32 to 2^31.75."""
    factors: npt.NDArray[np.float32] = np.ldexp(_ROOTS[scales & 3], scales >> 2)
    return factors
