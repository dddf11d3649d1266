"""Which tensors are weights, to be quantised, and which come back exactly, and why.

A checkpoint holds more than weights: optimizer state, masks, anchors, scales of weights that are integers already. An
error there does not make a network a little worse, it breaks it, and such tensors are small, or no part of what is
shipped. What a tensor is follows from the structure around it (:class:`Role`, told by the kind of checkpoint), from its
name and its neighbours' (:func:`roles`), from its shape (:func:`by_shape`) and from its values (:func:`by_values`).

Each rule returns a reason in a few words, which reports show. A target that is asked for by name overrides all of them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..checkpoint.base import CONSTANT, FLOAT8_E4M3FN, FLOAT8_E5M2, OPTIMIZER, SCALE, Array, TensorSpec
from ..options import is_vector
from .exact import mantissa
from .steps import EXACT_BELOW, FLOAT_DTYPES

#: Tensors of fewer elements are exact: three by three anchors, a filter kernel. It costs at most 400 bytes.
SMALL = 1 << 7
#: Elements of the sample by which most tensors are seen to be ordinary weights.
_SAMPLE = 1 << 13
#: Elements of a stretch in which a pattern is looked for.
_STRETCH = 1 << 12
#: Elements of it that are looked at first, how many sequences may take turns, and of how many places it is concluded.
_GLANCE, _LAGS, _FEWEST = 256, 16, 24
#: Distinct values of a sample up to which they are few: a codebook may be smaller than noise.
_FEW = 1 << 10
#: Each of few values occurs so many times on average.
_REPEATED = 8
#: Largest multiple of a common power of two that is a coordinate or the like: random weights have 24 bits.
_SHORT = 1 << 12
#: A value counts as lost below this share of the root mean square: the noise at 30 dB.
_LOST = 0.03
#: Share of lost values from which a tensor without negative ones extends over orders of magnitude. Uniform and
#: exponential values have 2 and 3 %, squares of Gaussian ones 14 %.
_WIDE = 0.1
#: Share of places in which a regular grid's second difference vanishes.
_REGULAR = 0.9
#: A pattern is what a dictionary coder packs so much better than the values' frequencies alone allow.
_PATTERN = 0.6
#: Elements of a row whose values are looked at on their own.
_ROW = 32
_PIECE = 1 << 20

_SEPARATORS = re.compile(r"[./:]")
#: A part of a name that stands for an optimizer, as people and libraries call it.
_OPTIMIZER_PART = re.compile(
    r".*optimi[sz]er.*|(.*_)?optims?(_\w*|\d*)|opt(_\w+)?_states?(_dict)?", re.IGNORECASE
)
#: A part that only optimizers have: keys of their state in PyTorch and its extensions, slots in Keras and TensorFlow.
_STATE_PART = re.compile(
    r"(.*_)?(exp_avg(_sq)?s?(_row|_col|_slow|_fast|_diff)?|exp_inf|momentum_buffer|square_avg|acc_delta|grad_avg)"
    r"|adam_[mv]|AdamW?(_\d+)?|RMSProp(_\d+)?|Momentum|Adagrad|Ftrl(_\d+)?|fp32_flat_groups"
    r"|single_partition_of_fp32_groups"
)
#: The state of bitsandbytes' 8-bit optimizers.
_PACKED_STATE = re.compile(r"(.*[./:])?state[./:]\d+[./:](state|absmax|qmap|new_max)[12]")
#: Names of what turns integers into weights, in the libraries that pack them: beside these, and anywhere.
_SCALE_PART = re.compile(
    r".*(scales?|scale_inv|zeros?|zero_points?|zp|absmax|qmap|quant_map|code(book)?s?|scb|biases|offsets?)\d*|[sz]",
    re.IGNORECASE,
)
_SCALE_ANYWHERE = re.compile(r"((weight|input|output|act)_)?(scales|scale_inv|zero_points?|absmax)|weight_scale")


def is_optimizer(name: str) -> bool:
    """Whether a tensor of this name is part of an optimizer's state."""
    parts = _SEPARATORS.split(name)
    known = any(_OPTIMIZER_PART.fullmatch(part) or _STATE_PART.fullmatch(part) for part in parts)
    return known or _PACKED_STATE.fullmatch(name) is not None


def roles(specs: Iterable[TensorSpec], told: Mapping[str, str]) -> dict[str, str]:
    """What tensors are, by name, where something says it: WEIGHT, OPTIMIZER, SCALE, CONSTANT or DIRECTION.

    ``told`` is what the checkpoint itself knows (:meth:`~deepcabac.checkpoint.base.CheckpointReader.roles`).
    """
    specs = list(specs)
    found = dict(told)
    for spec in specs:
        if spec.name not in found and is_optimizer(spec.name):
            found[spec.name] = OPTIMIZER
    _find_states(specs, found)
    _find_scales(specs, found)
    _find_directions(specs, found)
    return found


