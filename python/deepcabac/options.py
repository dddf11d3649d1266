"""What a caller can choose, checked in one place."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from ._parallel import thread_count
from .errors import OptionError

#: The theory's trade-off: at high rate the error D of a uniform quantiser is step^2 / 12 and falls by a factor of 4 a
#: bit, so a bit is worth -dD/dR = 2 ln 2 D = (ln 2 / 6) step^2 (high-resolution theory, e.g. Gersho & Gray 1992).
THEORY_RATE_WEIGHT = math.log(2) / 6

DEFAULT_SQNR = 30.0
#: A depthwise kernel's few weights are all that its channel has, and channels differ in size by orders of magnitude, so
#: noise at 30 dB of the tensor drowns the small ones: EfficientNet-Lite0 fell from 88.5 to 62 % on calibration images.
#: 10 dB more cost it 1 % in size and brought 87 %.
DEFAULT_DEPTHWISE = 10.0
#: SQNR that can be asked for, in dB. Above it float32 has no more to give.
MAX_SQNR = 120.0
_TARGETS = ("sqnr", "bits", "size", "step")
_PER_TENSOR = ("sqnr", "step", "exact")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compress. At most one target is given; without one it is ``sqnr=30``."""

    sqnr: float | None = None
    """Signal-to-quantisation-noise ratio of every quantised tensor, in dB: 10 log10(sum w^2 / sum (w - w')^2)."""
    bits: float | None = None
    """Size of the whole file in bits per element of the checkpoint; one common SQNR is searched that gives it."""
    size: int | None = None
    """Size of the whole file in bytes, likewise."""
    step: float | None = None
    """Distance of two reconstruction values, in the weights' own unit, for every quantised tensor."""
    depthwise: float = DEFAULT_DEPTHWISE
    """What depthwise convolution kernels, [channels, 1, ...], get above the common SQNR, in dB; 0 treats them alike."""
    rate_distortion: float = 1.0
    """Lambda as a multiple of the theory's ``ln 2 / 6 * step^2`` per bit; 0 rounds to the nearest level."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings for tensors by name pattern (``*`` and ``?``), the last match winning: ``{"exact": True}`` stores bit
    for bit, ``{"sqnr": dB}`` and ``{"step": s}`` set the target. ``{"exact": False}`` quantises a small 1-D tensor."""
    threads: int | None = None
    """Number of threads; by default one a core. The bytes do not depend on it."""

    def __post_init__(self) -> None:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"choose one of {' and '.join(given)}: each fixes the quality")
        _check_positive("sqnr", self.sqnr, MAX_SQNR, "dB")
        _check_positive("bits", self.bits, 64, "bits per element")
        _check_positive("size", self.size, 1 << 62, "bytes")
        _check_positive("step", self.step, 1e30, "")
        if self.size is not None and not isinstance(self.size, Integral):
            raise OptionError(f"size must be a whole number of bytes, not {self.size!r}")
        if not (_is_number(self.rate_distortion) and 0 <= self.rate_distortion <= 100):
            raise OptionError(f"rate_distortion must be between 0 and 100, not {self.rate_distortion!r}")
        if not (_is_number(self.depthwise) and 0 <= self.depthwise <= 60):
            raise OptionError(f"depthwise must be between 0 and 60 dB, not {self.depthwise!r}")
        thread_count(self.threads)
        if not isinstance(self.overrides, Mapping):
            raise OptionError(f"overrides must map name patterns to settings, not {self.overrides!r}")
        for pattern, settings in self.overrides.items():
            _check_override(pattern, settings)

    @classmethod
    def of(cls, options: Options | None, given: Mapping[str, Any]) -> Options:
        """``options`` with the settings ``given`` by keyword. Raises :class:`OptionError` for unknown names."""
        known = [known.name for known in fields(cls)]
        for name in given:
            if name not in known:
                raise OptionError(f"unknown option {name!r}; there are {', '.join(known)}")
        return cls(**given) if options is None else replace(options, **given)

    @property
    def rate_weight(self) -> float:
        """Lambda in squared steps per bit."""
        return float(self.rate_distortion) * THEORY_RATE_WEIGHT

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Target:
        """The target of the tensor called ``name``."""
        raised = float(self.depthwise) if _is_depthwise(shape) else 0.0
        target = Target("sqnr", min(float(self.sqnr or DEFAULT_SQNR) + raised, MAX_SQNR), raised=raised)
        if self.step is not None:
            target = Target("step", float(self.step))
        for pattern, settings in self.overrides.items():
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            if settings.get("exact"):
                target = Target("exact")
            elif "sqnr" in settings:
                target = Target("sqnr", float(settings["sqnr"]), forced=True)
            elif "step" in settings:
                target = Target("step", float(settings["step"]), forced=True)
            else:
                target = replace(target, forced=True)
        return target


@dataclass(frozen=True)
class Target:
    """What one tensor is to reach."""

    kind: Literal["sqnr", "step", "exact"]
    value: float = 0.0
    raised: float = 0.0  #: dB of ``value`` that are due to the tensor's shape
    forced: bool = False  #: asked for by name: applies to small 1-D tensors too, and is not moved to reach a file size


def _is_depthwise(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape holds depthwise kernels (or those of a first layer with one input channel)."""
    return len(shape) >= 3 and shape[0] > 1 and shape[1] == 1 and 1 < math.prod(shape[2:]) <= 128


def _is_number(value: Any) -> bool:
    """Python's and numpy's numbers, but not bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_positive(name: str, value: Any, limit: float, unit: str) -> None:
    if value is None:
        return
    # NaN fails the comparison too.
    if not (_is_number(value) and 0 < value <= limit):
        unit = f" {unit}" if unit else ""
        raise OptionError(f"{name} must be a number above 0 and at most {limit:g}{unit}, not {value!r}")


def _check_override(pattern: str, settings: Mapping[str, Any]) -> None:
    if not isinstance(pattern, str):
        raise OptionError(f"overrides go by name pattern, a string, not {pattern!r}")
    if not isinstance(settings, Mapping) or len(settings) != 1 or next(iter(settings)) not in _PER_TENSOR:
        raise OptionError(f"the override of {pattern!r} must be one of exact, sqnr or step, not {settings!r}")
    (name, value), *_ = settings.items()
    if name == "exact":
        if not isinstance(value, bool):
            raise OptionError(f"the override of {pattern!r}: exact must be True or False, not {value!r}")
    else:
        _check_positive(f"the override of {pattern!r}: {name}", value, MAX_SQNR if name == "sqnr" else 1e30, "")
