"""Streams of the software that DeepCABAC's authors released in 2019: written byte for byte as theirs, read safely."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _streams
from .checkpoint.base import Float32
from .errors import DamagedFileError, OptionError

#: Dimensions are stored in 16 bits, their number as a power of two.
_DIMENSIONS, _MOST = (1, 2, 4), (1 << 16) - 1
#: The encoder tries every level within three intervals of a weight.
_MOST_LEVELS = 1 << 14


def encode(layers: Iterable[tuple[npt.ArrayLike, npt.ArrayLike, float, float]]) -> bytes:
    """The stream of layers given as (weights, interval, step, lambda).

    ``weights`` are converted to float32, have one, two or four dimensions, each below 65,536. ``interval`` is the
    standard deviation of each weight (an array like ``weights``, positive) or of all of them (a number): the level q
    minimises ``((w - q step) / (interval / 2))^2 + lambda bits(q)`` among those within three intervals, greedily, on
    contexts as they stand (Wiedemann et al., 1905.08318).

    Raises OptionError.
    """
    return _streams.dc2019_encode([_layer(number, *layer) for number, layer in enumerate(layers)])


def _layer(
    number: int, weights: npt.ArrayLike, interval: npt.ArrayLike, step: float, rate_weight: float
) -> _streams.Layer:
    plain = np.ascontiguousarray(weights, np.float32)
    intervals = np.ascontiguousarray(interval, np.float32)
    step, rate_weight = float(np.float32(step)), float(np.float32(rate_weight))
    what = f"layer {number}"
    if np.ndim(weights) not in _DIMENSIONS or max(plain.shape) > _MOST:
        raise OptionError(f"{what}: the stream holds 1, 2 or 4 dimensions below 65,536, not {list(np.shape(weights))}")
    if np.ndim(interval) and np.shape(interval) != plain.shape:
        raise OptionError(f"{what}: interval has the shape {list(np.shape(interval))}, weights {list(plain.shape)}")
    if not (math.isfinite(step) and step > 0 and math.isfinite(rate_weight) and rate_weight >= 0):
        raise OptionError(f"{what}: step must be positive and lambda not negative, not {step} and {rate_weight}")
    if not np.isfinite(plain).all() or not np.isfinite(intervals).all() or (intervals.size and intervals.min() <= 0):
        raise OptionError(f"{what}: weights and intervals must be finite, intervals positive")
    if plain.size and (float(np.abs(plain).max()) / step > 2**30 or 6 * float(intervals.max()) / step > _MOST_LEVELS):
        raise OptionError(f"{what}: a step of {step:g} is too small for these weights or intervals")
    return _streams.Layer(plain, intervals.reshape(-1), step, rate_weight)


def decode(stream: bytes | bytearray | memoryview | npt.NDArray[np.uint8]) -> list[Float32]:
    """The layers of a stream, as float32 arrays: levels times the step. Raises DamagedFileError."""
    raw: Any = stream.tobytes() if isinstance(stream, np.ndarray) else bytes(stream)
    numbers = np.frombuffer(_streams.dc2019_decode(raw), "<i4")
    layers = []
    at = 0
    while at < numbers.size:
        dimensions = int(numbers[at])
        shape = tuple(numbers[at + 1 : at + 1 + dimensions].tolist())
        step = numbers[at + 1 + dimensions : at + 2 + dimensions].view("<f4")
        at += 2 + dimensions
        levels = numbers[at : at + math.prod(shape)]
        at += levels.size
        if not np.isfinite(step).all():
            raise DamagedFileError("damaged: the step of a layer is not finite")
        with np.errstate(over="ignore"):
            layers.append((levels.astype(np.float32) * step).reshape(shape))
    return layers
