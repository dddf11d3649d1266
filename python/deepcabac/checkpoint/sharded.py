"""Sharded safetensors: an index, ``NAME.safetensors.index.json``, that says which file beside it holds which tensor."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ..atomic import AtomicFile, commit_together, reading
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
from .safetensors_file import MAX_HEADER, SafetensorsReader, SafetensorsStream, parse_metadata

SUFFIX = ".safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # where there are no original shards to follow; the Hugging Face default

# A plain file name: nothing that leaves the folder, on any operating system, and nothing hidden.
_SHARD_NAME = re.compile(r"[^./\\:\0-\x1f][^/\\:\0-\x1f]{0,200}\.safetensors")


class ShardedReader(CheckpointReader):
    """Reads an index and its shards, one open file at a time. ``specs`` go shard by shard.

    A tensor that lies in a shard although the index does not list it is read too. ``extra`` holds the shards' names,
    tensor counts and metadata, and the index apart from its map of names, which the specs imply.
    """

    kind = "safetensors-sharded"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        weight_map: dict[str, str] = index.pop("weight_map")
        shards = list(dict.fromkeys(weight_map.values()))
        for shard in shards:
            if not _SHARD_NAME.fullmatch(shard):
                raise CheckpointError(
                    f"{self.path}: names the shard {shard!r}, which is not a plain .safetensors file name"
                )
        self.specs = []
        self._shard_of: dict[str, str] = {}
        self._open: tuple[str, SafetensorsReader] | None = None
        described = []
        for shard in sorted(shards):
            with self._open_shard(shard) as reader:
                described.append({"name": shard, "tensors": len(reader.specs), "metadata": reader.metadata})
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
        self.extra = compact_json(
            {
                "stem": _stem(self.path),
                "sorted": names == sorted(names),
                "index": index,
                "shards": described,
            }
        )

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

    def _open_shard(self, shard: str) -> SafetensorsReader:
        path = self.path.with_name(shard)
        if not path.exists():
            raise CheckpointError(
                f"{path}: no such file, but {self.path.name} lists it; fetch every shard of the checkpoint"
            )
        return SafetensorsReader(path)


def _stem(path: Path) -> str:
    """The file name without ``.safetensors.index.json``."""
    return path.name[: -len(SUFFIX)] if path.name.lower().endswith(SUFFIX) else path.name.split(".")[0]


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

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True) -> None:
        super().__init__(specs)
        plan = _parse_plan(extra, path, self.specs) if extra else _default_plan(path, self.specs)
        self._streams: list[SafetensorsStream] = []
        self._stream_of: dict[str, SafetensorsStream] = {}
        self._index: AtomicFile | None = None
        weight_map: dict[str, str] = {}
        begin = 0
        try:
            for shard in plan["shards"]:
                part = self.specs[begin : begin + shard["tensors"]]
                begin += shard["tensors"]
                place = path.with_name(shard["name"])
                stream = SafetensorsStream(place, part, shard["metadata"], overwrite=overwrite)
                self._streams.append(stream)
                for spec in part:
                    self._stream_of[spec.name] = stream
                    weight_map[spec.name] = shard["name"]
            names = sorted(weight_map) if plan["sorted"] else list(weight_map)
            index = {**plan["index"], "weight_map": {name: weight_map[name] for name in names}}
            self._index = AtomicFile(path, overwrite=overwrite)
            self._index.file.write(json.dumps(index, indent=2).encode() + b"\n")
        except BaseException:
            self.abort()
            raise

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):  # the format knows no ties
            self._stream_of[place.name].put(place.name, array)

    def _files(self) -> list[AtomicFile]:
        """Shards first: an index is only valid once they are there."""
        return [stream.file for stream in self._streams] + ([self._index] if self._index else [])

    def _commit(self) -> None:
        commit_together(self._files())

    def abort(self) -> None:
        for file in self._files():
            file.abort()


def _default_plan(path: Path, specs: list[TensorSpec]) -> dict[str, Any]:
    """Cut ``specs`` into shards in order, as Hugging Face's own libraries name them."""
    counts, filled = [0], 0
    for spec in specs:
        if counts[-1] and filled + spec.nbytes > SHARD_BYTES:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += spec.nbytes
    names = [f"{_stem(path)}-{number + 1:05}-of-{len(counts):05}.safetensors" for number in range(len(counts))]
    return {
        "sorted": True,
        "index": {"metadata": {"total_size": sum(spec.nbytes for spec in specs)}},
        "shards": [
            {"name": name, "tensors": count, "metadata": None} for name, count in zip(names, counts, strict=True)
        ],
    }


def _parse_plan(extra: bytes, path: Path, specs: list[TensorSpec]) -> dict[str, Any]:
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
        if not _SHARD_NAME.fullmatch(shard["name"]):
            raise DamagedFileError(
                f"refused: the stored shard name {shard['name']!r} is not a plain .safetensors file name"
            )
    if len({shard["name"].casefold() for shard in shards}) != len(shards):  # some file systems ignore case
        raise DamagedFileError("the stored index of shards uses a name twice; the file is damaged")
    old, new = plan["stem"], _stem(path)
    if old != new:
        for shard in shards:
            if old and shard["name"].startswith(old):
                shard["name"] = new + shard["name"][len(old) :]
            elif path.with_name(shard["name"]).exists():
                raise CheckpointError(
                    f"{path.with_name(shard['name'])}: exists, and is not part of {path.name}; choose an empty folder"
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
        found |= shard["metadata"] or {}
    return found or None


def _is_plan(plan: Any) -> bool:
    return (
        isinstance(plan, dict)
        and plan.keys() == {"stem", "sorted", "index", "shards"}
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
            and (shard["metadata"] is None or is_string_map(shard["metadata"]))
            for shard in plan["shards"]
        )
    )
