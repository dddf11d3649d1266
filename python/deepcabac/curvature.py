"""How much a change of each weight hurts: what ``deepcabac.torch.calibrate`` measures, and its file. numpy alone.

The file is a safetensors file with float32 tensors ``<name>.columns``, ``<name>.rows`` and ``<name>.diagonal``; its
metadata holds a format version, the counts, every name with its total, and the notes.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .checkpoint.base import Float32, TensorSpec, compact_json, parse_json
from .checkpoint.safetensors_file import SafetensorsReader, SafetensorsStream
from .errors import CheckpointError, DamagedFileError, OptionError, UnsupportedError, naming

__all__ = ["Curvature", "Factors"]

#: What tells these files from other safetensors files.
FORMAT = "deepcabac.curvature"
VERSION = 1
_PARTS = ("columns", "rows", "diagonal")
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class Factors:
    """The curvature of the loss in one tensor, per sample.

    A matrix W of r rows (dimension 0) and d columns (the rest, flattened; for a convolution with groups, of one
    group) has ``columns`` and ``rows``, which are sums and matter up to a factor only: scaled to a mean of 1 on their
    diagonals, A and G, they say that a change D of W raises the loss by about ``total / (r d) * trace(G D A D^T) / 2``.
    Matrices may be stacked in a tensor of more dimensions that is no kernel: d is the last, and each is a group.
    Any other tensor has a ``diagonal``: D raises the loss by about ``sum(diagonal * D^2) / 2``.
    """

    columns: Float32 | None
    """[2, groups, d, d]: from even and from odd samples, so that noise in one does not show in the other."""
    rows: Float32 | None
    """[2, r, r] likewise, or [r], of all groups together, if only the diagonal is known."""
    total: float
    """The sum of the curvature over all elements: the mean over samples of the squared gradient's sum."""
    diagonal: Float32 | None
    """The mean over samples of the squared gradient, of the tensor's own shape."""


@dataclass(frozen=True)
class _Entry:
    """A tensor without its values."""

    total: float
    shapes: dict[str, tuple[int, ...]]  #: by part


