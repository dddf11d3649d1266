"""A .dcb file, opened: tensors decoded one by one, or all in a stream, on all cores."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import _core, showing
from .._parallel import pool
from ..atomic import reading
from ..checkpoint.base import Array, as_parts, has_odd_bytes
from ..errors import DamagedFileError, LimitError, OptionError, naming
from ..quantize import exact
from ..quantize.scales import scale_factors
from . import container
from .container import EQUAL, HEADER, LEVELS, RAW, TIED, Chunk, Entry, Index
from .updates import Base

if TYPE_CHECKING:
    from typing_extensions import Self


#: Levels decoded by one call, at least: worth a call, and short enough to stop at once.
_BATCH = 3 << 18
#: Bytes that are read at once to compare checksums, unless a chunk is longer.
_BLOCK = 1 << 23
#: Bytes of tensors that are decoded before they are asked for, unless a single one is larger.
_AHEAD = 1 << 26

#: Called from the caller's thread with the bytes of tensors that are done, and those of all. A tensor that has to be
#: coded again to meet its target then counts again among all, and bytes begin anew when the whole file is.
OnProgress = Callable[[int, int], None]
Count = Callable[[int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about one tensor."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    method: str  #: "quantized", "exact", "tied", or "equal" (to another one, stored once)
    nbytes: int  #: decoded
    coded_bytes: int  #: of payload; 0 if tied
    step: float | None  #: distance between two reconstruction values, if quantized
    tied_to: str | None
    quantizer: str | None  #: "scalar" or "trellis", if quantized
    states: int | None  #: of the trellis, if it is one
    row_scales: int = 0  #: scales that ``step`` is multiplied by: one for each slice of dimension 0, or none
    column_scales: int = 0  #: likewise, one for each place in such a slice, or none
    coder: str | None = None  #: "binary", that with "regression", "fast" or "sparse", if quantized
    coding: str = ""  #: of an exact tensor: "raw", "coded", "codebook", "multiples", "difference", "changes" or "same"
    update: bool = False  #: whether it is stored as a difference to the tensor of that name in the file's base
    equal_to: str | None = None  #: an earlier tensor with the same values, which share no memory

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.nbytes // self.dtype.itemsize

    @property
    def bits_per_weight(self) -> float:
        """Payload bits per element."""
        return 8 * self.coded_bytes / self.size if self.size else 0.0


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as integers: its values are the levels times the step, times the scales of row and column if any."""

    levels: npt.NDArray[Any]  #: int8, int16 or int32, the first that holds them all; of the tensor's shape
    step: float  #: float32
    row_scales: npt.NDArray[np.float32] | None  #: one for each slice of dimension 0, or none
    column_scales: npt.NDArray[np.float32] | None  #: one for each place in such a slice, or none
    dtype: np.dtype[Any]  #: of the values

    def dequantize(self) -> Array:
        """The values, bit for bit those that the file restores: each product is rounded to float32."""
        values = self.levels.astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):  # beyond the type's range, only in a hostile file
            values *= np.float32(self.step)
            rows = values.reshape(self.levels.shape[0] if self.levels.ndim else 1, -1) if values.size else values
            if self.row_scales is not None:
                rows *= self.row_scales[:, None]
            if self.column_scales is not None:
                rows *= self.column_scales
            return values.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Changed:
    """What changes in a chunk of a base's tensor."""

    where: slice  #: elements of the flat tensor
    places: npt.NDArray[np.uint32]  #: numbers of those that change, in there
    patterns: Array  #: what they become, as unsigned integers


