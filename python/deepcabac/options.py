"""What a caller can choose, checked in one place."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from ._parallel import thread_count
from .curvature import Factors
from .errors import OptionError, unknown

#: Squared error per weight, in squared steps. With one uniform quantiser it is 1/12. With two in turn, whose values
#: together are a step apart, it would be four times that if each stood alone; the trellis takes 1.1 to 1.3 dB off.
SCALAR_NOISE, TRELLIS_NOISE = 1 / 12, 0.26
#: States of the trellis that the format knows.
STATES = (8, 16, 32, 64)
DEFAULT_STATES = 32
_QUANTIZERS = ("trellis", "scalar")
#: Speed or size.
PRESETS = ("fast", "default", "small")
#: States of the trellis, at least, where size is all that counts.
_SMALL_STATES = 64

#: Of the network as a whole, and of each tensor where that is asked for.
DEFAULT_QUALITY = 30.0
#: Of differences to a base: what they lack, the next update can bring.
DEFAULT_UPDATE_SQNR = 10.0
#: What differences of vectors (biases, norms, running statistics) get above that: they are few and matter.
VECTOR_UPDATE_SQNR = 12.0
#: SQNR that can be asked for, in dB. Above it float32 has no more to give.
MAX_SQNR = 120.0
#: SQNR of a tensor that would get less, in dB; and least quality of a network, of which some tensors get much more.
LEAST_SQNR, LEAST_QUALITY = 0.5, -40.0
TARGETS = ("quality", "sqnr", "bits", "size", "step")
_PER_TENSOR = ("sqnr", "step", "exact", "offset")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compress. At most one target is given; without one it is ``quality=30``."""

    quality: float | None = None
    """Quality of the network as a whole. 6 more are about one bit per weight more, and half the error. Which tensors
    get more of it than others follows from what is expected of networks, or was measured (``curvature``,
    ``importance``). The number is about the average SQNR of the weights in dB. Of differences to a base it is their
    SQNR."""
    sqnr: float | None = None
    """Signal-to-quantisation-noise ratio, 10 log10(sum w^2 / sum (w - w')^2) in dB, the same for every quantised
    tensor. At the same size a network loses more than with ``quality``. With a ``curvature`` or ``importance`` it means
    the same as ``quality``."""
    bits: float | None = None
    """Size of the whole file in bits per element. The ``quality`` that gives this size is searched."""
    size: int | None = None
    """Size of the whole file in bytes. Searched like ``bits``."""
    step: float | None = None
    """Distance between two reconstruction values of a quantiser, in the weights' unit, for every quantised tensor.
    The trellis uses two quantisers, half a step apart, and has 0.9 dB less noise than a single one with this step."""
    lossless: bool = False
    """Every tensor comes back bit for bit. With a base, so does every difference."""
    rate_distortion: float = 1.0
    """The price of a bit (lambda), as a multiple of the one theory gives (:attr:`quantizations`). With 0 every weight
    takes its nearest level, whatever that costs."""
    quantizer: Literal["trellis", "scalar"] = "trellis"
    """``"trellis"``: two quantisers take turns and the sequence of levels is searched as a whole (trellis coded
    quantisation). ``"scalar"``: one quantiser, levels chosen one by one; at the same noise a few per cent larger and
    several times faster to compress. With ``"trellis"``, tensors whose sample is smaller with one quantiser, such as
    pruned ones, still get one."""
    preset: Literal["fast", "default", "small"] = "default"
    """Speed or size. ``"fast"`` uses another entropy coder: it decompresses 2 to 3 times as fast, and files are up to
    5 % larger. ``"small"`` predicts columns from the columns before them and uses longer chunks and at least 64 states:
    encoding and decoding take 3 to 6 times as long, and files are a few per cent smaller for matrices, hardly for
    convolutions."""
    states: int = DEFAULT_STATES
    """States of the trellis: 8, 16, 32 or 64. More states: smaller files, slower compression, same decompression
    speed."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings for single tensors, by name pattern (``*`` and ``?``); the last match wins. ``{"exact": True}`` stores
    the tensor bit for bit, ``{"exact": False}`` quantises what would be exact by default, ``{"sqnr": dB}`` and
    ``{"step": s}`` set its target, and ``{"offset": dB}`` moves it from the common quality, whichever option sets
    that."""
    optimizer: Literal["keep", "drop"] = "keep"
    """The state of optimizers in a training checkpoint. ``"keep"`` stores it exactly: training goes on as if nothing
    had been compressed. ``"drop"`` leaves it out, for a model that is shipped: what is restored lacks the optimizer's
    state dict."""
    curvature: Mapping[str, Factors] | None = None
    """What ``deepcabac.torch.calibrate`` measured, a :class:`deepcabac.Curvature`. Bits then go where they matter, and
    levels compensate for each other's errors. ``quality`` is then an average weighted by curvature."""
    importance: Mapping[str, Any] | None = None
    """For each tensor an array of its shape: how much the squared error of each weight costs the network, F >= 0. An
    example is the diagonal of the Fisher matrix (``deepcabac.torch.fisher``). Levels minimise
    ``F (w - w')^2 + lambda bits``. ``quality`` becomes an average over the network in which each weight counts F times.
    A bit has one price everywhere, which gives the steps. Tensors without an array are quantised as usual."""
    threads: int | None = None
    """Number of threads; by default one per core. The bytes do not depend on it."""

    def __post_init__(self) -> None:
        if not isinstance(self.lossless, bool):
            raise OptionError(f"lossless must be True or False, not {self.lossless!r}")
        given = [name for name in TARGETS if getattr(self, name) is not None] + ["lossless"] * self.lossless
        if len(given) > 1:
            raise OptionError(f"choose one of {' and '.join(given)}: each fixes the quality")
        if self.quality is not None and not (_is_number(self.quality) and LEAST_QUALITY <= self.quality <= MAX_SQNR):
            raise OptionError(
                f"quality must be a number from {LEAST_QUALITY:g} to {MAX_SQNR:g}, by default {DEFAULT_QUALITY:g}, "
                f"not {self.quality!r}"
            )
        _check_positive("sqnr", self.sqnr, MAX_SQNR, "dB")
        _check_positive("bits", self.bits, 64, "bits per element")
        _check_positive("size", self.size, 1 << 62, "bytes")
        _check_positive("step", self.step, 1e30, "")
        if self.size is not None and not isinstance(self.size, Integral):
            raise OptionError(f"size must be a whole number of bytes, not {self.size!r}")
        if not (_is_number(self.rate_distortion) and 0 <= self.rate_distortion <= 100):
            raise OptionError(f"rate_distortion must be between 0 and 100, not {self.rate_distortion!r}")
        if self.quantizer not in _QUANTIZERS:
            raise OptionError(f"quantizer must be one of {', '.join(_QUANTIZERS)}, not {self.quantizer!r}")
        if self.preset not in PRESETS:
            raise OptionError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
        if isinstance(self.states, bool) or self.states not in STATES:
            raise OptionError(f"states must be one of {', '.join(map(str, STATES))}, not {self.states!r}")
        if self.optimizer not in ("keep", "drop"):
            raise OptionError(f"optimizer must be 'keep' or 'drop', not {self.optimizer!r}")
        if self.curvature is not None:
            if not isinstance(self.curvature, Mapping):
                raise OptionError(f"curvature must be a deepcabac.Curvature, not {self.curvature!r}")
            if self.step is not None:
                raise OptionError("choose one of curvature and step: by curvature, every tensor gets its own step")
            if self.lossless:
                raise OptionError("choose one of curvature and lossless: what is exact has no error to weigh")
        _check_importance(self)
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
                raise OptionError(unknown("option", name, known))
        return cls(**given) if options is None else replace(options, **given)

    @property
    def is_by_rule(self) -> bool:
        """Whether tensors get what is expected to be right for them, as far as nothing was measured."""
        chosen = self.lossless or self.step is not None or self.sqnr is not None
        return not chosen and self.curvature is None

    @property
    def quantizations(self) -> list[Quantization]:
        """How weights may become levels, the way that was asked for first.

        The trellis is of no use to tensors that are mostly zeros, or have few values: there one quantiser is an
        alternative.

        Lambda by theory: at high rate the error D falls by a factor of 4 a bit, so a bit is worth -dD/dR = 2 ln 2 D,
        which is (ln 2 / 6) step^2 with one quantiser (high-resolution theory, e.g. Gersho & Gray 1992).
        """
        per_noise = float(self.rate_distortion) * 2 * math.log(2)
        scalar = Quantization(0, per_noise * SCALAR_NOISE, SCALAR_NOISE, self.preset)
        if self.quantizer == "scalar":
            return [scalar]
        states = max(int(self.states), _SMALL_STATES if self.preset == "small" else 0)
        trellis = Quantization(states.bit_length() - 1, per_noise * TRELLIS_NOISE, TRELLIS_NOISE, self.preset)
        return [trellis, scalar]

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """Patterns of ``overrides`` that none of these names matches."""
        return [pattern for pattern in self.overrides if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]

    def for_tensor(self, name: str, shape: tuple[int, ...], is_difference: bool = False) -> Target:
        """The target of the tensor called ``name``, or of its difference to a base."""
        raised, default = 0.0, DEFAULT_QUALITY
        if is_difference:
            raised, default = VECTOR_UPDATE_SQNR if is_vector(shape) else 0.0, DEFAULT_UPDATE_SQNR
        asked = self.quality if self.sqnr is None else self.sqnr
        target = Target("sqnr", min(float(default if asked is None else asked) + raised, MAX_SQNR))
        if self.lossless:
            target = Target("exact")
        elif self.step is not None:
            target = Target("step", float(self.step))
        offset = 0.0
        for pattern, settings in self.overrides.items():
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            if "offset" in settings:
                offset = float(settings["offset"])
            elif settings.get("exact"):
                target = Target("exact")
            elif "sqnr" in settings:
                target = Target("sqnr", float(settings["sqnr"]), forced=True)
            elif "step" in settings:
                target = Target("step", float(settings["step"]), forced=True)
            else:
                target = replace(target, forced=True)
        if target.forced or target.kind == "exact":
            return target
        if target.kind == "step":
            return replace(target, value=target.value * 10 ** (-offset / 20))
        value = min(max(target.value + offset, LEAST_QUALITY), MAX_SQNR)
        return target if value == target.value else replace(target, value=value)