def _find_states(specs: list[TensorSpec], found: dict[str, str]) -> None:
    """All below a part called ``state`` is an optimizer's if one of its tensors is: others have keys of their own."""
    homes: set[tuple[str, ...]] = set()
    for spec in specs:
        if found.get(spec.name) == OPTIMIZER:
            parts = _SEPARATORS.split(spec.name)
            homes.update(tuple(parts[: place + 1]) for place, part in enumerate(parts) if part == "state")
    if not homes:
        return
    for spec in specs:
        parts = _SEPARATORS.split(spec.name)
        if any(tuple(parts[: place + 1]) in homes for place, part in enumerate(parts) if part == "state"):
            found[spec.name] = OPTIMIZER


def _find_scales(specs: list[TensorSpec], found: dict[str, str]) -> None:
    """Float tensors beside a larger tensor of integers (or 8-bit floats) are what turns these into weights.

    Beside: in the same module, or below the integers' own name. At the top level, where everything is beside
    everything, and elsewhere in such a checkpoint, only by their names.
    """
    packed: dict[str, int] = {}  # a module, or a tensor's own name: bytes of the integers in it
    for spec in specs:
        if not _is_packed(spec):
            continue
        for home in (_home(spec.name), spec.name):
            packed[home] = max(packed.get(home, 0), spec.nbytes)
    for spec in specs:
        if spec.dtype not in FLOAT_DTYPES or spec.name in found or _is_packed(spec):
            continue
        home, parts = _home(spec.name), _SEPARATORS.split(spec.name)
        named = _SCALE_PART.fullmatch(parts[-1]) is not None
        beside = spec.nbytes <= packed.get(home, -1) and (home or named)
        small = 4 * spec.nbytes <= max(packed.values(), default=0)
        if beside or (small and any(map(_SCALE_ANYWHERE.fullmatch, parts))):
            found[spec.name] = SCALE


def _find_directions(specs: list[TensorSpec], found: dict[str, str]) -> None:
    """The directions of weight_norm, which are divided by the length of each row."""
    shapes = {spec.name: spec.shape for spec in specs}
    for spec in specs:
        for direction, gain in (("weight_v", "weight_g"), ("weight.original1", "weight.original0")):
            lengths = shapes.get(spec.name.removesuffix(direction) + gain, ())
            if spec.name.endswith(direction) and len(spec.shape) > 1 and lengths[:1] == spec.shape[:1]:
                found[spec.name] = DIRECTION


def _home(name: str) -> str:
    """The name without its last part."""
    places = [match.start() for match in _SEPARATORS.finditer(name)]
    return name[: places[-1]] if places else ""


def _is_packed(spec: TensorSpec) -> bool:
    """Whether integers may be quantised weights; 64 bits and bools are indices and masks."""
    if spec.size < SMALL:
        return False
    return spec.dtype in (FLOAT8_E4M3FN, FLOAT8_E5M2) or (spec.dtype.kind in "iu" and spec.dtype.itemsize < 8)


def by_shape(shape: tuple[int, ...]) -> str:
    """Why a tensor of this shape is exact: it is sensitive, and takes next to no space. Empty if it is not."""
    size = math.prod(shape)
    if is_vector(shape):
        return "a vector" if size < EXACT_BELOW else ""
    return f"fewer than {SMALL} elements" if size < SMALL else ""


def by_values(array: Array) -> str:
    """Why a tensor with these values (of FLOAT_DTYPES) is exact; empty if they look like weights.

    Almost all tensors are decided by a sample; all values are only looked at where the sample is odd.
    """
    flat = array.reshape(-1)
    sample = _sample(array)
    with np.errstate(invalid="ignore"):  # NaN
        wide = sample.astype(np.float64)
    if not np.isfinite(wide).all() or not wide.any():
        return ""
    if _all(flat, wide, lambda piece: bool((piece == np.rint(piece)).all())):
        return "whole numbers"
    if _all(flat, wide, lambda piece: bool((piece >= 0).all())):
        positive = wide[wide > 0]
        if np.count_nonzero(positive < _LOST * math.sqrt(float(np.square(wide).mean()))) > _WIDE * positive.size:
            return "no negative value, over orders of magnitude"
        if is_few(sample) or _short(wide):
            return "few values, none negative"
    if _repeats(sample, 2) and _has_pattern(sample, math.prod(array.shape[1:])):
        return "a pattern"
    return "a regular grid" if _is_regular(array) else ""


