"""Scales of rows and columns: quarter powers of two, the same on every machine. FORMAT.md, 6.2."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

#: 2^0, 2^(1/4), 2^(1/2) and 2^(3/4) as float32, by their bits: every machine has the same.
_ROOTS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], np.uint32).view(np.float32)

Scales = npt.NDArray[np.int8]

#: Scales are logarithms in steps of 1/4.
SCALE_STEPS = 4


def no_scales() -> Scales:
    """Those of a tensor whose steps are all the same."""
    return np.empty(0, np.int8)


def row_width(shape: tuple[int, ...]) -> int | None:
    """Columns of a row as the core lays out a tensor of this shape; None if a row is not a slice of dimension 0."""
    width, kernel = math.prod(shape[1:]), math.prod(shape[2:])
    if len(shape) < 2 or width > 1 << 16 or not (len(shape) == 2 or kernel == 1 or (kernel <= 128 and shape[-1] <= 64)):
        return None
    return width


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Matrices stacked in a tensor of this shape, rows of all together, and columns, as the core lays them out.

    Slices of dimension 0 are rows of one matrix; those of a tensor of more than two dimensions that is no kernel, such
    as the weights of several experts, are matrices. None if rows are neither.
    """
    width = row_width(shape)
    if width is not None:
        return 1, shape[0], width
    is_kernel = len(shape) < 3 or (math.prod(shape[2:]) <= 128 and shape[-1] <= 64)
    if is_kernel or not 0 < shape[-1] <= 1 << 16 or not math.prod(shape):
        return None
    return math.prod(shape[:-2]), math.prod(shape[:-1]), shape[-1]


def scale_factors(scales: Scales) -> npt.NDArray[np.float32]:
    """2^(scale / 4) as float32. All are finite and above 0: from 2^-32 to 2^31.75."""
    factors: npt.NDArray[np.float32] = np.ldexp(_ROOTS[scales & 3], scales >> 2)
    return factors
