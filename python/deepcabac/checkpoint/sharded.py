"""Checkpoints in several files: an index, ``NAME.safetensors.index.json``, that says which file beside it holds which
tensor. The files are safetensors or, with ``NAME.bin.index.json``, PyTorch's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..atomic import AtomicFile, commit_together, reading, writing_to
from ..errors import CheckpointError, DamagedFileError
from .base import (
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    compact_json,
    is_string_map,
    open_binary,
    parse_json,
)
from .safetensors_file import MAX_HEADER, SafetensorsReader, SafetensorsStream, checked_metadata, parse_metadata
from .suffixes import suffix_of_path
from .torch_file import TorchReader, TorchWriter

SHARD_BYTES = 5_000_000_000  # where there are no original shards to follow; the Hugging Face default

# A file in the index's folder or in one inside it: nothing that leads elsewhere, on any operating system, and nothing
# hidden.
_SHARD_NAME = re.compile(
    r"([^./\\:\0-\x1f][^/\\:\0-\x1f]{0,200}/){0,8}[^./\\:\0-\x1f][^/\\:\0-\x1f]{0,200}\.(safetensors|bin|pt|pth)"
)


class _Shard(Protocol):
    """A shard being written."""

    file: AtomicFile

    def put(self, name: str, array: Array) -> None:
        """Write the values of one tensor (C-contiguous)."""

    def finish(self) -> None:
        """Write what comes after the tensors."""

    def abort(self) -> None:
        """Remove the file."""


class ShardedReader(CheckpointReader):
    """Reads an index and its shards, one open file at a time. ``specs`` go shard by shard.

    A tensor that lies in a shard although the index does not list it is read too. ``extra`` holds the shards' names,
    tensor counts and metadata, and the index apart from its map of names, which the specs imply.
    """

    kind = "safetensors-sharded"
    usual_suffix = ".safetensors.index.json"
    shard_suffixes: tuple[str, ...] = (".safetensors",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        weight_map: dict[str, str] = index.pop("weight_map")
        shards = list(dict.fromkeys(weight_map.values()))
        for shard in shards:
            if not _is_shard_name(shard, self.shard_suffixes):
                raise CheckpointError(
                    f"{self.path}: names the shard {shard!r}, which is not a {self.shard_suffixes[0]} file beside or "
                    "below it"
                )
        self.specs = []
        self._shard_of: dict[str, str] = {}
        self._open: tuple[str, CheckpointReader] | None = None
        described = []
        for shard in sorted(shards):
            with self._open_shard(shard) as reader:
                metadata = parse_json(reader.extra, str(self.path), CheckpointError) if reader.extra else None
                described.append({"name": shard, "tensors": len(reader.specs), "metadata": metadata})
                for spec in reader.specs:
                    if spec.name in self._shard_of:
                        raise CheckpointError(
                            f"{self.path}: tensor {spec.name!r} is in both {self._shard_of[spec.name]} and {shard}; "
                            "keep the shards of one checkpoint only"
                        )
                    self._shard_of[spec.name] = shard
                self.specs += reader.specs
        for name, shard in weight_map.items():
            if self._shard_of.get(name) != shard:
                raise CheckpointError(
                    f"{self.path}: says that tensor {name!r} is in {shard}, but it is not; fetch the shards again"
                )
        names = list(weight_map)
        plan = {"stem": _stem(self.path), "sorted": names == sorted(names), "index": index, "shards": described}
        suffix = suffix_of_path(self.path)
        self.extra = compact_json(plan if suffix in ("", self.usual_suffix) else {**plan, "suffix": suffix})

    def without(self, names: Collection[str]) -> bytes:
        plan = json.loads(self.extra)
        for shard in plan["shards"]:
            shard["tensors"] -= sum(self._shard_of[name] == shard["name"] for name in names)
        return compact_json(plan)

    def read(self, name: str) -> Array:
        shard = self._shard_of[name]
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = (shard, self._open_shard(shard))
        return self._open[1].read(name)

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _open_shard(self, shard: str) -> CheckpointReader:
        path = self.path.parent / shard
        if not path.exists():
            raise CheckpointError(
                f"{path}: no such file, but {self.path.name} lists it; fetch every shard of the checkpoint"
            )
        return self._reader(path)

    def _reader(self, path: Path) -> CheckpointReader:
        return SafetensorsReader(path)


class ShardedTorchReader(ShardedReader):
    """Reads an index of PyTorch's files and these, likewise; what they hold beside tensors is kept."""

    kind = "torch-sharded"
    usual_suffix = ".bin.index.json"
    shard_suffixes = (".bin", ".pt", ".pth")

    def _reader(self, path: Path) -> CheckpointReader:
        return TorchReader(path)


