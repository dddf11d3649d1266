"""What an update is a difference to: a checkpoint, a .dcb file (an update itself, perhaps), or arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..checkpoint.base import Array, TensorSpec
from ..errors import OptionError
from .container import Entry, digest_part


class Base:
    """Tensors by name, as an update's writer and reader need them."""

    def __init__(
        self,
        name: str,
        specs: Sequence[TensorSpec],
        read: Callable[[str], Array],
        close: Callable[[], None] | None = None,
    ) -> None:
        """``name`` is that of a file, for people and as a hint; ``read`` returns the tensor of a name in ``specs``."""
        self.name = name
        self.close: Callable[[], None] = close or (lambda: None)
        self._specs = {spec.name: spec for spec in specs}
        self._read = read

    def like(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
        """The tensor of this name, if it has this dtype and shape."""
        spec = self._specs.get(name)
        if spec is None or (spec.dtype, tuple(spec.shape)) != (dtype, shape):
            return None
        return np.ascontiguousarray(self._read(spec.tied_to or name)).reshape(shape)

    def tensor(self, entry: Entry) -> Array:
        """The tensor that ``entry`` changes. Raises :class:`OptionError` if there is none of its dtype and shape."""
        array = self.like(entry.name, entry.value_dtype, entry.value_shape)
        if array is None:
            raise OptionError(f"the base {self.name or 'given'} has no tensor {entry.name!r} of this type and shape")
        return array

    def check(self, entries: Sequence[Entry], digest: bytes) -> None:
        """Raise :class:`OptionError` unless ``entries`` change the tensors that the update was made from."""
        found = Digest()
        for entry in entries:
            found.add(entry.name, self.tensor(entry))
        if found.value != digest:
            raise OptionError(
                f"the base {self.name or 'given'} is not the one that the update was made from: "
                f"its tensors hash to {found.value.hex()[:12]}, not {digest.hex()[:12]}"
            )


class Digest:
    """SHA-256 of the tensors that an update changes, in the order of its index."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, array: Array) -> None:
        """Take in a tensor of the base."""
        self._hash.update(digest_part(name, array.dtype, array.shape))
        self._hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    @property
    def value(self) -> bytes:
        """Of what was taken in so far."""
        return self._hash.digest()