def has_few_values(array: Array) -> bool:
    """Whether a tensor has so few values that a codebook may take fewer bytes than noise."""
    return is_few(_sample(array))


def _sample(array: Array) -> Array:
    flat = array.reshape(-1)
    return np.concatenate([flat[run] for run in _core.sample_runs(array.shape, flat.size, _SAMPLE)])


def _all(flat: Array, sample: npt.NDArray[np.float64], test: Any) -> bool:
    """Whether a test holds for the sample and then for all pieces."""
    if not test(sample):
        return False
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    return all(test(piece.astype(np.float64)) for piece in pieces)


def is_few(sample: Array) -> bool:
    """Whether the values of a sample, zeros aside, are few: each occurs many times."""
    return _repeats(sample, _REPEATED, _FEW)


def _repeats(sample: Array, times: int, most: int = 1 << 16) -> bool:
    """Whether values other than zero occur at least so many ``times`` on average, and at ``most`` so many differ."""
    # numpy sorts float32 several times as fast as float64; every narrower type fits into it.
    others = np.sort(sample[sample != 0].astype(np.float64 if sample.dtype.itemsize > 4 else np.float32, copy=False))
    distinct = 1 + np.count_nonzero(others[1:] != others[:-1])
    return bool(distinct <= most and distinct * times <= others.size) if others.size else True


def _short(sample: npt.NDArray[np.float64]) -> bool:
    """Whether all values are small multiples of a power of two: written down by people, or coordinates of pixels."""
    largest = float(np.abs(sample).max())
    unit = math.ldexp(1.0, math.frexp(largest)[1]) / _SHORT
    return bool((sample / unit == np.rint(sample / unit)).all())


def _has_pattern(sample: Array, width: int) -> bool:
    """Whether values follow each other by rules: a dictionary coder then does better than their frequencies, in the
    sample and in each of its rows of ``width``, which may have values of their own. So do values all alike.
    """
    values, indices = np.unique(sample.astype(np.float64), return_inverse=True)
    if values[values != 0].size == 1:
        return True
    indices = indices.astype(np.int64)
    rows = indices.reshape(-1, width) if width >= _ROW and indices.size % width == 0 else indices.reshape(1, -1)
    bits = min(_bits(indices), sum(map(_bits, rows)))
    return 8 * len(zlib.compress(indices.astype(np.uint16).tobytes(), 6)) < _PATTERN * bits


def _bits(indices: npt.NDArray[np.int64]) -> float:
    """Bits that the frequencies of symbols alone allow."""
    counts = np.bincount(indices)
    shares = counts[counts > 0] / indices.size
    return -float((shares * np.log2(shares)).sum()) * indices.size


def _is_regular(array: Array) -> bool:
    """Whether values go in equal steps along the last or the last but one axis, as coordinates do, perhaps several in
    turn, as boxes around each point.
    """
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    some = rows[: max(_STRETCH // rows.shape[1], 1), :_STRETCH].astype(np.float64)
    tall = rows[:_STRETCH, : max(_STRETCH // rows.shape[0], 1)].astype(np.float64)
    rounding = 2.0 ** (1 - mantissa(array.dtype))
    for values in (some, tall.T):
        for lag in _glance(values[0], rounding):
            counted, regular = _in_step(values[:, : -2 * lag], values[:, lag:-lag], values[:, 2 * lag :], rounding)
            if counted.sum() >= _FEWEST and regular.sum() > _REGULAR * counted.sum():
                return True
    return False


def _glance(row: npt.NDArray[np.float64], rounding: float) -> list[int]:
    """At which distances the first values of a row go in equal steps; all distances are tried at once."""
    most = min(_LAGS, row.size // 8)
    lags = np.arange(1, most + 1)
    here = np.arange(most, min(row.size, _GLANCE) - most)
    counted, regular = _in_step(row[here - lags[:, None]], row[here], row[here + lags[:, None]], rounding)
    return [int(lag) for lag in lags[regular > _REGULAR * counted]]


def _in_step(
    before: npt.NDArray[np.float64], here: npt.NDArray[np.float64], after: npt.NDArray[np.float64], rounding: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each row, how many places are not zeros alone, and at how many of those the steps before and after are equal.

    Zeros among zeros say nothing: pruned weights have many.
    """
    near = np.abs(before) + np.abs(here) + np.abs(after)
    regular = (np.abs(before - 2 * here + after) <= near * rounding) & (near > 0)
    return np.count_nonzero(near, axis=-1), np.count_nonzero(regular, axis=-1)


#: A matrix of which only the directions of its rows count.
DIRECTION = "direction"

#: What reports say of each role.
REASONS = {
    OPTIMIZER: "optimizer state",
    SCALE: "belongs to integer weights",
    CONSTANT: "a constant of the graph",
}