def _is_shard_name(name: str, suffixes: tuple[str, ...]) -> bool:
    return _SHARD_NAME.fullmatch(name) is not None and name.endswith(suffixes)


def _stem(path: Path) -> str:
    """The file name without its suffix, such as ``.safetensors.index.json``."""
    suffix = suffix_of_path(path)
    return path.name[: -len(suffix)] if ".index." in suffix else path.name.split(".")[0]


def suffix_of(extra: bytes) -> str:
    """The suffix of the index that a reader's ``extra`` tells of, empty for the usual one.

    Raises :class:`DamagedFileError` if ``extra`` is malformed.
    """
    plan = parse_json(extra, "the stored index of shards", DamagedFileError)
    return str(plan.get("suffix", "")) if isinstance(plan, dict) else ""


def _read_index(path: Path) -> dict[str, Any]:
    """Parse and check the index; ``weight_map`` is a map of strings afterwards."""
    file, size = open_binary(path)
    with file, reading(path):
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise CheckpointError(
            f"{path}: is {size:,} bytes, too large for an index of shards; check that it is the right file"
        )
    index = parse_json(text, f"{path}: the index of shards", CheckpointError)
    if not isinstance(index, dict) or not is_string_map(index.get("weight_map")):
        raise CheckpointError(
            f"{path}: has no map of tensors to shards ('weight_map'); check that it is the right file"
        )
    return index


class ShardedWriter(CheckpointWriter):
    """Writes the shards, then the index that ``path`` names; nothing appears before everything is written.

    Shards get their original names, except that a stem they share with the original index follows the new index's
    stem. A name that follows neither stem and belongs to an existing file is refused, since that file is part of
    something else. Without ``extra`` the tensors are cut into shards of at most ``SHARD_BYTES``.
    """

    _reader: type[ShardedReader] = ShardedReader

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True) -> None:
        super().__init__(specs)
        suffixes = self._reader.shard_suffixes
        plan = _parse_plan(extra, path, self.specs, suffixes) if extra else _default_plan(path, self.specs, suffixes[0])
        self._shards: list[_Shard] = []
        self._shard_of: dict[str, _Shard] = {}
        self._index: AtomicFile | None = None
        self._made: list[Path] = []  # folders, the outermost first
        weight_map: dict[str, str] = {}
        begin = 0
        try:
            for described in plan["shards"]:
                part = self.specs[begin : begin + described["tensors"]]
                begin += described["tensors"]
                place = path.parent / described["name"]
                self._make_folder(place.parent, path)
                shard = self._begin(place, part, described["metadata"], overwrite)
                self._shards.append(shard)
                for spec in part:
                    self._shard_of[spec.name] = shard
                    weight_map[spec.name] = described["name"]
            names = sorted(weight_map) if plan["sorted"] else list(weight_map)
            index = {**plan["index"], "weight_map": {name: weight_map[name] for name in names}}
            self._index = AtomicFile(path, overwrite=overwrite)
            self._index.file.write(json.dumps(index, indent=2).encode() + b"\n")
        except BaseException:
            self.abort()
            raise

    def _begin(self, path: Path, specs: list[TensorSpec], metadata: Any, overwrite: bool) -> _Shard:
        parsed = None if metadata is None else checked_metadata(metadata)
        return SafetensorsStream(path, specs, parsed, overwrite=overwrite)

    def _make_folder(self, folder: Path, path: Path) -> None:
        """Make a shard's folder, which lies in that of the index."""
        with writing_to(folder):
            if not folder.parent.exists() and folder != path.parent:
                self._make_folder(folder.parent, path)
            if not folder.exists() and folder != path.parent:
                folder.mkdir()
                self._made.append(folder)
            inside = folder.resolve().is_relative_to(path.parent.resolve())
        if not inside:
            raise CheckpointError(f"{folder}: leads out of the folder of {path.name}; choose an empty folder")

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):  # the format knows no ties
            self._shard_of[place.name].put(place.name, array)

    def _files(self) -> list[AtomicFile]:
        """Shards first: an index is only valid once they are there."""
        return [shard.file for shard in self._shards] + ([self._index] if self._index else [])

    def _commit(self) -> None:
        for shard in self._shards:
            shard.finish()
        commit_together(self._files())

    def abort(self) -> None:
        for shard in self._shards:
            shard.abort()
        if self._index is not None:
            self._index.abort()
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # no longer empty
                folder.rmdir()
        self._made = []