class SearchFields(TypedDict, total=False):
    """Fields of :class:`Options` other than targets, by name: for type checkers and editors."""

    rate_distortion: float
    quantizer: Literal["trellis", "scalar"]
    preset: Literal["fast", "default", "small"]
    states: int
    overrides: Mapping[str, Mapping[str, Any]]
    optimizer: Literal["keep", "drop"]
    curvature: Mapping[str, Factors] | None
    importance: Mapping[str, Any] | None
    threads: int | None


class OptionFields(SearchFields, total=False):
    """All fields of :class:`Options`, by name: the keywords ``**settings`` of functions that compress."""

    quality: float | None
    sqnr: float | None
    bits: float | None
    size: int | None
    step: float | None
    lossless: bool


@dataclass(frozen=True)
class Quantization:
    """How weights become levels."""

    state_bits: int  #: log2 of the states of a trellis of two quantisers; 0 for one quantiser
    rate_weight: float  #: lambda, in squared steps per bit
    noise: float  #: about the squared error per weight, in squared steps
    preset: str = "default"  #: speed or size, one of PRESETS
    #: With preset small, whether columns are regressed on those before; None: if that makes the tensor smaller
    regression: bool | None = None

    @property
    def steps(self) -> int:
        """Steps between two values of one quantiser."""
        return 2 if self.state_bits else 1