class Curvature(Mapping[str, Factors]):
    """:class:`Factors` by state-dict name. Tied tensors have one, under each of their names.

    Opened with :meth:`load`, it reads a tensor's factors from the file whenever they are asked for and keeps none;
    close it with :meth:`close` or use it in ``with``. Any number of threads may read.
    """

    samples: int  #: how many samples were seen
    loss: str  #: "outputs", "logits", "likelihood" or "custom"
    notes: tuple[str, ...]  #: what to know before relying on it, one sentence each
    unreached: tuple[str, ...]  #: names of tensors that the samples never used; they have no factors

    def __init__(
        self,
        factors: Mapping[str, Factors],
        *,
        samples: int,
        loss: str,
        notes: Iterable[str] = (),
        unreached: Iterable[str] = (),
    ) -> None:
        """``factors`` by name, in memory; tied names share one object. Raises :class:`OptionError`."""
        self.samples, self.loss = int(samples), str(loss)
        self.notes, self.unreached = tuple(notes), tuple(unreached)
        self._owners: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}
        self._held: dict[str, Factors] = {}
        self._elsewhere: dict[str, Curvature] = {}
        self._summed: dict[str, list[Curvature]] = {}
        self._file: SafetensorsReader | None = None
        self._lock = threading.Lock()
        if self.samples < 1:
            raise OptionError(f"samples must be at least 1, not {samples!r}")
        first: dict[int, str] = {}
        for name, held in factors.items():
            owner = self._owners[name] = first.setdefault(id(held), name)
            if owner != name:
                continue
            parts = {part: value for part in _PARTS if (value := getattr(held, part)) is not None}
            for part, value in parts.items():
                if not isinstance(value, np.ndarray) or value.dtype != np.float32 or not np.isfinite(value).all():
                    raise OptionError(f"tensor {name!r}: {part} must be a float32 array of finite values")
            self._entries[name] = _Entry(float(held.total), {part: value.shape for part, value in parts.items()})
            if problem := _problem(self._entries[name]):
                raise OptionError(f"tensor {name!r}: {problem}")
            self._held[name] = held

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Curvature:
        """Open a file that :meth:`save` wrote. Only its header is read.

        Raises :class:`DamagedFileError`, :class:`CheckpointError` (it cannot be read, is another kind of file, or a
        calibration that was interrupted), or :class:`UnsupportedError` (a newer version).
        """
        curvature, metadata = cls.open_any(path)
        if "unfinished" in metadata:
            curvature.close()
            raise CheckpointError(
                f"{path}: is a calibration that was interrupted; call calibrate(..., checkpoint=...) to continue it"
            )
        return curvature

    @classmethod
    def joined(cls, parts: Iterable[Curvature], order: Iterable[str], *, samples: int, loss: str) -> Curvature:
        """The tensors of several, in ``order``, left where they are until they are read. For ``calibrate``."""
        result = cls({}, samples=samples, loss=loss)
        where = {name: part for part in parts for name in part}
        for name in order:
            if name in where:
                part = where[name]
                owner = result._owners[name] = part._owners[name]
                result._entries[owner] = part._entries[owner]
                result._elsewhere[owner] = part
        return result

    @classmethod
    def merged(cls, parts: Iterable[Curvature]) -> Curvature:
        """The curvature of all samples together, from calibrations of one model on different samples.

        So machines can calibrate side by side, each with some of the samples and a ``seed`` of its own. ``parts`` are
        read when factors are asked for, or the result is saved, and must stay open until then. Up to rounding and the
        random directions, the result is that of one calibration on all samples.

        Raises :class:`OptionError` if there are no parts, or they are not of one model, loss and other arguments.
        """
        parts = list(parts)
        if not parts:
            raise OptionError("there is no curvature to merge")
        result = cls({}, samples=sum(part.samples for part in parts), loss=parts[0].loss)
        result.notes = tuple(f"part {number}: {note}" for number, part in enumerate(parts, 1) for note in part.notes)
        holding: dict[str, list[Curvature]] = {}
        for number, part in enumerate(parts, 1):
            if part.loss != result.loss:
                raise OptionError(f"part {number} was measured with loss {part.loss!r}, the first with {result.loss!r}")
            known = {*part, *part.unreached}
            if other := next((name for one in parts for name in (*one, *one.unreached) if name not in known), None):
                raise OptionError(f"part {number} is of another model: it has no tensor {other!r}")
            for name, owner in part._owners.items():
                if result._owners.setdefault(name, owner) != owner:
                    raise OptionError(f"part {number} is of another model: {name!r} is tied to another tensor there")
                if name == owner:
                    holding.setdefault(name, []).append(part)
        for name, having in holding.items():
            if len({str(part._entries[name].shapes) for part in having}) > 1:
                # A tensor whose gradients were zero all along has a diagonal, which adds nothing.
                having = [part for part in having if part._entries[name].total]
            shapes = having[0]._entries[name].shapes
            if any(part._entries[name].shapes != shapes for part in having):
                raise OptionError(f"tensor {name!r}: the parts are of different models or arguments")
            total = math.fsum(part._entries[name].total * part.samples for part in having) / result.samples
            result._entries[name] = _Entry(total, shapes)
            result._summed[name] = having
        result.unreached = tuple(name for name in parts[0].unreached if name not in result)
        return result

    @classmethod
    def open_any(cls, path: str | os.PathLike[str]) -> tuple[Curvature, dict[str, str]]:
        """Open a finished or unfinished file; also return its metadata. For ``calibrate``."""
        file = SafetensorsReader(path)
        try:
            with naming(str(path)):
                return cls._read(file), dict(file.metadata or {})
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, file: SafetensorsReader) -> Curvature:
        metadata = file.metadata or {}
        if metadata.get("format") != FORMAT:
            raise CheckpointError("is not a file of Curvature.save; give the file that a calibration was saved to")
        if metadata.get("version") != str(VERSION):
            raise UnsupportedError(
                f"has version {metadata.get('version')!r}, and this release reads {VERSION}; update deepcabac"
            )
        header = _parse(metadata, "header", dict)
        names = _parse(metadata, "names", dict)
        result = cls({}, samples=1, loss="")
        samples, loss = header.get("samples"), header.get("loss")
        if type(samples) is not int or samples < 1 or not isinstance(loss, str):
            raise DamagedFileError("the counts in its metadata are damaged; calibrate again")
        result.samples, result.loss = samples, loss
        for field in ("notes", "unreached"):
            texts = header.get(field)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise DamagedFileError(f"the {field} in its metadata are damaged; calibrate again")
            setattr(result, field, tuple(texts))
        left = {spec.name: spec for spec in file.specs}
        for name, value in names.items():
            if isinstance(value, str):
                if value not in result._entries:
                    raise DamagedFileError(f"tensor {name!r} is tied to {value!r}, which does not precede it")
                result._owners[name] = value
                continue
            parts = {part: left.pop(f"{name}.{part}", None) for part in _PARTS}
            specs = {part: spec for part, spec in parts.items() if spec is not None}
            if any(spec.dtype != _FLOAT32 for spec in specs.values()):
                raise DamagedFileError(f"tensor {name!r} is not of float32; calibrate again")
            if type(value) is not float:
                raise DamagedFileError(f"tensor {name!r} has no total; calibrate again")
            entry = _Entry(float(value), {part: spec.shape for part, spec in specs.items()})
            if problem := _problem(entry):
                raise DamagedFileError(f"tensor {name!r}: {problem}; calibrate again")
            result._entries[name] = entry
            result._owners[name] = name
        if left:
            raise DamagedFileError(f"tensor {next(iter(left))!r} belongs to no name; calibrate again")
        result._file = file
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into a file, which appears whole or not at all. The same content gives the same bytes.

        Raises :class:`CheckpointError` (it cannot be written) or :class:`UnsupportedError` (a name cannot be stored).
        """
        self.write(path, {})

    def write(self, path: str | os.PathLike[str], more: Mapping[str, str]) -> None:
        """:meth:`save` with further metadata. For ``calibrate``."""
        header = {"samples": self.samples, "loss": self.loss, "notes": self.notes, "unreached": self.unreached}
        names = {name: self._entries[name].total if owner == name else owner for name, owner in self._owners.items()}
        metadata = {"format": FORMAT, "version": str(VERSION), **more}
        try:
            metadata["header"] = compact_json(header).decode()
            metadata["names"] = compact_json(names).decode()
        except UnicodeEncodeError as error:
            raise UnsupportedError(f"{path}: a tensor name holds half a UTF-16 pair; rename it") from error
        specs = [
            TensorSpec(f"{name}.{part}", _FLOAT32, entry.shapes[part])
            for name, entry in self._entries.items()
            for part in _PARTS
            if part in entry.shapes
        ]
        stream = SafetensorsStream(Path(path), specs, metadata)
        with stream.file:
            for name in self._entries:
                factors = self[name]
                for part in _PARTS:
                    if (value := getattr(factors, part)) is not None:
                        stream.put(f"{name}.{part}", np.ascontiguousarray(value, _FLOAT32))

    def names(self) -> list[str]:
        """The names of all tensors with factors, in the state dict's order."""
        return list(self._owners)

    def __getitem__(self, name: str) -> Factors:
        """The factors of one tensor. Raises KeyError, or DamagedFileError if the file's values are damaged."""
        owner = self._owners[name]
        if owner in self._held:
            return self._held[owner]
        if owner in self._elsewhere:
            return self._elsewhere[owner][owner]
        entry = self._entries[owner]
        if owner in self._summed:
            return self._sum(owner, entry)
        with self._lock:
            if self._file is None:
                raise OptionError(f"tensor {name!r} cannot be read: the curvature's file is closed; load it again")
            file = self._file
            arrays: dict[str, Float32] = {part: file.read(f"{owner}.{part}") for part in entry.shapes}
        for part, array in arrays.items():
            if not np.isfinite(array).all():
                raise DamagedFileError(f"{file.path}: {part} of tensor {name!r} is not finite; calibrate again")
        return Factors(arrays.get("columns"), arrays.get("rows"), entry.total, arrays.get("diagonal"))

    def _sum(self, owner: str, entry: _Entry) -> Factors:
        """The factors of a tensor in all parts together: of sums the sum, of means over samples the mean."""
        sums: dict[str, Float32] = {part: np.zeros(shape, np.float32) for part, shape in entry.shapes.items()}
        for one in self._summed[owner]:
            factors = one[owner]
            for part, array in sums.items():
                weight = one.samples / self.samples if part == "diagonal" else 1
                array += np.float32(weight) * getattr(factors, part)
        return Factors(sums.get("columns"), sums.get("rows"), entry.total, sums.get("diagonal"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: object) -> bool:
        return name in self._owners  # without reading the file, as Mapping would

    __eq__ = object.__eq__  # Mapping's would read and compare everything, and arrays have no single answer
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Curvature of {len(self)} tensors from {self.samples} samples, loss {self.loss!r}>"

    def close(self) -> None:
        """Close the file, if there is one. Factors already handed out stay valid."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Curvature:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse(metadata: Mapping[str, str], field: str, kind: type) -> Any:
    value = parse_json(metadata.get(field, "").encode("utf-8", "replace"), f"{field} in its metadata", DamagedFileError)
    if not isinstance(value, kind):
        raise DamagedFileError(f"{field} in its metadata is damaged; calibrate again")
    return value


def _problem(entry: _Entry) -> str | None:
    """What is wrong with an entry, if anything."""
    if not math.isfinite(entry.total) or entry.total < 0:
        return "the total must be finite and not negative"
    columns, rows = entry.shapes.get("columns"), entry.shapes.get("rows")
    if (columns is None) != (rows is None):
        return "columns and rows come together"
    if columns is None and "diagonal" not in entry.shapes:
        return "there are neither factors nor a diagonal"
    if columns is not None and (len(columns) != 4 or columns[0] != 2 or columns[2] != columns[3]):
        return f"columns must have shape [2, groups, d, d], not {list(columns)}"
    if rows is not None and len(rows) != 1 and (len(rows) != 3 or rows[0] != 2 or rows[1] != rows[2]):
        return f"rows must have shape [2, r, r] or [r], not {list(rows)}"
    return None
