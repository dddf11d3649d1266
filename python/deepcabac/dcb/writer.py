"""Tensors in, a .dcb file out: each tensor is read, quantised, coded and written before the next ones are.

Work is spread over threads, but what is written depends on the tensors and options alone.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from .. import _core, showing
from .._parallel import Run, Tally, pool
from ..checkpoint import packing
from ..checkpoint.base import OPTIMIZER, WEIGHT, Array, TensorSpec, as_parts, has_odd_bytes, packed_bytes
from ..errors import OptionError, similar
from ..options import DEFAULT_QUALITY, LEAST_QUALITY, LEAST_SQNR, MAX_SQNR, Options
from ..quantize import choice, exact
from ..quantize.coupling import Calibrated
from ..quantize.exact import Coded, Form
from ..quantize.importance import Weighted
from ..quantize.packed import PackedCodes, codes_of
from ..quantize.prior import Prior
from ..quantize.spread import Remark
from ..quantize.steps import Quantized
from ..quantize.tensor import Decision, TensorQuantizer
from ..source import Correct, Corrected, Part, Source
from . import container
from .container import EQUAL, LEVELS, MOST_EQUAL, RAW, TIED, Chunk, Entry, Index
from .reader import OnProgress, OpenFile
from .updates import Base, Digest

#: Bytes of tensors that are held at once, unless a single one is larger.
_IN_FLIGHT = 1 << 26
#: A tensor of at most so many elements is one piece of work; a larger one is spread over threads chunk by chunk.
_SMALL = 1 << 18
#: Bytes of a tensor from which on it is looked whether it equals another one, and of its sample that is compared first.
_WORTH_SHARING, _SHARED_SAMPLE = 64, 1 << 12
#: Bytes of exact tensors that are decoded again as they are written, of all and before that: any more would take long.
_CHECKED, _CHECKED_FIRST = 1 / 16, 1 << 20
#: Seconds between two words about progress.
_PATIENCE = 0.1
#: A tensor so many dB below the median is named, and one of whose weights more than this share becomes zero.
_WORSE, _MOSTLY = 15.0, 0.9
#: Names in a note.
_LISTED = 3
#: Relative difference to the size asked for that is accepted, and how often the whole model is coded to get there.
_SIZE_TOLERANCE, _PASSES = 0.005, 12

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str  #: "quantized", "exact", "tied", or "equal" (to another one, stored once)
    raw_bytes: int
    coded_bytes: int
    sqnr: float | None  #: in dB; None if exact
    note: str = ""  #: why a target was not met
    coding: str = ""  #: of an exact tensor: "raw", "coded", "codebook", "multiples", "difference", "changes" or "same"
    reason: str = ""  #: why it is exact
    role: str = ""  #: "optimizer" for the state of one
    remark: Remark | None = None  #: what the error does to parts of it
    forced: bool = False  #: its quality was asked for by name

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
    dropped: int | None = None  #: tensors left out by ``optimizer="drop"``; None if it was not asked for
    unmatched: list[str] = field(default_factory=list)  #: patterns of ``overrides`` that are no tensor's

    @property
    def bits_per_weight(self) -> float:
        """File size in bits per element, tied ones counted once."""
        elements = sum(tensor.size for tensor in self.tensors if tensor.method != "tied")
        return 8 * self.file_bytes / elements if elements else 0.0

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        largest = sorted(self.tensors, key=lambda tensor: tensor.coded_bytes, reverse=True)
        rows = [
            [
                tensor.name,
                "x".join(map(str, tensor.shape)) or "scalar",
                tensor.dtype,
                tensor.method if tensor.sqnr is None else f"{tensor.sqnr:.1f} dB",
                f"{8 * tensor.coded_bytes / tensor.size:.2f}" if tensor.size and tensor.coded_bytes else "",
                f"{tensor.coded_bytes:,}",
                showing.bar(tensor.coded_bytes / self.file_bytes if self.file_bytes else 0),
            ]
            for tensor in largest
        ]
        header = ["tensor", "shape", "type", ">SQNR", ">bits", ">bytes", "of the file"]
        size = f"{self.raw_bytes:,} bytes of tensors in {self.file_bytes:,} bytes"
        words = showing.lines(f"{size}, {self.bits_per_weight:.3g} bits per weight", *self.notes)
        return words + showing.table(header, rows, showing.ROWS)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        notes = [f"{tensor.name}: {tensor.note}" for tensor in self.tensors if tensor.note]
        names = [tensor.name for tensor in self.tensors]
        notes += [
            f"no tensor's name matches the pattern {pattern!r}{similar(pattern, names)}" for pattern in self.unmatched
        ]
        bytes_of_integers = sum(tensor.raw_bytes for tensor in self.tensors if tensor.dtype in ("int8", "uint8"))
        if 2 * bytes_of_integers > self.raw_bytes:
            notes.append(
                "most weights are 8-bit integers already, which are exact and shrink little: start from the float model"
            )
        if self.dropped == 0:
            notes.append("there is no optimizer state to leave out")
        state = [tensor for tensor in self.tensors if tensor.role == OPTIMIZER and tensor.method == "exact"]
        if state:
            coded = sum(tensor.coded_bytes for tensor in state)
            notes.append(
                f"optimizer state is kept exactly: {_counted(len(state))}, {coded:,} bytes, "
                f"{100 * coded / max(self.file_bytes, 1):.0f} % of the file; --optimizer drop "
                "(in Python, optimizer='drop') leaves it out"
            )
        return notes + self._quality_notes()

    def _quality_notes(self) -> list[str]:
        """Tensors that come back worse than a look at the common quality tells."""
        known = [(tensor, tensor.sqnr) for tensor in self.tensors if tensor.sqnr is not None and tensor.size]
        typical = statistics.median([sqnr for _, sqnr in known]) if known else 0.0
        worse = [f"{one.name} ({sqnr:.1f} dB)" for one, sqnr in known if sqnr < typical - _WORSE and not one.forced]
        remarks = [(one, one.remark) for one, _ in known if one.remark is not None]
        rows = [f"{one.name} ({remark.lost_rows:,} of {one.shape[0]:,})" for one, remark in remarks if remark.lost_rows]
        zeros = [f"{one.name} ({100 * remark.zeros:.0f} %)" for one, remark in remarks if remark.zeros > _MOSTLY]
        more = "--tensor 'NAME=sqnr:DB' gives a tensor more"
        return [
            f"{what}: {_listed(names)}; {more}"
            for what, names in (
                (f"much worse than the others, at {typical:.1f} dB", worse),
                ("rows (output channels) that are so small that the error is larger", rows),
                ("almost all weights become zero", zeros),
            )
            if names
        ]


def _counted(number: int) -> str:
    return "1 tensor" if number == 1 else f"{number:,} tensors"


def _listed(names: list[str]) -> str:
    """Some names, and how many more there are."""
    left = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {_counted(left)} more" if left > 0 else "")


def compress(
    source: Source,
    file: BinaryIO,
    options: Options,
    progress: OnProgress | None = None,
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
    roles = choice.roles(source.specs, source.roles())
    count = len(source.specs)
    if options.optimizer == "drop":
        source = _without_optimizer(source, roles)
    for spec in source.specs:
        container.check_writable(spec.name, spec.shape)
    elements = sum(spec.size for spec in source.specs if spec.tied_to is None)
    size = options.size if options.bits is None else round(float(options.bits) * elements / 8)
    if options.curvature is not None and calibrated is None:
        calibrated = Calibrated(options.curvature, source)
    weighted = None if options.importance is None else Weighted(options.importance, options, source)
    coupled = calibrated is not None
    expected = None
    if options.is_by_rule and base is None:
        targets = {spec.name: options.for_tensor(spec.name, spec.shape) for spec in source.specs}
        common = [name for name, one in targets.items() if one.kind == "sqnr" and not one.forced]
        expected = Prior(source, [name for name in common if roles.get(name, WEIGHT) == WEIGHT])
    decisions: dict[str, Decision] | None = None if correct is None else {}
    quantizer = TensorQuantizer(options, calibrated, weighted, roles, expected)
    with pool(options.threads, watched=progress is not None) as executor:

        def writer_of(source: Source) -> _Writer:
            measured = coupled or weighted is not None
            return _Writer(source, file, quantizer, executor, progress, base, coupled, roles, measured)

        def attempt(options: Options) -> Report:
            nonlocal quantizer
            quantizer = TensorQuantizer(options, calibrated, weighted, roles, expected)
            return writer_of(source).run(keep=decisions)

        least = LEAST_SQNR if expected is None else LEAST_QUALITY
        report = attempt(options) if size is None else _reach(int(size), options, attempt, least)
        if correct is not None and decisions is not None:
            decoded = dict(OpenFile(file, threads=options.threads).items(keep=True))
            corrected = Corrected(source, correct(decoded))
            if expected is not None:
                expected.forget(corrected.changed)
            unchanged = {name: decision for name, decision in decisions.items() if name not in corrected.changed}
            report = writer_of(corrected).run(known=unchanged)
    report.dropped = count - len(source.specs) if options.optimizer == "drop" else None
    report.unmatched = options.unmatched([spec.name for spec in source.specs])
    for pattern in report.unmatched:
        _log.warning("no tensor's name matches the pattern %r of overrides", pattern)
    return report


@dataclass
class _Work:
    """A tensor on its way."""

    spec: TensorSpec
    array: Array
    base: Array | None  #: what it is a difference to
    decision: Future[Decision] | Callable[[], Decision]
    note: str = ""  #: what was changed about it before it was coded


class _Writer:
    """Writes a file, one tensor after another."""

    def __init__(
        self,
        source: Source,
        file: BinaryIO,
        quantizer: TensorQuantizer,
        executor: Executor,
        progress: OnProgress | None,
        base: Base | None,
        coupled: bool,
        roles: Mapping[str, str],
        measured: bool,
    ) -> None:
        """``coupled``: rows make up for each other's errors, so chunks of a tensor come one after another.

        ``measured``: what errors of single weights cost is known.
        """
        self._roles = roles
        self._is_measured = measured
        self._source = source
        self._file = file
        self._quantizer = quantizer
        self._executor = executor
        self._progress = progress
        self._base = base
        self._coupled = coupled
        self._digest = Digest()
        self._index = Index(kind=source.kind, extra=source.extra)
        self._report = Report()
        self._offset = container.HEADER.size
        self._numbers: dict[str, int] = {}
        self._alike: dict[Any, list[str]] = {}  # names of tensors that may have the same values
        self._copies: Counter[str] = Counter()  # tensors stored as equal to one
        self._originals = {spec.tied_to for spec in source.specs}
        self._unchecked = _CHECKED_FIRST  # bytes that may be decoded again
        self._tally = Tally(sum(spec.nbytes for spec in source.specs if spec.tied_to is None))

    def run(self, keep: dict[str, Decision] | None = None, known: Mapping[str, Decision] = {}) -> Report:
        """Write the file. ``keep`` takes in how each tensor is stored; ``known`` says it of some from before."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(bytes(container.HEADER.size))
        waiting: deque[_Work] = deque()

        def finish() -> None:
            work = waiting.popleft()
            decision = self._finish(work)
            if keep is not None:
                keep[work.spec.name] = decision

        held = 0
        for spec in self._source.specs:
            nbytes = 0 if spec.tied_to else spec.nbytes
            while waiting and held + nbytes > _IN_FLIGHT:
                held -= waiting[0].spec.nbytes
                finish()
            if spec.tied_to is not None:
                # Its original may still be waiting; the index wants it first.
                while waiting:
                    finish()
                held = 0
                self._tie(spec)
                continue
            array, note = _sound(self._source.read(spec.name))
            first = self._equal_to(spec, array)
            if first is not None:
                while waiting:
                    finish()
                held = 0
                self._tally.add(spec.nbytes)
                self._add(self._same(spec, EQUAL, self._numbers[first]))
                continue
            waiting.append(self._begin(spec, array, note, known.get(spec.name)))
            held += nbytes
        while waiting:
            finish()
        if self._index.is_update:
            self._index.base_digest = self._digest.value
        stored = self._index.write(range(container.HEADER.size, self._offset))
        self._file.write(stored)
        self._file.seek(0)
        self._file.write(container.header(stored, self._offset))
        self._file.flush()
        self._report.file_bytes = self._offset + len(stored)
        return self._report

    def _equal_to(self, spec: TensorSpec, array: Array) -> str | None:
        """The name of an earlier tensor that would be stored alike and has the same values; None if there is none.

        Updates have a cheaper way to say so, and where the importance of weights is known it may differ.
        """
        if self._base is not None or self._is_measured or spec.nbytes < _WORTH_SHARING:
            return None
        flat = array.reshape(-1).view(np.uint8)
        some = np.ascontiguousarray(flat[:: max(flat.size // _SHARED_SAMPLE, 1) | 1])
        stored = self._quantizer.target(spec), self._roles.get(spec.name)
        firsts = self._alike.setdefault((spec.dtype, spec.shape, *stored, _core.crc32(some.data)), [])
        for first in firsts if spec.name not in self._originals else ():
            if self._copies[first] < MOST_EQUAL and np.array_equal(
                self._source.read(first).reshape(-1).view(np.uint8), flat
            ):
                self._copies[first] += 1
                return first
        firsts.append(spec.name)
        return None

    def _begin(self, spec: TensorSpec, array: Array, note: str, known: Decision | None) -> _Work:
        base = None if self._base is None else self._base.like(spec.name, spec.dtype, spec.shape)
        if known is not None:
            self._tally.add(spec.nbytes)
            return _Work(spec, array, base, lambda: known, note)
        if spec.size <= _SMALL or self._coupled:
            return _Work(spec, array, base, self._executor.submit(self._decide, spec, array, base, _in_turn), note)
        return _Work(spec, array, base, partial(self._decide, spec, array, base, self._spread), note)

    def _decide(self, spec: TensorSpec, array: Array, base: Array | None, run: Run) -> Decision:
        counted, end = self._tally.counting(spec.nbytes, run)
        decision = self._quantizer.decide(spec, as_parts(array), None if base is None else as_parts(base), counted)
        end()
        return decision

    def _spread(self, calls: list[Callable[[], Any]]) -> list[Any]:
        return [self._result(future) for future in [self._executor.submit(call) for call in calls]]

    def _result(self, future: Future[Any]) -> Any:
        """The result of a future, with a word about progress while it is not there."""
        while self._progress is not None and not wait([future], _PATIENCE).done:
            self._progress(self._tally.done, self._tally.total)
        if self._progress is not None:
            self._progress(self._tally.done, self._tally.total)
        return future.result()

    def _finish(self, work: _Work) -> Decision:
        decision = self._result(work.decision) if isinstance(work.decision, Future) else work.decision()
        spec, result = work.spec, decision.result
        if isinstance(result, Coded) and not self._comes_back(work, result):
            note = "stored raw: its code does not decode to it, which is a fault of deepcabac: please report it"
            result, decision = None, replace(decision, result=None, note=note)
        if isinstance(result, Coded) or (result is not None and work.base is not None):
            entry = self._formed(work, result)
        elif result is None:
            data = np.ascontiguousarray(work.array).reshape(-1).view(np.uint8)
            pieces = [data[at : at + container.RAW_CHUNK].data for at in range(0, data.size, container.RAW_CHUNK)]
            entry = _entry(spec, RAW, chunks=self._write(pieces))
        else:
            chunks = self._write(result.codes)
            rows, columns = result.row_scales.tobytes(), result.column_scales.tobytes()
            scales = {"row_scales": rows, "column_scales": columns}
            entry = _entry(spec, LEVELS, 0, chunks=chunks, params=result.params, step=result.step, **scales)
        noted = replace(decision, note="; ".join(filter(None, (work.note, decision.note)))) if work.note else decision
        self._add(entry, noted)
        return decision

    def _comes_back(self, work: _Work, coded: Coded) -> bool:
        """Whether what was coded decodes to the tensor: the last chunks, as many as the time allows."""
        values, base = as_parts(work.array), None if work.base is None else as_parts(work.base)
        if isinstance(coded, PackedCodes):
            values = codes_of(values, coded.bits)
        self._unchecked += int(_CHECKED * work.spec.nbytes)
        for number in reversed(range(len(coded.codes))):
            nbytes = coded.form.chunk_size * values.dtype.itemsize
            if min(nbytes, values.nbytes) > self._unchecked:
                break
            self._unchecked -= min(nbytes, values.nbytes)
            if not exact.comes_back(coded, number, values, base):
                return False
        return True

    def _formed(self, work: _Work, result: Quantized | Coded) -> Entry:
        """The entry of a tensor coded exactly, or as a difference."""
        spec = work.spec
        if isinstance(result, Coded):
            form, codes = result.form, result.codes
        else:
            form = Form(exact.QUANTIZED_DIFFERENCE, params=result.params, step=result.step)
            codes = [(code, 0) for code in result.codes]
        chunks = self._write(code for code, _ in codes)
        if any(count for _, count in codes):
            chunks = tuple(chunk._replace(refinement=count) for chunk, (_, count) in zip(chunks, codes, strict=True))
        bits = result.bits if isinstance(result, PackedCodes) else 0
        entry = _entry(spec, form.method, bits, chunks=chunks, form=form)
        if entry.needs_base:
            assert work.base is not None and self._base is not None
            self._digest.add(spec.name, work.base)
            self._index.base_name = self._base.name
        return entry

    def _tie(self, spec: TensorSpec) -> None:
        number = self._numbers[str(spec.tied_to)]
        self._add(self._same(spec, TIED, number))

    def _same(self, spec: TensorSpec, method: int, number: int) -> Entry:
        """The entry of a tensor that is like that of this number, which is stored as its parts perhaps."""
        first = self._index.entries[number]
        return Entry(spec.name, first.dtype, first.shape, method, tied_to=number, whole=first.whole)

    def _write(self, pieces: Iterable[bytes | memoryview]) -> tuple[Chunk, ...]:
        chunks = []
        for piece in pieces:
            self._file.write(piece)
            chunks.append(Chunk(self._offset, len(piece), _core.crc32(piece)))
            self._offset += len(piece)
        return tuple(chunks)

    def _add(self, entry: Entry, decision: Decision | None = None) -> None:
        self._numbers[entry.name] = len(self._index.entries)
        self._index.entries.append(entry)
        result = decision.result if decision else None
        quantized = result if isinstance(result, Quantized) else None
        raw_bytes = 0 if entry.method == TIED else packed_bytes(entry.dtype, entry.size)
        self._report.tensors.append(
            TensorReport(
                entry.name,
                str(entry.value_dtype),
                entry.value_shape,
                entry.mode,
                raw_bytes,
                entry.coded_bytes,
                quantized.sqnr if quantized else None,
                decision.note if decision else "",
                entry.coding,
                decision.reason if decision and quantized is None else "",
                self._roles.get(entry.name, ""),
                decision.remark if decision and quantized else None,
                decision is not None and decision.target.forced,
            )
        )
        self._report.raw_bytes += raw_bytes
        if _log.isEnabledFor(logging.INFO):
            reason = self._report.tensors[-1].reason
            quality = f" ({reason})" if reason else "" if quantized is None else f" at {quantized.sqnr:.1f} dB"
            sizes = f"{raw_bytes:,} to {entry.coded_bytes:,} bytes"
            _log.info("%s: %s%s, %s", entry.name, entry.mode, quality, sizes)
        if self._progress is not None:
            self._progress(self._tally.done, self._tally.total)


def _entry(spec: TensorSpec, method: int, bits: int = 0, **fields: Any) -> Entry:
    """An entry of the index; a complex tensor, or one of codes of so many ``bits``, is one of its parts."""
    if spec.dtype.kind != "c" and not bits:
        return Entry(spec.name, spec.dtype, spec.shape, method, **fields)
    dtype, shape = container.parts_of(spec.dtype, spec.shape, bits)
    return Entry(spec.name, dtype, shape, method, whole=spec.dtype, **fields)


def _sound(array: Array) -> tuple[Array, str]:
    """The array, and a note if some of its bools were neither 0 nor 1: numpy and PyTorch take these for true and keep
    their bytes, but compute nonsense with them, and readers of a .dcb file refuse them.

    In a type narrower than a byte, bits that do not count are cleared.
    """
    if not has_odd_bytes(array):
        return array, ""
    if array.dtype != np.bool_:
        return packing.sound(array), ""
    values = array.reshape(-1).view(np.uint8)
    odd = np.count_nonzero(values > 1)
    return (values != 0).reshape(array.shape), f"{odd:,} bools had bytes other than 0 and 1 and are stored as 1, true"


def _without_optimizer(source: Source, roles: Mapping[str, str]) -> Source:
    """``source`` without the state of optimizers. Raises :class:`OptionError` if nothing else is in it."""
    state = {spec.name for spec in source.specs if roles.get(spec.name) == OPTIMIZER}
    if state and len(state) == len(source.specs):
        raise OptionError("there is nothing but optimizer state to compress: keep it, or give the model's checkpoint")
    return Part(source, state) if state else source


def _in_turn(calls: list[Callable[[], Any]]) -> list[Any]:
    return [call() for call in calls]


def _reach(wanted: int, options: Options, attempt: Callable[[Options], Report], least: float) -> Report:
    """Code with that quality, at least ``least``, that makes a file of ``wanted`` bytes."""
    # log2(size) is close to linear in it piece by piece, so: bracket, then regula falsi with bisection as a net.
    low: tuple[float, int | None] = (least, None)
    high: tuple[float, int | None] = (MAX_SQNR, None)
    quality = DEFAULT_QUALITY
    for _ in range(_PASSES):
        report = attempt(replace(options, bits=None, size=None, quality=quality))
        if abs(report.file_bytes - wanted) <= _SIZE_TOLERANCE * wanted:
            return report
        if report.file_bytes > wanted:
            high = (quality, report.file_bytes)
        else:
            low = (quality, report.file_bytes)
        following = _next_quality(low, high, wanted, report)
        if following is None:
            break
        quality = following
    if abs(report.file_bytes - wanted) <= 0.01 * wanted:
        return report
    exact = sum(tensor.coded_bytes for tensor in report.tensors if tensor.method == "exact")
    raise OptionError(
        f"no quality gives a file of {wanted:,} bytes: {report.file_bytes:,} come closest, at {quality:.1f}; "
        f"{exact:,} of them are tensors stored exactly{_of_optimizers(report)}"
    )


def _of_optimizers(report: Report) -> str:
    state = sum(tensor.coded_bytes for tensor in report.tensors if tensor.role == OPTIMIZER)
    return f", {state:,} optimizer state (optimizer='drop' leaves it out)" if state else ""


def _next_quality(
    low: tuple[float, int | None], high: tuple[float, int | None], wanted: int, report: Report
) -> float | None:
    """The quality to try between a file that is too small and one that is too large; None if nothing is between."""
    if high[0] - low[0] < 0.02:
        return None
    if low[1] is None or high[1] is None:
        elements = sum(tensor.size for tensor in report.tensors if tensor.method == "quantized")
        if elements == 0:
            return None
        here, size = (low[0], low[1]) if low[1] is not None else (high[0], int(high[1] or 0))
        # 6.02 dB a bit, and a little further, so that the other side is found.
        guess = here + 6.02 * 8 * (wanted - size) / elements * 1.05
        edge = low[0] if low[1] is None else MAX_SQNR
        if here == edge:
            return None
        return min(max(guess, low[0]), MAX_SQNR)
    share = (wanted - low[1]) / (high[1] - low[1])
    return low[0] + (high[0] - low[0]) * min(max(share, 0.05), 0.95)