@dataclass(frozen=True)
class Target:
    """What one tensor is to reach."""

    kind: Literal["sqnr", "step", "exact"]
    value: float = 0.0
    forced: bool = False  #: asked for by name: applies to small 1-D tensors too, and is not moved to reach a file size


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether all dimensions but one are 1: biases to be broadcast, class tokens, gains of weight_norm."""
    return bool(shape) and math.prod(shape) == max(shape)


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


def _check_importance(options: Options) -> None:
    """Settings that exclude each other. The arrays are checked when the tensors are known."""
    if options.curvature is not None and options.importance is not None:
        raise OptionError("choose one of curvature and importance: each says what errors count")
    if not isinstance(options.importance, Mapping | None):
        raise OptionError(f"importance must map names of tensors to arrays, not {type(options.importance).__name__}")


def _check_override(pattern: str, settings: Mapping[str, Any]) -> None:
    if not isinstance(pattern, str):
        raise OptionError(f"overrides go by name pattern, a string, not {pattern!r}")
    if not isinstance(settings, Mapping) or len(settings) != 1 or next(iter(settings)) not in _PER_TENSOR:
        raise OptionError(f"the override of {pattern!r} must be one of exact, sqnr, step or offset, not {settings!r}")
    (name, value), *_ = settings.items()
    if name == "exact":
        if not isinstance(value, bool):
            raise OptionError(f"the override of {pattern!r}: exact must be True or False, not {value!r}")
    elif name == "offset":
        if not (_is_number(value) and abs(value) <= MAX_SQNR):
            raise OptionError(f"the override of {pattern!r}: offset must be a number of dB, not {value!r}")
    else:
        _check_positive(f"the override of {pattern!r}: {name}", value, MAX_SQNR if name == "sqnr" else 1e30, "")
