"""Where tensors come from: arrays in memory, or anything that gives them one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .checkpoint.base import DTYPES, EXACT_DTYPES, Array, TensorSpec, compact_json, is_string_map
from .errors import OptionError, UnsupportedError
from .tensors import as_array

#: From all tensors as they will be decoded to new values of some, which make up for what the others lost.
Correct = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Source(Protocol):
    """Where tensors come from: a CheckpointReader, or arrays in memory."""

    kind: str
    specs: list[TensorSpec]
    extra: bytes

    def read(self, name: str) -> Array:
        """The tensor called ``name``."""

    def roles(self) -> dict[str, str]:
        """What the structure around the tensors says they are: :meth:`CheckpointReader.roles`."""

    def without(self, names: Collection[str]) -> bytes:
        """``extra`` without some tensors: :meth:`CheckpointReader.without`."""


class Arrays:
    """Arrays in memory, as a source. The same array under two names is tied."""

    def __init__(self, tensors: Mapping[str, npt.ArrayLike], metadata: Mapping[str, str] | None = None) -> None:
        """With ``metadata``, as if they came from a safetensors file that has it."""
        if not isinstance(tensors, Mapping):
            raise OptionError(f"tensors must be a mapping of names to arrays, not {type(tensors).__name__}")
        self.kind, self.extra = described(metadata)
        self._arrays: dict[str, Array] = {}
        self.specs: list[TensorSpec] = []
        seen: dict[tuple[Any, ...], str] = {}
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise OptionError(f"names of tensors must be strings, not {name!r}")
            array = _plain(name, as_array(name, value))
            key = (array.__array_interface__["data"][0], array.dtype, array.shape)
            tied_to = seen.get(key) if array.size else None
            if tied_to is None:
                seen[key] = name
                self._arrays[name] = array
            self.specs.append(TensorSpec(name, array.dtype, array.shape, tied_to))

    def read(self, name: str) -> Array:
        return self._arrays[name]

    def roles(self) -> dict[str, str]:
        return {}

    def without(self, names: Collection[str]) -> bytes:
        return self.extra


def described(metadata: Mapping[str, str] | None) -> tuple[str, bytes]:
    """Kind and extra of a source with this metadata, strings by name. Raises :class:`OptionError` for other values."""
    if metadata is None:
        return "", b""
    if not is_string_map(metadata) or not all(isinstance(name, str) for name in metadata):
        raise OptionError("metadata must map strings to strings: use json.dumps for other values")
    return "safetensors", compact_json(dict(metadata))


def _plain(name: str, array: Array) -> Array:
    """C-contiguous and little-endian, of a supported dtype."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in DTYPES and array.dtype not in EXACT_DTYPES.values():
        raise UnsupportedError(f"tensor {name!r} has dtype {array.dtype}, which a .dcb file cannot hold")
    return np.ascontiguousarray(array).reshape(array.shape)


class Part:
    """A source without some of its tensors, which are an optimizer's."""

    def __init__(self, source: Source, dropped: Collection[str]) -> None:
        self.kind, self._source, self._dropped = source.kind, source, set(dropped)
        self.extra = source.without(dropped)
        own = [spec for spec in source.specs if spec.name not in dropped]
        firsts: dict[str, str] = {}  # the first that is left of those tied to one that is not
        self._called: dict[str, str] = {}  # how such a first one is read
        self.specs: list[TensorSpec] = []
        for spec in own:
            if spec.tied_to in dropped:
                first = firsts.setdefault(str(spec.tied_to), spec.name)
                self._called[first] = str(spec.tied_to)
                spec = replace(spec, tied_to=None if first == spec.name else first)
            self.specs.append(spec)

    def read(self, name: str) -> Array:
        return self._source.read(self._called.get(name, name))

    def roles(self) -> dict[str, str]:
        return self._source.roles()

    def without(self, names: Collection[str]) -> bytes:
        return self._source.without(self._dropped.union(names))


class Corrected:
    """A source some of whose tensors have other values."""

    def __init__(self, source: Source, changed: Mapping[str, Array]) -> None:
        """Raise :class:`OptionError` if what changed is not a tensor of the source, of its shape."""
        self.kind, self.specs, self.extra = source.kind, source.specs, source.extra
        self._source = source
        own = {spec.name: spec for spec in source.specs if spec.tied_to is None}
        self.changed: dict[str, Array] = {}
        for name, array in changed.items():
            if name not in own or np.shape(array) != own[name].shape:
                raise OptionError(f"the correction has {name!r} of shape {np.shape(array)}: there is no such tensor")
            if not np.isfinite(array).all():
                raise OptionError(f"the correction of {name!r} is not finite")
            self.changed[name] = np.asarray(array).astype(own[name].dtype)

    def read(self, name: str) -> Array:
        return self.changed[name] if name in self.changed else self._source.read(name)

    def roles(self) -> dict[str, str]:
        return self._source.roles()

    def without(self, names: Collection[str]) -> bytes:
        return self._source.without(names)
