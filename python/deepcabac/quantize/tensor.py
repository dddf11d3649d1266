"""How a tensor is stored: quantised to its target, exactly, or raw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .. import _core
from .._parallel import Run
from ..checkpoint.base import Array, TensorSpec
from ..options import LEAST_SQNR, Options, Quantization, Target, is_vector
from . import choice, coupling, exact, multiples, packed, steps
from .coupling import Calibrated
from .exact import Coded
from .importance import TINY, Weighted
from .prior import Prior
from .spread import Remark, Spread, directions, remark, spread
from .steps import Measured, Quantized

#: Largest error of an update of a vector of positive values, relative to the least of them.
_POSITIVE_ERROR = 0.1
#: How often a tensor with scales is quantised again to reach its SQNR as it is, without them.
_CORRECTIONS = 5
#: Elements below which single decisions move a tensor's SQNR.
_FEW = 1 << 12


@dataclass(frozen=True)
class Decision:
    """How a tensor is stored."""

    result: Quantized | Coded | None  #: None: raw
    target: Target  #: what it was to reach
    note: str = ""  #: why it did not
    reason: str = ""  #: why it is exact
    remark: Remark | None = None  #: what the error does to parts of it


class TensorQuantizer:
    """Decides how tensors are stored, one at a time and independently of each other. Safe to use from several threads.

    ``calibrated`` and ``weighted`` are what the options' curvature and importance say of the whole model, ``roles``
    what :func:`choice.roles` says, ``expected`` what is expected of it where nothing was measured.
    """

    def __init__(
        self,
        options: Options,
        calibrated: Calibrated | None = None,
        weighted: Weighted | None = None,
        roles: Mapping[str, str] = {},
        expected: Prior | None = None,
    ) -> None:
        self._options, self._calibrated, self._weighted, self._roles = options, calibrated, weighted, roles
        self._expected = expected

    def target(self, spec: TensorSpec) -> Target:
        """What the tensor is to reach."""
        return self._options.for_tensor(spec.name, spec.shape)

    def decide(self, spec: TensorSpec, array: Array, base: Array | None, run: Run) -> Decision:
        """How ``array`` is stored, or with a ``base`` of its shape and dtype its difference to that.

        Of a complex tensor, both are its parts; it is stored exactly.

        ``run`` maps calls, one for each chunk, to their results in order.
        """
        target = self._options.for_tensor(spec.name, spec.shape, base is not None)
        reason = self._why_exact(spec, array, target, base is not None)
        if reason:
            decision = Decision(None, Target("exact"), reason=reason)
        elif base is None:
            decision = self._quantize(spec, array, target, run)
        else:
            decision = Decision(self._quantize_difference(array, base, target, run), target)
        result = decision.result
        if isinstance(result, Quantized):
            if base is None and self._may_be_larger(result, array):
                coded = exact.encode(array, run, None, self._options.preset)
                if coded is not None and coded.coded_bytes <= result.coded_bytes:
                    is_grid = coded.form.method == exact.MULTIPLES
                    reason = f"quantised already, in groups of {coded.form.group:,}" if is_grid else ""
                    return Decision(coded, Target("exact"), reason=reason or "smaller than quantised")
            if result.coded_bytes < spec.nbytes:
                is_even = base is None and not (result.row_scales.size or result.column_scales.size)
                return replace(decision, remark=remark(array, result.error)) if is_even else decision
            decision = Decision(None, decision.target, reason="smaller than quantised")
        coded = exact.encode(array, run, base, self._options.preset)
        if base is None:
            coded = packed.better(array, coded, run, self._options.preset)
        reason = decision.reason or decision.note.removeprefix("stored exactly: ")
        if base is not None:
            reason = reason or "a difference that is kept exactly"
        if reason:
            return Decision(coded, decision.target, decision.note, reason, decision.remark)
        odd = array.size - int(np.count_nonzero(np.isfinite(array)))
        reason = f"{odd:,} of its values are NaN or infinite" if odd else "its values are beyond float32"
        # A mask with -inf surprises nobody.
        note = "" if choice.has_few_values(array) else f"stored exactly: {reason}"
        return replace(decision, result=coded, reason=reason, note=note)

    def _why_exact(self, spec: TensorSpec, array: Array, target: Target, is_difference: bool) -> str:
        """Why a tensor, or its difference to a base, is to be stored exactly; empty if it is to be quantised."""
        if target.kind == "exact":
            return "asked for"
        if spec.dtype not in steps.FLOAT_DTYPES:
            return "not floating point" if spec.dtype.kind in "iub" else "a type that is always exact"
        if array.ndim == 0 or array.size == 0:
            return "a scalar" if array.size else "empty"
        measured = (self._calibrated is not None and spec.name in self._calibrated) or (
            self._weighted is not None and spec.name in self._weighted
        )
        if target.forced or measured:
            return ""
        role = choice.REASONS.get(self._roles.get(spec.name, ""), "")
        why = role or ("" if is_difference else choice.by_shape(spec.shape))
        known = self._expected is not None and self._expected.has_weights(spec.name)
        return why or ("" if known else choice.by_values(array))

    def _may_be_larger(self, result: Quantized, array: Array) -> bool:
        """Whether a quantised tensor may take more bytes than an exact one: if it has few values, was quantised
        already, or hardly takes fewer bits than its type. (Exact weights take about 0.8 of their type's bits in
        float32, 0.65 in bfloat16.)
        """
        if is_vector(array.shape):
            return False
        is_large = result.coded_bytes > 0.55 * array.nbytes
        return is_large or choice.has_few_values(array) or multiples.glance(array) is not None

    def _quantize_difference(self, array: Array, base: Array, target: Target, run: Run) -> Quantized | None:
        """The difference to the base quantised, or None if it is to be stored exactly: as quantised tensors are, and
        differences of types narrower than float32, whose own rounding is as coarse, and none at all.
        """
        if target.kind == "exact" or array.dtype not in (np.float32, np.float64) or array.ndim == 0:
            return None
        if target.kind == "sqnr":
            target = replace(target, value=max(target.value, LEAST_SQNR))
        with np.errstate(all="ignore"):  # what is not finite is seen by the measuring
            difference = (array - base).astype(np.float32)
            tensor = steps.measure(difference.reshape(-1, 1) if array.ndim == 1 else difference, target, run)
        chosen = None
        if tensor is not None and tensor.energy > 0:
            chosen = steps.choose(tensor, target, self._options.quantizations)
        if tensor is None or chosen is None:
            return None
        how, step = chosen
        result = steps.quantize(tensor, step, how, run)
        if target.kind == "sqnr":
            result = self._closest(tensor, target.value, how, step, result, run)
        # Variances and the like: one that comes out near zero, or below, blows its channel up.
        if is_vector(array.shape) and (array > 0).all():
            while np.abs(_decoded(result, array.size) - difference).max(initial=0) > _POSITIVE_ERROR * array.min():
                if step < steps.SMALLEST_STEP or result.coded_bytes >= array.nbytes:
                    return None
                step /= 2
                result = steps.quantize(tensor, step, how, run)
        return result if result.coded_bytes < array.nbytes else None

    def _quantize(self, spec: TensorSpec, array: Array, target: Target, run: Run) -> Decision:
        """The tensor quantised, or no result if it is to be stored exactly."""
        # An SQNR that was asked for by name is that of the tensor alone, in which all weights count the same.
        own = target.kind == "exact" or (target.forced and target.kind == "sqnr")
        if self._weighted and spec.name in self._weighted and not own:
            return Decision(self._weighted.quantize(spec.name, array, target, run), target)
        plan = None
        if self._calibrated and target.kind == "sqnr" and not target.forced:
            plan = self._calibrated.plan(spec.name, array)
        if plan is not None:
            target = replace(target, forced=True)
        tensor = steps.measure(array, target, run)
        if tensor is None:
            return Decision(None, target)
        if plan is not None and self._calibrated is not None:
            return self._quantize_by(plan, self._calibrated.slope(target.value), array, target, tensor, run)
        # Directions of weight_norm are divided by the norms of their rows, which must not become zero.
        direction = self._roles.get(spec.name) == choice.DIRECTION
        if self._expected is not None and target.kind == "sqnr" and not target.forced and not direction:
            plan = self._expected.plan(spec.name, array)
            if plan is not None and spread(array, tensor.sample, tensor.energy) is None:
                slope = self._expected.slope(target.value)
                return self._quantize_by(plan, slope, array, replace(target, forced=True), tensor, run)
        return self._quantize_to(target, spec, tensor, run)

    def _quantize_to(self, target: Target, spec: TensorSpec, tensor: Measured, run: Run) -> Decision:
        """The tensor quantised to an SQNR or a step of its own."""
        uneven = None
        if target.kind == "sqnr":
            target = replace(target, value=max(target.value, LEAST_SQNR))
        if target.kind == "sqnr" and not target.forced and tensor.energy > 0:
            array = tensor.flat.reshape(tensor.shape)
            if self._roles.get(spec.name) == choice.DIRECTION:
                uneven = directions(array)
            uneven = uneven or spread(array, tensor.sample, tensor.energy)
        if uneven is not None:
            return self._quantize_uneven(target, uneven, tensor, run)
        chosen = steps.choose(tensor, target, self._options.quantizations)
        if chosen is None:
            return Decision(None, target, f"stored exactly: {_asked(target)} is beyond float32 arithmetic")
        how, step = chosen
        result = steps.quantize(tensor, step, how, run)
        note = ""
        if target.kind == "sqnr" and tensor.energy > 0:
            result = self._closest(tensor, target.value, how, step, result, run)
            if result.sqnr < 0.99 * target.value:
                return Decision(None, target, f"stored exactly: {spec.dtype} cannot reach {_asked(target)}")
            if result.sqnr > 1.01 * target.value and result.error > 0:
                why = "too few elements to come closer" if tensor.flat.size < _FEW else "no step comes closer"
                note = f"{result.sqnr:.2f} dB instead of {target.value:g}: {why}"
        return Decision(result, target, note)

    def _quantize_uneven(self, target: Target, uneven: Spread, tensor: Measured, run: Run) -> Decision:
        """The tensor quantised such that what is not extreme in it has the SQNR."""
        reason = "of very different sizes"
        wanted = target.value + uneven.excess
        scaled = tensor
        if uneven.row_scales.size or uneven.column_scales.size:
            weights = tensor.float32(0, tensor.flat.size).reshape(tensor.shape) / uneven.factors(tensor.shape)
            measured = steps.measure(weights, target, run)
            if measured is None:
                return Decision(None, target, reason=reason)
            scaled = measured
        chosen = steps.choose(scaled, replace(target, value=wanted), self._options.quantizations)
        if chosen is None or scaled.largest(run) > chosen[1] * _core.MAX_LEVEL:
            return Decision(None, target, reason=reason)
        how, step = chosen
        array = tensor.flat.reshape(tensor.shape)
        least, best = wanted, None
        for _ in range(_CORRECTIONS):
            result = self._closest(scaled, wanted, how, step, steps.quantize(scaled, step, how, run), run)
            if result.sqnr < 0.99 * wanted:
                break
            if scaled is not tensor:
                result = coupling.with_scales(array, result, uneven.row_scales, uneven.column_scales)
            more = result.sqnr - target.value  # of the tensor as it is: not less than was asked for either
            if more > -0.01 * target.value:
                best = result
                if more < steps.TOLERANCE_DB or wanted == least:
                    break
            step *= 10 ** ((wanted - max(wanted - more, least)) / 20)
            wanted = max(wanted - more, least)
        return Decision(best, target, reason=reason if best is None else "")

    def _quantize_by(
        self, plan: coupling.Plan, slope: float, array: Array, target: Target, tensor: Measured, run: Run
    ) -> Decision:
        """The tensor quantised such that a bit buys ``slope`` of loss."""
        hows = self._options.quantizations
        # So few levels, or other than zero, that the path through a trellis has no freedom.
        few = tensor.flat.size < TINY or (self._expected is not None and steps.is_pruned(tensor.sample))
        how = hows[-1] if few else hows[0]
        step = plan.step(slope, how) if tensor.energy > 0 else 1.0
        if step is None:
            note = "stored exactly: the step that its curvature asks for is beyond float32 arithmetic"
            return Decision(None, target, note)
        result = coupling.quantize(array, plan, step, how, run) if tensor.energy > 0 else None
        if result is None or not math.isfinite(result.error):
            result = steps.quantize(tensor, step, how, run)
        return Decision(result, target)

    def _closest(
        self,
        tensor: Measured,
        wanted: float,
        how: Quantization,
        step: float,
        first: Quantized,
        run: Run,
    ) -> Quantized:
        """``first``, quantised with ``step``, or the result of another step whose SQNR is closer to the one wanted.

        The noise follows the square of the step, so the first corrections are large steps; in a small tensor single
        decisions matter and it jumps about that line, so the rest halves the bracket.
        """
        best = result = first
        how = replace(how, regression=_core.parameters(first.params).coder == "regression")
        enough = None  # the last result that was at least as good as wanted
        finer = coarser = 0.0  # largest step known to be good enough, smallest known not to be
        for attempt in range(steps.ATTEMPTS):
            off = result.sqnr - wanted
            if abs(off) < abs(best.sqnr - wanted):
                best = result
            if abs(off) < min(steps.TOLERANCE_DB, steps.TOLERANCE * wanted) or result.error == 0:
                break
            if off > 0:
                finer, enough = step, result
            else:
                coarser = step
            halve = finer and coarser and attempt > 1
            step = math.sqrt(finer * coarser) if halve else step * 10 ** (off / 20)
            result = steps.quantize(tensor, step, how, run)
        return enough if enough and best.sqnr < 0.99 * wanted else best


def _decoded(result: Quantized, size: int) -> Array:
    """What a reader makes of it."""
    each = _core.chunk_levels(result.params)
    out = np.empty(size, np.float32)
    pieces = [out[start : start + each] for start in range(0, size, each)]
    _core.decode([_core.Job(result.params, *one, result.step) for one in zip(result.codes, pieces, strict=True)])
    return out


def _asked(target: Target) -> str:
    return f"{target.value:g} dB" if target.kind == "sqnr" else f"a step of {target.value:g}"
