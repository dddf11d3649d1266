"""Tensors in, a .dcb file out: each tensor is read, quantised, coded and written before the next ones are.

Work is spread over threads, but what is written depends on the tensors and options alone.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from .. import _core
from .._parallel import Run, pool
from ..checkpoint.base import Array, TensorSpec
from ..errors import OptionError
from ..options import DEFAULT_SQNR, MAX_SQNR, Options, Quantization, Target
from ..quantize import coupling, exact, steps
from ..quantize.coupling import Calibrated
from ..quantize.exact import Coded, Form
from ..quantize.importance import TINY, Weighted
from ..quantize.steps import Measured, Quantized
from ..source import Corrected, Source
from . import container
from .container import EXACT, LEVELS, RAW, SCALED, TIED, UPDATE, Chunk, Entry, Index
from .reader import OpenFile
from .updates import Base, Digest

#: Bytes of tensors that are held at once, unless a single one is larger.
_IN_FLIGHT = 1 << 26
#: A tensor of at most so many elements is one piece of work; a larger one is spread over threads chunk by chunk.
_SMALL = 1 << 18
#: Largest error of an update of a vector of positive values, relative to the least of them.
_POSITIVE_ERROR = 0.1
#: Relative difference to the size asked for that is accepted, and how often the whole model is coded to get there.
_SIZE_TOLERANCE, _PASSES = 0.005, 12

Progress = Callable[[int, int], None]
#: From all tensors as they will be decoded to new values of some, which make up for what the others lost.
Correct = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str  #: "quantized", "exact" or "tied"
    raw_bytes: int
    coded_bytes: int
    sqnr: float | None  #: in dB; None if exact
    note: str = ""  #: why a target was not met
    raised: float = 0.0  #: dB above the common SQNR, for a depthwise convolution
    coding: str = ""  #: of an exact tensor: "raw", "coded", "codebook", "difference" or "same"

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass
class Report:
    """What became of a checkpoint."""

    tensors: list[TensorReport] = field(default_factory=list)
    raw_bytes: int = 0  #: of all tensors
    file_bytes: int = 0  #: of the .dcb file

    @property
    def bits_per_weight(self) -> float:
        """File size in bits per element, tied ones counted once."""
        elements = sum(tensor.size for tensor in self.tensors if tensor.method != "tied")
        return 8 * self.file_bytes / elements if elements else 0.0

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        notes = [f"{tensor.name}: {tensor.note}" for tensor in self.tensors if tensor.note]
        raised = [tensor.raised for tensor in self.tensors if tensor.raised]
        if raised:
            notes.append(f"{len(raised)} depthwise convolutions got {raised[0]:g} dB more, for they are fragile")
        return notes


def compress(
    source: Source,
    file: BinaryIO,
    options: Options,
    progress: Progress | None = None,
    *,
    base: Base | None = None,
    correct: Correct | None = None,
    calibrated: Calibrated | None = None,
) -> Report:
    """Write ``source`` to ``file`` (empty, seekable). A size is reached by trying, each time from the file's start.

    With a ``base``, tensors that it has too become differences to it. With ``correct``, the file is then decoded, and
    written again with the values that it returns; the levels of all other tensors stay as they are. ``calibrated`` is
    what the options' curvature says of ``source``, if it is known.
    """
    if base is not None:
        if options.curvature is not None:
            raise OptionError("choose one of curvature and base: what a difference does was not measured")
        if correct is not None:
            raise OptionError("choose one of correct and base: an update is corrected by the next one")
    for spec in source.specs:
        container.check_writable(spec.name, spec.shape)
    with pool(options.threads) as executor:
        elements = sum(spec.size for spec in source.specs if spec.tied_to is None)
        if options.curvature is not None and calibrated is None:
            calibrated = Calibrated(options.curvature, source)
        known = options.importance is not None or options.sigma is not None
        weighted = Weighted(options, source) if known else None
        size = options.size if options.bits is None else round(float(options.bits) * elements / 8)
        last: _Pass | None = None

        def attempt(options: Options) -> Report:
            nonlocal last
            keep = correct is not None
            last = _Pass(source, file, options, calibrated, weighted, executor, progress, base, keep=keep)
            return last.run()

        report = attempt(options) if size is None else _reach(int(size), options, attempt)
        if correct is None or last is None:
            return report
        decoded = dict(OpenFile(file, threads=options.threads).items(keep=True))
        return last.again(Corrected(source, correct(decoded))).run()


@dataclass
class _Work:
    """A tensor on its way."""

    spec: TensorSpec
    array: Array
    target: Target
    result: Future[Quantized | Coded | None] | Callable[[], Quantized | Coded | None]
    note: str = ""
    base: Array | None = None  #: what it is a difference to


@dataclass(frozen=True)
class _Kept:
    """What became of a tensor, but for where it lies in the file."""

    result: Quantized | Coded | None
    target: Target
    note: str


class _Pass:
    """One time through all tensors."""

    def __init__(
        self,
        source: Source,
        file: BinaryIO,
        options: Options,
        calibrated: Calibrated | None,
        weighted: Weighted | None,
        executor: Executor,
        progress: Progress | None,
        base: Base | None,
        keep: bool = False,
        known: Mapping[str, _Kept] | None = None,
    ) -> None:
        """``keep`` what becomes of each tensor for :meth:`again`; ``known`` is what became of some the last time."""
        self._source = source
        self._base = base
        self._digest = Digest()
        self._calibrated = calibrated
        self._weighted = weighted
        self._file = file
        self._options = options
        self._executor = executor
        self._progress = progress
        self._index = Index(kind=source.kind, extra=source.extra)
        self._report = Report()
        self._offset = container.HEADER.size
        self._numbers: dict[str, int] = {}
        self._total = sum(spec.nbytes for spec in source.specs if spec.tied_to is None)
        self._kept: dict[str, _Kept] | None = {} if keep else None
        self._known = known or {}

    def again(self, source: Corrected) -> _Pass:
        """The same again, with other values of some tensors."""
        known = {name: kept for name, kept in (self._kept or {}).items() if name not in source.changed}
        return _Pass(
            source,
            self._file,
            self._options,
            self._calibrated,
            self._weighted,
            self._executor,
            self._progress,
            self._base,
            known=known,
        )

    def run(self) -> Report:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(bytes(container.HEADER.size))
        waiting: deque[_Work] = deque()
        held = 0
        for spec in self._source.specs:
            nbytes = 0 if spec.tied_to else spec.nbytes
            while waiting and held + nbytes > _IN_FLIGHT:
                held -= waiting[0].spec.nbytes
                self._finish(waiting.popleft())
            if spec.tied_to is not None:
                # Its original may still be waiting; the index wants it first.
                while waiting:
                    self._finish(waiting.popleft())
                held = 0
                self._tie(spec)
                continue
            waiting.append(self._begin(spec))
            held += nbytes
        while waiting:
            self._finish(waiting.popleft())
        stored = self._index.write()
        self._file.write(stored)
        self._file.seek(0)
        self._file.write(container.header(stored, self._offset))
        self._file.flush()
        self._report.file_bytes = self._offset + len(stored)
        return self._report

    def _begin(self, spec: TensorSpec) -> _Work:
        array = self._source.read(spec.name)
        base = None if self._base is None else self._base.like(spec.name, spec.dtype, spec.shape)
        target = self._options.for_tensor(spec.name, spec.shape, base is not None)
        work = _Work(spec, array, target, lambda: None, base=base)
        known = self._known.get(spec.name)
        if known is not None:
            return _Work(spec, array, known.target, lambda: known.result, known.note)

        def all_at_once() -> Quantized | Coded | None:
            return self._code(work, lambda calls: [call() for call in calls])

        def spread() -> Quantized | Coded | None:
            return self._code(work, lambda calls: [f.result() for f in [self._executor.submit(c) for c in calls]])

        # Rows that make up for each other's errors come one after another: no chunks to spread.
        apart = spec.size <= _SMALL or self._calibrated is not None
        work.result = self._executor.submit(all_at_once) if apart else spread
        return work

    def _code(self, work: _Work, run: Run) -> Quantized | Coded | None:
        """The coded tensor, quantised or exactly; None if it is to be stored raw."""
        result = self._quantize(work, run) if work.base is None else self._quantize_difference(work, work.base, run)
        return exact.encode(work.array, run, work.base, self._options.preset) if result is None else result

    def _quantize_difference(self, work: _Work, base: Array, run: Run) -> Quantized | None:
        """The difference to the base quantised, or None if it is to be stored exactly: as quantised tensors are, and
        differences of types narrower than float32, whose own rounding is as coarse, and none at all.
        """
        array, target = work.array, work.target
        if target.kind == "exact" or array.dtype not in (np.float32, np.float64) or array.ndim == 0:
            return None
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
        if array.ndim == 1 and (array > 0).all():
            while np.abs(_decoded(result, array.size) - difference).max(initial=0) > _POSITIVE_ERROR * array.min():
                if step < steps.SMALLEST_STEP or result.coded_bytes >= work.spec.nbytes:
                    return None
                step /= 2
                result = steps.quantize(tensor, step, how, run)
        return result if result.coded_bytes < work.spec.nbytes else None

    def _quantize(self, work: _Work, run: Run) -> Quantized | None:
        """The coded tensor, or None if it is to be stored exactly."""
        target = work.target
        # An SQNR that was asked for by name is that of the tensor alone, in which all weights count the same.
        own = target.kind == "exact" or (target.forced and target.kind == "sqnr")
        if self._weighted and work.spec.name in self._weighted and not own:
            return self._quantize_weighted(self._weighted, work, run)
        plan = None
        if self._calibrated and target.kind == "sqnr" and not target.forced:
            plan = self._calibrated.plan(work.spec.name, work.array)
        if plan is not None:
            work.target = target = replace(target.by_measure(), forced=True)
        tensor = steps.measure(work.array, target, run)
        if tensor is None:
            return None
        if plan is not None and self._calibrated is not None:
            return self._quantize_by(plan, self._calibrated.slope(target.value), work, tensor, run)
        chosen = steps.choose(tensor, target, self._options.quantizations)
        if chosen is None:
            work.note = f"stored exactly: {_asked(target)} is beyond float32 arithmetic"
            return None
        how, step = chosen
        result = steps.quantize(tensor, step, how, run)
        if target.kind == "sqnr" and tensor.energy > 0:
            result = self._closest(tensor, target.value, how, step, result, run)
            if result.sqnr < 0.99 * target.value:
                work.note = f"stored exactly: {work.spec.dtype} cannot reach {_asked(target)}"
                return None
            if result.sqnr > 1.01 * target.value and result.error > 0:
                work.note = f"{result.sqnr:.2f} dB instead of {target.value:g}: too few elements to come closer"
        if result.coded_bytes >= work.spec.nbytes:
            work.note = ""
            return None
        return result

    def _quantize_weighted(self, weighted: Weighted, work: _Work, run: Run) -> Quantized | None:
        """The tensor coded by the importance of its weights, or None if it is to be stored exactly."""
        work.target = work.target.by_measure()
        result = weighted.quantize(work.spec.name, work.array, work.target, run)
        return result if result is not None and result.coded_bytes < work.spec.nbytes else None

    def _quantize_by(
        self, plan: coupling.Plan, slope: float, work: _Work, tensor: Measured, run: Run
    ) -> Quantized | None:
        """The tensor coded such that a bit buys ``slope`` of loss, or None if it is to be stored exactly."""
        hows = self._options.quantizations
        # So few levels that the path through a trellis has no freedom yet.
        how = hows[-1] if tensor.flat.size < TINY else hows[0]
        step = plan.step(slope, how) if tensor.energy > 0 else 1.0
        if step is None:
            work.note = "stored exactly: the step that its curvature asks for is beyond float32 arithmetic"
            return None
        result = coupling.quantize(work.array, plan, step, how, run) if tensor.energy > 0 else None
        if result is None or not math.isfinite(result.error):
            result = steps.quantize(tensor, step, how, run)
        return result if result.coded_bytes < work.spec.nbytes else None

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
        how = replace(how, regression=_core.has_regression(first.params))
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

    def _finish(self, work: _Work) -> None:
        result = work.result.result() if isinstance(work.result, Future) else work.result()
        if self._kept is not None:
            self._kept[work.spec.name] = _Kept(result, work.target, work.note)
        del work.result  # it refers to the work: a cycle that would keep the array until the next collection
        spec = work.spec
        if isinstance(result, Coded) or (result is not None and work.base is not None):
            entry = self._formed(work, result)
        elif result is None:
            data = np.ascontiguousarray(work.array).reshape(-1).view(np.uint8)
            pieces = [data[at : at + container.RAW_CHUNK].data for at in range(0, data.size, container.RAW_CHUNK)]
            entry = Entry(spec.name, spec.dtype, spec.shape, RAW, self._write(pieces))
        else:
            chunks = self._write(result.codes)
            rows, columns = result.row_scales.tobytes(), result.column_scales.tobytes()
            method = SCALED if rows or columns else LEVELS
            entry = Entry(
                spec.name,
                spec.dtype,
                spec.shape,
                method,
                chunks,
                result.params,
                result.step,
                row_scales=rows,
                column_scales=columns,
            )
        self._add(entry, result, work.target, work.note)

    def _formed(self, work: _Work, result: Quantized | Coded) -> Entry:
        """The entry of a tensor coded exactly, or as a difference."""
        spec = work.spec
        if isinstance(result, Coded):
            form, codes = result.form, result.codes
        else:
            form = Form(exact.QUANTIZED, params=result.params, step=result.step)
            codes = [(code, 0) for code in result.codes]
        chunks = self._write(code for code, _ in codes)
        chunks = tuple(replace(chunk, details=details) for chunk, (_, details) in zip(chunks, codes, strict=True))
        if form.kind not in exact.UPDATES:
            return Entry(spec.name, spec.dtype, spec.shape, EXACT, chunks, form=form)
        assert work.base is not None and self._base is not None
        self._digest.add(spec.name, work.base)
        self._index.base_digest, self._index.base_name = self._digest.value, self._base.name
        return Entry(spec.name, spec.dtype, spec.shape, UPDATE, chunks, form=form)

    def _tie(self, spec: TensorSpec) -> None:
        number = self._numbers[str(spec.tied_to)]
        self._add(Entry(spec.name, spec.dtype, spec.shape, TIED, tied_to=number))

    def _write(self, pieces: Iterable[bytes | memoryview]) -> tuple[Chunk, ...]:
        chunks = []
        for piece in pieces:
            self._file.write(piece)
            chunks.append(Chunk(self._offset, len(piece), zlib.crc32(piece)))
            self._offset += len(piece)
        return tuple(chunks)

    def _add(
        self, entry: Entry, result: Quantized | Coded | None = None, target: Target | None = None, note: str = ""
    ) -> None:
        self._numbers[entry.name] = len(self._index.entries)
        self._index.entries.append(entry)
        quantized = result if isinstance(result, Quantized) else None
        raw_bytes = 0 if entry.method == TIED else entry.nbytes
        self._report.tensors.append(
            TensorReport(
                entry.name,
                str(entry.dtype),
                entry.shape,
                entry.mode,
                raw_bytes,
                entry.coded_bytes,
                quantized.sqnr if quantized else None,
                note,
                target.raised if quantized and target else 0.0,
                entry.coding,
            )
        )
        self._report.raw_bytes += raw_bytes
        if self._progress is not None:
            self._progress(self._report.raw_bytes, self._total)


def _decoded(result: Quantized, size: int) -> Array:
    """What a reader makes of it."""
    each = _core.chunk_levels(result.params)
    out = np.empty(size, np.float32)
    pieces = [out[start : start + each] for start in range(0, size, each)]
    _core.decode([_core.Job(result.params, *one, result.step) for one in zip(result.codes, pieces, strict=True)])
    return out


def _asked(target: Target) -> str:
    return f"{target.value:g} dB" if target.kind == "sqnr" else f"a step of {target.value:g}"


def _reach(wanted: int, options: Options, attempt: Callable[[Options], Report]) -> Report:
    """Code with that SQNR for all tensors that makes a file of ``wanted`` bytes."""
    # log2(size) is close to linear in dB piece by piece, so: bracket, then regula falsi with bisection as a net.
    low: tuple[float, int | None] = (0.5, None)
    high: tuple[float, int | None] = (MAX_SQNR, None)
    sqnr = DEFAULT_SQNR
    for _ in range(_PASSES):
        report = attempt(replace(options, bits=None, size=None, sqnr=sqnr))
        if abs(report.file_bytes - wanted) <= _SIZE_TOLERANCE * wanted:
            return report
        if report.file_bytes > wanted:
            high = (sqnr, report.file_bytes)
        else:
            low = (sqnr, report.file_bytes)
        following = _next_sqnr(low, high, wanted, report)
        if following is None:
            break
        sqnr = following
    if abs(report.file_bytes - wanted) <= 0.01 * wanted:
        return report
    exact = sum(tensor.coded_bytes for tensor in report.tensors if tensor.method == "exact")
    raise OptionError(
        f"no quality gives a file of {wanted:,} bytes: {report.file_bytes:,} come closest, at {sqnr:.1f} dB; "
        f"{exact:,} of them are tensors stored exactly"
    )


def _next_sqnr(
    low: tuple[float, int | None], high: tuple[float, int | None], wanted: int, report: Report
) -> float | None:
    """The SQNR to try between a file that is too small and one that is too large; None if there is nothing between."""
    if high[0] - low[0] < 0.02:
        return None
    if low[1] is None or high[1] is None:
        elements = sum(tensor.size for tensor in report.tensors if tensor.method == "quantized")
        if elements == 0:
            return None
        here, size = (low[0], low[1]) if low[1] is not None else (high[0], int(high[1] or 0))
        # 6.02 dB a bit, and a little further, so that the other side is found.
        guess = here + 6.02 * 8 * (wanted - size) / elements * 1.05
        edge = 0.5 if low[1] is None else MAX_SQNR
        if here == edge:
            return None
        return min(max(guess, 0.5), MAX_SQNR)
    share = (wanted - low[1]) / (high[1] - low[1])
    return low[0] + (high[0] - low[0]) * min(max(share, 0.05), 0.95)