class OpenFile:
    """A .dcb file whose index has been read and checked; tensors are decoded when asked for.

    ``f.keys()``, ``f.info(name)``, ``f[name]`` (decodes that tensor alone), ``name in f``, ``len(f)``, iteration over
    names. A context manager. Safe to use from several threads.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        name: str = "",
        max_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Read the index of ``file`` (binary, seekable); errors begin with ``name``.

        Raises DamagedFileError, UnsupportedError or LimitError.
        """
        container.check_max_bytes(max_bytes)
        self._file = file
        self._name = name
        self._lock = threading.Lock()
        self._threads = threads
        self._max_bytes = max_bytes
        #: The whole file, if it is bytes in memory: chunks are decoded where they are.
        self.memory: bytes | None = None
        #: What an update changes; closed with this file.
        self.base: Base | None = None
        self._base_is_checked = False
        with naming(name):
            self._index = self._read_index()
        self._numbers = {entry.name: number for number, entry in enumerate(self._index.entries)}
        #: Kind of checkpoint that the file was made from, "" for arrays.
        self.kind = self._index.kind
        #: What a checkpoint of this kind holds besides tensors.
        self.extra = self._index.extra

    def _read_index(self) -> Index:
        #: Bytes of the whole file.
        self.file_bytes = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        crc, place = container.read_header(self._file.read(HEADER.size), self.file_bytes)
        #: Bytes of the index as stored.
        self.index_bytes = len(place)
        if self._max_bytes is not None and len(place) > self._max_bytes:
            raise LimitError(f"the index takes {len(place):,} bytes, more than max_bytes = {self._max_bytes:,}")
        stored = self._read(place.start, len(place))
        container.check_index(stored, crc)
        return Index.read(stored, range(HEADER.size, place.start), self._max_bytes)

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def info(self, name: str) -> TensorInfo:
        """What the index says about a tensor. Raises KeyError."""
        entry = self._index.entries[self._numbers[name]]
        states = entry.states if entry.mode == "quantized" else 0
        return TensorInfo(
            entry.name,
            entry.value_dtype,
            entry.value_shape,
            entry.mode,
            math.prod(entry.value_shape) * entry.value_dtype.itemsize,
            entry.coded_bytes,
            entry.distance if states else None,
            self._index.entries[entry.tied_to].name if entry.method == TIED else None,
            ("trellis" if states > 1 else "scalar") if states else None,
            states if states > 1 else None,
            len(entry.row_scales),
            len(entry.column_scales),
            entry.coder if states else None,
            entry.coding,
            entry.needs_base,
            self._index.entries[entry.tied_to].name if entry.method == EQUAL else None,
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        infos = sorted(map(self.info, self), key=lambda info: info.coded_bytes, reverse=True)
        rows = [
            [
                info.name,
                "x".join(map(str, info.shape)) or "scalar",
                str(info.dtype),
                info.method if info.step is None else f"{info.step:.4g}",
                f"{info.bits_per_weight:.2f}" if info.coded_bytes else "",
                f"{info.coded_bytes:,}",
                showing.bar(info.coded_bytes / self.file_bytes),
            ]
            for info in infos
        ]
        header = ["tensor", "shape", "type", ">step", ">bits", ">bytes", "of the file"]
        words = showing.lines(f"{self._name or 'a .dcb file'}: {len(self):,} tensors in {self.file_bytes:,} bytes")
        return words + showing.table(header, rows, showing.ROWS)

    @property
    def base_name(self) -> str | None:
        """Name of the file that this one is an update of, as it was when it was made; None if it is none."""
        return self._index.base_name if self._index.is_update else None

    @property
    def base_digest(self) -> str:
        """SHA-256 of what it is an update of (FORMAT.md, 11.3), in hexadecimal; empty if it is none."""
        return self._index.base_digest.hex()

    def __getitem__(self, name: str) -> Array:
        """Decode one tensor. Raises KeyError, DamagedFileError or LimitError."""
        entry = self._index.entries[self._numbers[name]]
        entry = self._index.entries[entry.tied_to] if entry.tied_to >= 0 else entry
        with naming(self._name), pool(self._threads) as executor:
            ((_, array),) = self._decode([entry], executor)
            return array

    def span(self, name: str, start: int, stop: int) -> Array:
        """The elements from ``start`` to before ``stop`` of a tensor, flat. Only chunks that hold some are decoded; a
        difference to a base is decoded as a whole.

        Raises KeyError, DamagedFileError, LimitError, or :class:`OptionError` if the tensor has no such elements.
        """
        entry = self._index.entries[self._numbers[name]]
        entry = self._index.entries[entry.tied_to] if entry.tied_to >= 0 else entry
        size = math.prod(entry.value_shape)
        if not 0 <= start <= stop <= size:
            raise OptionError(f"tensor {name!r} has {size:,} elements: there are none from {start:,} to {stop:,}")
        if start == stop:
            return np.empty(0, entry.value_dtype)
        if entry.needs_base or entry.whole is not None:
            return self[name].reshape(-1)[start:stop]
        each = entry.chunk_size // (entry.dtype.itemsize if entry.method == RAW else 1)
        first, last = start // each, -(-stop // each)
        begin, end = first * each, min(last * each, entry.size)
        whole = entry.size // entry.shape[0] if entry.has_scales else 1  # then chunks hold whole rows
        part = replace(
            entry,
            shape=(end - begin,) if not entry.has_scales else ((end - begin) // whole, *entry.shape[1:]),
            chunks=entry.chunks[first:last],
            row_scales=entry.row_scales[begin // whole : end // whole],
        )
        with naming(self._name), pool(self._threads) as executor:
            ((_, array),) = self._decode([part], executor)
        return array.reshape(-1)[start - begin : stop - begin]

    def has_levels(self, name: str) -> bool:
        """Whether a tensor is quantised, and not as a difference to a base. Raises KeyError."""
        entry = self._index.entries[self._numbers[name]]
        entry = self._index.entries[entry.tied_to] if entry.tied_to >= 0 else entry
        return entry.method == LEVELS and entry.whole is None

    def levels(self, name: str) -> QuantizedTensor:
        """A quantised tensor as integers with their step and scales, without restoring it.

        Raises KeyError, DamagedFileError, LimitError, or :class:`OptionError` where :meth:`has_levels` is false.
        """
        entry = self._index.entries[self._numbers[name]]
        entry = self._index.entries[entry.tied_to] if entry.tied_to >= 0 else entry
        if not self.has_levels(name):
            what = "a difference to a base" if entry.needs_base else "stored exactly"
            raise OptionError(f"tensor {name!r} is {what} and has no levels of its own; file[{name!r}] has its values")
        plain = replace(entry, dtype=np.dtype(np.int32), row_scales=b"", column_scales=b"")
        with naming(self._name), pool(self._threads) as executor:
            ((_, array),) = self._decode([plain], executor)
        limit = max(-int(array.min(initial=0)) - 1, int(array.max(initial=0)))
        small = next((dtype for dtype in (np.int8, np.int16) if limit <= np.iinfo(dtype).max), np.int32)
        row, column = (
            scale_factors(np.frombuffer(scales, np.int8)) if scales else None
            for scales in (entry.row_scales, entry.column_scales)
        )
        return QuantizedTensor(array.astype(small, copy=False), entry.step, row, column, entry.dtype)

    def alone(self, name: str) -> bytes:
        """A .dcb file of this tensor alone, its code unchanged. Raises KeyError, DamagedFileError, or
        :class:`OptionError` for a difference to a base.
        """
        entry = self._index.entries[self._numbers[name]]
        entry = self._index.entries[entry.tied_to] if entry.tied_to >= 0 else entry
        if entry.needs_base:
            raise OptionError(f"tensor {name!r} is a difference to a base, of no use alone")
        code = b"".join(self._read(chunk.offset, chunk.length) for chunk in entry.chunks)
        shift = HEADER.size - entry.chunks[0].offset if entry.chunks else 0
        chunks = tuple(chunk._replace(offset=chunk.offset + shift) for chunk in entry.chunks)
        index = Index([replace(entry, name=name, chunks=chunks)]).write()
        return container.header(index, HEADER.size + len(code)) + code + index

    def items(
        self, into: Mapping[str, Array] | None = None, *, keep: bool = False, progress: OnProgress | None = None
    ) -> Iterator[tuple[str, Array]]:
        """All tensors in the file's order, decoded shortly before they are handed out. Tied ones share their array,
        equal ones have one each.

        Those that ``into`` names are decoded into its arrays, if these are contiguous and writable and have the
        tensor's shape and data type; a damaged tensor leaves its array in part overwritten. With ``keep``, for who
        keeps all arrays, threads need not wait for what is handed out. ``progress`` is called with the bytes of tensors
        decoded so far and those of all.
        """
        tied: dict[int, Array] = {}
        needed = {entry.tied_to for entry in self._index.entries if entry.tied_to >= 0}
        entries = self._index.entries
        total = sum(entry.nbytes for entry in entries if entry.method != TIED)
        with naming(self._name), pool(self._threads) as executor:
            if self._max_bytes is not None and total > self._max_bytes:
                raise LimitError(f"the tensors take {total:,} bytes, more than max_bytes = {self._max_bytes:,}")
            own = [entry for entry in entries if entry.tied_to < 0]
            decoded = self._decode(own, executor, into or {}, total if keep else _AHEAD, _counter(progress, total))
            for number, entry in enumerate(entries):
                if entry.tied_to >= 0:
                    array = tied[entry.tied_to]
                    yield entry.name, array if entry.method == TIED else _copied(array, entry, into or {})
                    continue
                _, array = next(decoded)
                if number in needed:
                    tied[number] = array
                yield entry.name, array

    def check(self, progress: OnProgress | None = None, *, decode: bool = True) -> Iterator[tuple[str, str]]:
        """Decode everything; yields (tensor name, what is wrong) for each damaged tensor and goes on.

        With ``decode=False`` checksums alone are compared, at gigabytes per second: it finds all damage to a file that
        this package wrote, and needs no base. ``progress`` as for :meth:`items`.
        """
        if not decode:
            yield from self._check_sums(progress)
            return
        count = _counter(progress, sum(entry.nbytes for entry in self._index.entries if entry.tied_to < 0))
        with pool(self._threads) as executor:
            for entry in self._index.entries:
                if entry.tied_to >= 0:
                    continue
                try:
                    deque(self._decode([entry], executor, count=count), maxlen=0)
                    _log.info("%s: good", entry.name)
                except DamagedFileError as error:
                    yield entry.name, str(error)

    def _check_sums(self, progress: OnProgress | None) -> Iterator[tuple[str, str]]:
        """Compare the checksums of all chunks, which were found to tile the payload."""
        blocks: list[list[tuple[Entry, Chunk]]] = [[]]
        for entry in self._index.entries:
            for chunk in entry.chunks:
                if blocks[-1] and chunk.offset + chunk.length - blocks[-1][0][1].offset > _BLOCK:
                    blocks.append([])
                blocks[-1].append((entry, chunk))
        count = _counter(progress, sum(entry.coded_bytes for entry in self._index.entries))
        last = ""
        with pool(self._threads) as executor:
            for block, damages in zip(blocks, executor.map(self._damages, blocks), strict=True):
                if count is not None:
                    count(sum(chunk.length for _, chunk in block))
                for name, what in damages:
                    if name != last:
                        yield name, what
                    last = name

    def _damages(self, block: Sequence[tuple[Entry, Chunk]]) -> list[tuple[str, str]]:
        """Names of tensors, and what is wrong with chunks that follow each other."""
        if not block:
            return []
        start, last = block[0][1].offset, block[-1][1]
        whole = Chunk(start, last.offset + last.length - start, 0)
        data = memoryview(self._chunk(whole))
        found = []
        for entry, chunk in block:
            try:
                chunk.check(data[chunk.offset - start : chunk.offset - start + chunk.length], entry.name)
            except DamagedFileError as error:
                found.append((entry.name, str(error)))
        return found

    def prepare(self) -> dict[str, list[Changed] | None]:
        """Decode everything once, and keep what changes: for each tensor the changed places of its base, by chunk.

        None stands for a tensor that has to be decoded as a whole; it was, and what came of it was left. Tied and equal
        tensors are not among them. After this a file is known to be good, and can be applied in place. Raises as
        :meth:`__getitem__` does.
        """
        found: dict[str, list[Changed] | None] = {}
        with naming(self._name), pool(self._threads) as executor:
            for entry in self._index.entries:
                if entry.method == exact.UNCHANGED:
                    self._base_of(entry)
                    found[entry.name] = []
                elif entry.method == exact.CHANGES:
                    base = self._base_of(entry)
                    assert base is not None
                    numbers = [number for number, chunk in enumerate(entry.chunks) if chunk.length]
                    lists = executor.map(partial(self._listed, entry, base.reshape(-1)), numbers)
                    found[entry.name] = list(lists)
                elif entry.tied_to < 0:
                    found[entry.name] = None
            whole = [entry for entry in self._index.entries if found.get(entry.name, []) is None]
            deque(self._decode(whole, executor), maxlen=0)
        return found

    def _listed(self, entry: Entry, base: Array, number: int) -> Changed:
        chunk, where = entry.chunks[number], entry.chunk_range(number)
        data = self._read(chunk.offset, chunk.length)
        chunk.check(data, entry.name)
        assert entry.form is not None
        found = exact.changed(entry.form, data, base[where])
        if found is None:
            raise DamagedFileError(f"tensor {entry.name!r} is damaged: a chunk does not decode")
        check_bytes(entry, found[1].view(entry.dtype))
        return Changed(where, *found)

    def close(self) -> None:
        """Close the file, and its base."""
        self._file.close()
        if self.base is not None:
            self.base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chunk(self, chunk: Chunk) -> bytes | memoryview:
        if self.memory is not None:
            return memoryview(self.memory)[chunk.offset : chunk.offset + chunk.length]
        return self._read(chunk.offset, chunk.length)

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        if len(data) != length:
            raise DamagedFileError(f"damaged .dcb file: {length} bytes at {offset} cannot be read")
        return data

    def _base_of(self, entry: Entry) -> Array | None:
        """The base's tensor that an update changes, the digest compared before the first one is used."""
        if not entry.needs_base:
            return None
        if self.base is None:
            named = f", made from {self._index.base_name!r}" if self._index.base_name else ""
            raise OptionError(f"an update of another checkpoint{named}: give it as base")
        if not self._base_is_checked:
            changed = [entry for entry in self._index.entries if entry.needs_base]
            self.base.check(changed, self._index.base_digest)
            self._base_is_checked = True
        return as_parts(self.base.tensor(entry))

    def _decode(
        self,
        entries: Sequence[Entry],
        executor: Executor,
        into: Mapping[str, Array] = MappingProxyType({}),
        most: int = _AHEAD,
        count: Count | None = None,
    ) -> Iterator[tuple[Entry, Array]]:
        """Decode ``entries`` in order, small ones together in one batch, ``most`` bytes ahead. ``count`` is called with
        the number of bytes that were decoded since the last time.
        """
        waiting: deque[_Decoding] = deque()
        batch: list[_Part] = []
        ahead = gathered = 0

        def submit() -> None:
            nonlocal batch, gathered
            if batch:
                future = executor.submit(self._decode_batch, batch)
                for part in batch:
                    part.owner.futures.append(future)
            batch, gathered = [], 0

        for entry in entries:
            while waiting and ahead + entry.nbytes > most:
                submit()
                ahead -= waiting[0].entry.nbytes
                yield waiting.popleft().wait(count)
            if self._max_bytes is not None and entry.nbytes > self._max_bytes:
                raise LimitError(
                    f"tensor {entry.name!r} takes {entry.nbytes} bytes, more than max_bytes = {self._max_bytes}"
                )
            base = self._base_of(entry)
            owner = _Decoding(entry, _room(entry, into.get(entry.name)), base)
            waiting.append(owner)
            ahead += entry.nbytes
            lanes = _core.parameters(entry.coding_params).lanes if entry.coding_params else 1
            for number in range(len(entry.chunks)):
                batch.append(_Part(owner, number))
                gathered += _size_of(entry.chunk_range(number))
                if gathered >= _BATCH and len(batch) % lanes == 0:
                    submit()
        submit()
        while waiting:
            yield waiting.popleft().wait(count)

    def _decode_batch(self, parts: Sequence[_Part]) -> None:
        """Read, check and decode some chunks."""
        jobs: list[tuple[_Part, _core.Job, slice]] = []
        refinement: dict[int, memoryview] = {}
        symbols: list[tuple[Entry, _core.Floats]] = []
        for part in parts:
            entry, flat = part.owner.entry, part.owner.flat
            chunk, where = entry.chunks[part.number], entry.chunk_range(part.number)
            if chunk.length == 0:
                flat[where] = part.owner.base_flat[where]
                continue
            data = self._chunk(chunk)
            chunk.check(data, entry.name)
            if entry.method == RAW:
                flat.view(np.uint8)[where] = np.frombuffer(data, np.uint8)
                check_bytes(entry, flat.view(np.uint8)[where])
                continue
            form = entry.form
            if form is not None and form.method == exact.SYMBOLS:
                symbols.append((entry, exact.floats(form, entry.dtype, exact.patterns(flat[where]), data)))
                continue
            if form is not None and form.method in (exact.CODEBOOK, exact.CHANGES):
                if form.method == exact.CODEBOOK:
                    fine = exact.decode(form, data, flat[where])
                else:
                    fine = exact.change(form, data, flat[where], part.owner.base_flat[where])
                if not fine:
                    raise DamagedFileError(f"tensor {entry.name!r} is damaged: a chunk does not decode")
                check_bytes(entry, flat[where])
                continue
            levels = entry.method in exact.REFINED
            fits = flat.dtype in (np.float32, np.int32) and not levels  # int32 for levels alone
            out = flat[where] if fits else np.empty(_size_of(where), np.int32 if levels else np.float32)
            code = memoryview(data)[: chunk.length - chunk.refinement]
            params = entry.coding_params
            distance = 1.0 if form is not None and form.method == exact.MULTIPLES else entry.distance
            jobs.append((part, _core.Job(params, code, out, distance), where))
            refinement[len(jobs) - 1] = memoryview(data)[chunk.length - chunk.refinement :]
        for (entry, _), fine in zip(symbols, _core.decode_floats([one for _, one in symbols]), strict=True):
            if not fine:
                raise DamagedFileError(f"tensor {entry.name!r} is damaged: a chunk does not decode")
        good = _core.decode([job for _, job, _ in jobs])
        for number, ((part, job, where), fine) in enumerate(zip(jobs, good, strict=True)):
            owner = part.owner
            form = owner.entry.form
            base = None if owner.base is None else owner.base_flat[where]
            if fine and form is not None and form.method in exact.REFINED:
                fine = exact.join(form, owner.entry.dtype, job.out, refinement[number], owner.flat[where], base)
            elif fine and form is not None and form.method == exact.MULTIPLES:
                fine = exact.multiply(form, job.out, refinement[number], owner.flat[where])
            if not fine:
                raise DamagedFileError(f"tensor {owner.entry.name!r} is damaged: a chunk does not decode")
            if form is not None:
                check_bytes(owner.entry, owner.flat[where])
                if form.method == exact.QUANTIZED_DIFFERENCE and base is not None:
                    add_difference(base, job.out, owner.flat[where])
                continue
            if owner.entry.has_scales:
                apply_scales(job.out, part.owner.entry, where.start)
            if part.owner.flat.dtype != job.out.dtype:
                with np.errstate(over="ignore"):  # beyond the dtype's range, only in a hostile file
                    part.owner.flat[where] = job.out.astype(part.owner.flat.dtype)


def _copied(array: Array, entry: Entry, into: Mapping[str, Array]) -> Array:
    """An array of its own for a tensor that equals another one."""
    copied = entry.values(_room(entry, into.get(entry.name)))
    copied[...] = array
    return copied


def check_bytes(entry: Entry, values: Array) -> None:
    """Raise :class:`DamagedFileError` if bools are neither 0 nor 1, which numpy takes for granted that they are, or
    narrow values have bits that do not count.
    """
    if entry.dtype.itemsize == 1 and has_odd_bytes(values.view(entry.dtype)):
        what = "a bool is neither 0 nor 1" if entry.dtype == np.bool_ else f"a byte is no {entry.dtype}"
        raise DamagedFileError(f"tensor {entry.name!r} is damaged: {what}")


def add_difference(base: Array, difference: npt.NDArray[np.float32], out: Array) -> None:
    """``base`` plus ``difference`` into ``out``: in float64 if that is the dtype, else in float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the dtype's range, only in a hostile file
        out[:] = (
            base.astype(np.result_type(base.dtype if base.dtype.kind == "f" else np.float32, np.float32)) + difference
        )


def apply_scales(values: npt.NDArray[Any], entry: Entry, start: int) -> None:
    """Multiply the float32 ``values`` of whole rows, from element ``start`` on, by the factors of rows and columns.

    First by that of the row, then by that of the column, each product rounded: FORMAT.md says so. Chunks hold whole
    rows, which was checked when the index was read.
    """
    rows = values.reshape(-1, math.prod(entry.shape[1:]))
    with np.errstate(over="ignore", under="ignore"):  # beyond float32, only in a hostile file
        if entry.row_scales:
            first = start // rows.shape[1]
            scales = np.frombuffer(entry.row_scales, np.int8)[first : first + len(rows)]
            rows *= scale_factors(scales)[:, None]
        if entry.column_scales:
            rows *= scale_factors(np.frombuffer(entry.column_scales, np.int8))


def _counter(progress: OnProgress | None, total: int) -> Count | None:
    """Adds up bytes for ``progress``."""
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


@dataclass
class _Decoding:
    """A tensor on its way."""

    entry: Entry
    flat: Array
    base: Array | None = None
    futures: list[Future[None]] = field(default_factory=list)

    @property
    def base_flat(self) -> Array:
        """The base's tensor, flat; that of a difference is there."""
        assert self.base is not None
        return self.base.reshape(-1)

    def wait(self, count: Count | None) -> tuple[Entry, Array]:
        nbytes, pieces = self.entry.nbytes, max(len(self.futures), 1)
        for number in range(pieces):
            if self.futures:
                self.futures[number].result()
            if count is not None:
                count(nbytes * (number + 1) // pieces - nbytes * number // pieces)
        if self.entry.method == exact.UNCHANGED:
            self.flat[:] = self.base_flat
        return self.entry, self.entry.values(self.flat)


@dataclass
class _Part:
    """A chunk of a tensor on its way."""

    owner: _Decoding
    number: int


def _size_of(where: slice) -> int:
    return int(where.stop - where.start)


def _room(entry: Entry, given: Array | None) -> Array:
    """Memory for a tensor, flat: that of the array given, if it can be used."""
    usable = given is not None and given.flags.c_contiguous and given.flags.writeable and not entry.is_packed
    if given is not None and usable and (given.dtype, given.shape) == (entry.value_dtype, entry.value_shape):
        return given.reshape(-1).view(entry.dtype)
    try:
        return np.empty(entry.size, entry.dtype)
    except (MemoryError, ValueError):
        raise LimitError(f"tensor {entry.name!r} takes {entry.nbytes} bytes, more than this machine has") from None


def open_path(path: str | os.PathLike[str], *, max_bytes: int | None = None, threads: int | None = None) -> OpenFile:
    """Open a .dcb file. Errors name the path."""
    with reading(path):
        file = Path(path).open("rb")  # noqa: SIM115 - the OpenFile closes it
    try:
        return OpenFile(file, name=os.fspath(path), max_bytes=max_bytes, threads=threads)
    except BaseException:
        file.close()
        raise


def open_bytes(data: bytes | bytearray | memoryview, *, max_bytes: int | None, threads: int | None) -> OpenFile:
    """Open a .dcb file that is in memory."""
    opened = OpenFile(io.BytesIO(data), max_bytes=max_bytes, threads=threads)
    opened.memory = data if isinstance(data, bytes) else None  # others may change meanwhile
    return opened
