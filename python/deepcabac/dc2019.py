"""DeepCABAC as published in 2019: its first variant (DC-v1) of quantisation, and the streams of the authors' software.

Streams are written byte for byte as theirs and read safely. This is for reproducing the paper; for small files use
:func:`deepcabac.save_file`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _streams
from .checkpoint.base import Float32
from .errors import DamagedFileError, OptionError

__all__ = ["compress", "decode", "decode_levels", "encode", "quantize", "step_size"]


def __dir__() -> list[str]:
    return __all__


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
    with np.errstate(over="ignore"):
        return [levels.astype(np.float32) * np.float32(step) for levels, step in decode_levels(stream)]


def decode_levels(
    stream: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
) -> list[tuple[npt.NDArray[np.int32], float]]:
    """Levels, in the layer's shape, and step of each layer of a stream. Raises DamagedFileError."""
    raw: Any = stream.tobytes() if isinstance(stream, np.ndarray) else bytes(stream)
    numbers = np.frombuffer(_streams.dc2019_decode(raw), "<i4")
    layers = []
    at = 0
    while at < numbers.size:
        dimensions = int(numbers[at])
        shape = tuple(numbers[at + 1 : at + 1 + dimensions].tolist())
        step = float(numbers[at + 1 + dimensions : at + 2 + dimensions].view("<f4")[0])
        at += 2 + dimensions
        if not math.isfinite(step):
            raise DamagedFileError("damaged: the step of a layer is not finite")
        layers.append((numbers[at : at + math.prod(shape)].reshape(shape), step))
        at += math.prod(shape)
    return layers


def step_size(weights: npt.ArrayLike, sigma: npt.ArrayLike, S: float) -> float:
    """The step of a tensor by the authors' rule: ``2 m / (ceil(2 m / min(sigma)) + S)``, ``m = max(|w| + sigma / 2)``.

    ``sigma`` is the standard deviation of each weight (shaped like ``weights``, above zero). ``S``, 0 to 256 in the
    paper, makes steps finer than the least sigma. Raises OptionError.
    """
    deviations = np.asarray(sigma, np.float64)
    if not (isinstance(S, (int, float, np.number)) and 0 <= S <= 1e6):
        raise OptionError(f"S must be a number from 0 to 1e6, not {S!r}")
    if deviations.shape != np.shape(weights):
        raise OptionError(f"sigma has the shape {list(deviations.shape)}, weights {list(np.shape(weights))}")
    if not (deviations.size and np.isfinite(deviations).all() and deviations.min() > 0):
        raise OptionError("sigma must be finite and above zero everywhere")
    double = 2 * float((np.abs(np.asarray(weights, np.float64)) + deviations / 2).max())
    if not math.isfinite(double):
        raise OptionError("weights must be finite")
    return double / (math.ceil(double / float(deviations.min())) + S)


def quantize(
    weights: npt.ArrayLike, sigma: npt.ArrayLike, *, S: float = 256, lambda_: float = 0.001, step: float | None = None
) -> tuple[npt.NDArray[np.int32], float]:
    """Quantise a tensor by DeepCABAC's variant 1 (DC-v1). Returns its levels, int32 like ``weights``, and the step.

    Level q minimises ``((w - q step) / (sigma / 2))^2 + lambda bits(q)`` among those within 3 sigma of the weight; bits
    are what the authors' coder would spend, whose contexts adapt from weight to weight in row-major order (Wiedemann et
    al., arXiv 1905.08318 and JSTSP 2020). ``levels * step`` are the restored weights.

    ``sigma`` is the standard deviation of each weight, such as :func:`deepcabac.torch.variational` trains. The step
    follows from ``S`` (:func:`step_size`) unless it is given. ``S`` and ``lambda_`` are in the authors' units; their
    example, the default here, is S = 256, lambda = 0.001. The paper searches both.

    Raises OptionError: shapes that differ, numbers that are not finite, a step too small for 32 bits.
    """
    array = np.asarray(weights, np.float32)
    chosen = step_size(array, sigma, S) if step is None else step
    shape = array.shape
    if array.ndim not in _DIMENSIONS:  # as a matrix, one row a slice of dimension 0
        shape = (len(array), array.size // len(array)) if array.ndim and array.size else (array.size,)
    deviations = np.broadcast_to(np.asarray(sigma, np.float32), array.shape).reshape(shape)
    ((levels, stored),) = decode_levels(encode([(array.reshape(shape), deviations, chosen, lambda_)]))
    return levels.reshape(array.shape), stored


def compress(
    tensors: Mapping[str, npt.ArrayLike],
    sigma: Mapping[str, npt.ArrayLike],
    *,
    S: float = 256,
    lambda_: float = 0.001,
) -> bytes:
    """A model as one stream, its tensors quantised as by :func:`quantize`, each with a step of its own.

    ``tensors`` have one, two or four dimensions; ``sigma`` has the standard deviations of each of them, by the same
    names. The stream holds no names: :func:`decode` gives the tensors in the order of ``tensors``.

    Raises OptionError.
    """
    layers = []
    for name, weights in tensors.items():
        if name not in sigma:
            raise OptionError(f"sigma has no array for the tensor {name!r}")
        try:
            layers.append((weights, sigma[name], step_size(weights, sigma[name], S), lambda_))
        except OptionError as error:
            raise OptionError(f"tensor {name!r}: {error}") from error
    return encode(layers)