class _TorchShard:
    """One of PyTorch's files being written. Tensors that are tied within it share their storage."""

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, overwrite: bool) -> None:
        here = {spec.name for spec in specs}
        own = [spec if spec.tied_to in here else replace(spec, tied_to=None) for spec in specs]
        self._own = {spec.name: spec for spec in own if spec.tied_to is None}
        self._writer = TorchWriter(path, own, extra, overwrite=overwrite)
        self.file = self._writer.target

    def put(self, name: str, array: Array) -> None:
        if name in self._own:
            self._writer.put(self._own[name], array)

    def finish(self) -> None:
        self._writer.finish()

    def abort(self) -> None:
        self._writer.abort()


class ShardedTorchWriter(ShardedWriter):
    """Writes PyTorch's files and their index, likewise."""

    _reader = ShardedTorchReader

    def _begin(self, path: Path, specs: list[TensorSpec], metadata: Any, overwrite: bool) -> _Shard:
        return _TorchShard(path, specs, b"" if metadata is None else compact_json(metadata), overwrite)


def _default_plan(path: Path, specs: list[TensorSpec], suffix: str) -> dict[str, Any]:
    """Cut ``specs`` into shards in order, as Hugging Face's own libraries name them."""
    counts, filled = [0], 0
    for spec in specs:
        if counts[-1] and filled + spec.nbytes > SHARD_BYTES:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += spec.nbytes
    names = [f"{_stem(path)}-{number + 1:05}-of-{len(counts):05}{suffix}" for number in range(len(counts))]
    return {
        "sorted": True,
        "index": {"metadata": {"total_size": sum(spec.nbytes for spec in specs)}},
        "shards": [
            {"name": name, "tensors": count, "metadata": None} for name, count in zip(names, counts, strict=True)
        ],
    }


def _parse_plan(extra: bytes, path: Path, specs: list[TensorSpec], suffixes: tuple[str, ...]) -> dict[str, Any]:
    """Check a stored plan, which may come from anyone, against the specs, and settle the shards' names."""
    plan = parse_json(extra, "the stored index of shards", DamagedFileError)
    if not _is_plan(plan):
        raise DamagedFileError("the stored index of shards is not in the form this program writes; the file is damaged")
    shards: list[dict[str, Any]] = plan["shards"]
    if sum(shard["tensors"] for shard in shards) != len(specs):
        raise DamagedFileError(
            "the stored index of shards does not count the tensors that are there; the file is damaged"
        )
    for shard in shards:
        if not _is_shard_name(shard["name"], suffixes):
            raise DamagedFileError(
                f"refused: the stored shard name {shard['name']!r} is not a {suffixes[0]} file beside or below it"
            )
    if len({shard["name"].casefold() for shard in shards}) != len(shards):  # some file systems ignore case
        raise DamagedFileError("the stored index of shards uses a name twice; the file is damaged")
    old, new = plan["stem"], _stem(path)
    if old != new:
        for shard in shards:
            folder, slash, name = shard["name"].rpartition("/")
            if old and name.startswith(old):
                shard["name"] = folder + slash + new + name[len(old) :]
            elif (path.parent / shard["name"]).exists():
                raise CheckpointError(
                    f"{path.parent / shard['name']}: exists, and is not part of {path.name}; choose an empty folder"
                )
    return dict(plan)


def stored_metadata(kind: str, extra: bytes) -> dict[str, str] | None:
    """``__metadata__`` of the safetensors file that gave ``extra``, or of all shards together; None if there is none.

    Raises :class:`DamagedFileError` if it is malformed.
    """
    if kind == SafetensorsReader.kind:
        return parse_metadata(extra)
    if kind != ShardedReader.kind:
        return None
    plan = parse_json(extra, "the stored index of shards", DamagedFileError)
    if not _is_plan(plan):
        raise DamagedFileError("the stored index of shards is not in the form this program writes; the file is damaged")
    found: dict[str, str] = {}
    for shard in plan["shards"]:
        found |= {} if shard["metadata"] is None else checked_metadata(shard["metadata"])
    return found or None


def _is_plan(plan: Any) -> bool:
    return (
        isinstance(plan, dict)
        and plan.keys() - {"suffix"} == {"stem", "sorted", "index", "shards"}
        and isinstance(plan["stem"], str)
        and isinstance(plan["sorted"], bool)
        and isinstance(plan["index"], dict)
        and "weight_map" not in plan["index"]
        and isinstance(plan["shards"], list)
        and all(
            isinstance(shard, dict)
            and shard.keys() == {"name", "tensors", "metadata"}
            and isinstance(shard["name"], str)
            and type(shard["tensors"]) is int
            and shard["tensors"] >= 0
            for shard in plan["shards"]
        )
    )
