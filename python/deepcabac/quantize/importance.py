"""Errors that count differently, weight by weight: ``importance=`` made ready for the quantiser.

The loss grows by ``sum F_i (w_i - w'_i)^2``: F is a diagonal of a Fisher or Hessian matrix (Wiedemann et al. 2020), or
``1 / sigma^2``, sigma being the standard deviation of a weight's posterior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._parallel import Run
from ..checkpoint.base import Array
from ..errors import OptionError
from ..options import Options, Quantization, Target
from ..source import Source
from .steps import FLOAT_DTYPES, Quantized, largest, measure, quantize, round_step

#: In so small a tensor the path through a trellis has no freedom yet.
TINY = 1 << 8


@dataclass(frozen=True)
class Importance:
    """What the errors of a tensor's weights count."""

    relative: npt.NDArray[np.float32]  #: [size], F divided by ``unit``
    unit: float  #: loss per squared error where ``relative`` is 1

    def sample(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Those of the elements that a tensor's sample holds."""
        return np.concatenate([self.relative[run] for run in _core.sample_runs(shape, self.relative.size)])


class Weighted:
    """The tensors whose errors have an importance, and how they are quantised."""

    def __init__(self, given: Mapping[str, Any], options: Options, source: Source) -> None:
        """Check what was given. Raises :class:`OptionError`, naming the tensor, for an array of another shape than the
        tensor's, negative or non-finite numbers, zeros only, and names of no tensor.
        """
        self._given, self._options = given, options
        specs = {spec.name: spec for spec in source.specs}
        for name in given:
            if name not in specs:
                raise OptionError(f"the importance of {name!r}: there is no tensor of this name")
        signal = total = 0.0
        count = 0
        for name, spec in specs.items():
            if name not in given:
                continue
            factors = self._factors(name, spec.shape)
            if spec.dtype not in FLOAT_DTYPES or spec.tied_to is not None or factors.size == 0:
                continue
            with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 is stored exactly
                weights = source.read(name).reshape(-1).astype(np.float32, copy=False)
                energy = float(np.dot(factors, np.square(weights, dtype=np.float64)))
            signal += energy if math.isfinite(energy) else 0.0
            total += float(factors.sum())
            count += factors.size
        if count == 0:
            raise OptionError("importance has an array for none of the tensors that can be quantised")
        self._signal, self._mean = signal / count, total / count

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def quantize(self, name: str, array: Array, target: Target, run: Run) -> Quantized | None:
        """The coded tensor, or None if it is to be stored exactly. ``run`` maps calls to results in order.

        By a step if one is given, or else such that a bit buys the same loss as in every other tensor.
        """
        tensor = measure(array, replace(target, forced=True), run)
        if tensor is None:
            return None
        factors = self._factors(name, array.shape)
        hows = self._options.quantizations
        if array.size < TINY:
            hows = hows[-1:]
        if tensor.energy == 0:
            return quantize(tensor, 1.0, hows[0], run)
        if target.kind == "step":
            # One price of a bit for all tensors, so what counts 1 is the same in all.
            importance = Importance(_relative(factors, self._mean), self._mean)
            how, step = hows[0], round_step(target.value / hows[0].steps)
            return None if step is None else quantize(tensor, step, how, run, importance.relative)
        slope = 2 * math.log(2) * self._signal * 10 ** (-target.value / 10)
        unit = float(factors.mean())
        importance = Importance(_relative(factors, unit), unit)
        # Of several quantisers the one that leaves the least loss, bits included, on a sample.
        tried: list[tuple[float, Quantization, float]] = []
        sample = importance.sample(tensor.shape)
        for how in hows:
            step = round_step(math.sqrt(slope / (2 * math.log(2) * how.noise * unit)))
            if step is None:
                continue
            step = min(step, largest(array.dtype))
            params = _core.fit(tensor.shape, tensor.sample, step, how.state_bits, how.preset)
            code, sums = _core.quantize(params, tensor.sample, step, how.rate_weight, importance=sample)
            tried.append((unit * sums.error + slope * 8 * len(code), how, step))
        if not tried:
            return None
        _, how, step = min(tried, key=lambda one: one[0])
        return quantize(tensor, step, how, run, importance.relative)

    def _factors(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """F of a tensor, [size], checked."""
        try:
            given = np.asarray(self._given[name])
            values = given.astype(np.float64).reshape(-1)
        except (TypeError, ValueError):
            raise OptionError(f"the importance of {name!r} is not an array of numbers") from None
        if given.shape != shape:
            raise OptionError(f"the importance of {name!r} has shape {given.shape}, but the tensor {shape}")
        if not np.isfinite(values).all():
            raise OptionError(f"the importance of {name!r} has NaN or infinity in it")
        if values.size and not values.min() >= 0:
            raise OptionError(f"the importance of {name!r} must not be negative")
        # Beyond these, sums and ratios leave float64.
        if values.size and not 1e-100 < values.max() < 1e100:
            what = "is zero everywhere" if values.max() == 0 else "is beyond floating point: scale it"
            raise OptionError(f"the importance of {name!r} {what}")
        return values


def _relative(factors: npt.NDArray[np.float64], unit: float) -> npt.NDArray[np.float32]:
    return np.minimum(factors / unit, 1e30).astype(np.float32)
