"""PyTorch's ``.pt`` / ``.pth`` / ``.bin`` files. Needs torch to read, and to know its own types to write.

A modern file is a zip with a pickle that refers to storages, which are uncompressed members. Its outline, the archive
without the values, is loaded by ``torch.load(weights_only=True)`` onto the "meta" device; that gives every tensor's
place, and the values are then read from the file one tensor at a time. Files that this does not suit (before torch 1.6,
compressed, big-endian) are loaded whole.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import AtomicFile, reading, reason
from ..errors import CheckpointError, UnsupportedError
from . import numpy_values
from .base import (
    OPTIMIZER,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    allocate,
    open_binary,
    own,
    read_into,
    require_dtypes,
)
from .npz import discard_zip, open_zip, write_in_blocks, zip_errors
from .optimizer_state import optimizer_names, without
from .packing import pack, unpack
from .skeleton import Leaf, assemble, dissolve
from .suffixes import suffix_of_path
from .torch_types import PAIR, PAIRS, TYPES, spec_of_torch

_ALIGNMENT = 64  # of storages in the file, as torch itself aligns them for loading with mmap
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest date, so that the same tensors give the same bytes


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"{path}: PyTorch files need torch: pip install 'deepcabac[torch]'") from error
    return torch


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies, as PyTorch sees it: ``start`` is its storage's offset in the file; ``offset`` and
    ``strides`` count elements of ``dtype``.

    The values of a ``negated`` view are the negatives of those stored there, and so it is with conjugated ones.
    """

    start: int
    offset: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    negated: bool
    conjugated: bool


class TorchReader(CheckpointReader):
    """Reads what ``torch.save`` wrote: a state dict, or nested dicts, lists and tuples of tensors, numbers and texts.

    ``extra`` is the structure around the tensors (see ``skeleton.py``). Tensors that share storage, offset, shape and
    strides are tied. Non-contiguous tensors come out contiguous.
    """

    kind = "torch"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._torch = _import_torch(self.path)
        self._file, _ = open_binary(self.path)
        self._loaded: dict[str, Any] | None = None  # the tensors themselves, where they cannot be read one by one
        self._places: dict[str, _Place] = {}
        self._specs: dict[str, TensorSpec] = {}
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        self.specs = list(self._specs.values())

    def _open(self) -> None:
        outline = _make_outline(self._file, self.path)
        tensors = self._locate(outline) if outline else None
        if outline is None or tensors is None:
            # A mapped file costs resident memory, but no more than its size, and less than a copy of it.
            tensors = self._dissolve(self._load(self.path, "cpu", mmap=outline is not None))
            self._loaded = dict(tensors)
        first_at: dict[Any, str] = {}
        for name, tensor in tensors:
            self._add(name, tensor, outline, first_at)

    def _locate(self, outline: _Outline) -> list[tuple[str, Any]] | None:
        """The tensors, without values but with their places; None when torch cannot give these."""
        try:
            root = self._load(io.BytesIO(outline.archive), "meta")
        except CheckpointError:  # damaged, or quantised, or sparse: loading the file itself will tell
            return None
        tensors = self._dissolve(root)
        known = all(not tensor.numel() or _storage_offset(tensor) in outline.records for _, tensor in tensors)
        return tensors if known else None  # an older torch, or a tensor that was saved without values

    def _load(self, source: Path | io.BytesIO, device: str, mmap: bool = False) -> Any:
        try:
            with numpy_values.loading(self._torch):
                return self._torch.load(source, map_location=device, weights_only=True, mmap=mmap)
        except Exception as error:  # a damaged pickle can raise almost anything
            raise _explain(error, self.path) from error

    def _dissolve(self, root: Any) -> list[tuple[str, Any]]:
        suffix = suffix_of_path(self.path).removeprefix(".")
        tensors, self.extra = dissolve(root, self._torch, str(self.path), "" if suffix == "pt" else suffix)
        for name, tensor in tensors:
            self._check(name, tensor)
        return tensors

    def _check(self, name: str, tensor: Any) -> None:
        if tensor.layout != self._torch.strided or tensor.is_nested:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is sparse or nested; convert it with .to_dense() first"
            )
        if tensor.is_quantized or spec_of_torch(name, tensor) is None:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has dtype {tensor.dtype}, which is not supported; convert it first"
            )

    def _add(self, name: str, tensor: Any, outline: _Outline | None, first_at: dict[Any, str]) -> None:
        """Note where one tensor lies, and append its spec."""
        spec = spec_of_torch(name, tensor)
        assert spec is not None
        self._specs[name] = spec
        shape, offset, strides = tuple(tensor.shape), tensor.storage_offset(), tensor.stride()
        dtype = np.dtype("u1") if spec.dtype == PAIR else spec.dtype
        if not tensor.numel():
            return
        if self._loaded is not None or outline is None:
            if tensor.device.type != "cpu":
                raise UnsupportedError(
                    f"{self.path}: tensor {name!r} has no values (device {tensor.device}); save it with its values"
                )
            start = tensor.untyped_storage().data_ptr()
        else:
            start, size = outline.records[_storage_offset(tensor) or 0]
            if (offset + _span(shape, strides)) * dtype.itemsize > size:
                raise CheckpointError(f"{self.path}: tensor {name!r} reaches beyond its storage; the file is damaged")
        place = _Place(start, offset, strides, shape, dtype, tensor.is_neg(), tensor.is_conj())
        tied_to = first_at.setdefault((place, spec.dtype, spec.shape), name)
        self._specs[name] = replace(spec, tied_to=None if tied_to == name else tied_to)
        self._places[name] = place

    def roles(self) -> dict[str, str]:
        return dict.fromkeys(optimizer_names(self.extra, self._specs), OPTIMIZER)

    def without(self, names: Collection[str]) -> bytes:
        return without(self.extra, self._specs, names)

    def read(self, name: str) -> Array:
        spec = self._specs[name]
        if not spec.size:
            return allocate(spec, self.path)
        place = self._places[name]
        array = allocate(TensorSpec(name, place.dtype, place.shape), self.path)
        if self._loaded is None and _is_contiguous(place.shape, place.strides):
            read_into(self._file, place.start + place.offset * place.dtype.itemsize, array, self.path)
        else:
            span = self._span(name, place)
            strides = tuple(stride * place.dtype.itemsize for stride in place.strides)
            array[...] = np.lib.stride_tricks.as_strided(span, place.shape, strides)
        if place.negated:
            np.negative(array, out=array)
        if place.conjugated:
            np.conjugate(array, out=array)
        return own(unpack(array.reshape(-1), spec)) if spec.dtype == PAIR else array

    def _span(self, name: str, place: _Place) -> Array:
        """All elements of the storage from a tensor's first to its last, or more."""
        if self._loaded is not None:
            storage = self._loaded[name].untyped_storage()
            raw = self._torch.empty(0, dtype=self._torch.uint8).set_(storage).numpy()
            item = place.dtype.itemsize
            loaded: Array = raw[place.offset * item : raw.size // item * item].view(place.dtype)
            return loaded
        span = np.empty(_span(place.shape, place.strides), place.dtype)
        read_into(self._file, place.start + place.offset * place.dtype.itemsize, span, self.path)
        return span

    def close(self) -> None:
        self._loaded = None
        self._file.close()


def _storage_offset(tensor: Any) -> int | None:
    """Where the storage of a tensor on the meta device lies in the archive, if torch noted it."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    return offset if isinstance(offset, int) else None


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements of storage lie from the first to the last element of a non-empty tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True)
class _Outline:
    """A file without its values: the same archive, but all storages empty, which torch accepts for the meta device.

    ``records`` maps the offset of each storage in ``archive``, which torch notes, to offset and size in the file. Torch
    could note the offsets in the file itself, but it computes them by rules that only its own files keep to.
    """

    archive: bytes
    records: dict[int, tuple[int, int]]


def _make_outline(file: BinaryIO, path: Path) -> _Outline | None:
    """The outline of a zip file; None when torch has to load the file whole."""
    with reading(path):
        is_zip = file.read(4) == b"PK\3\4"
        file.seek(0)
    if not is_zip:
        return None
    with open_zip(file, path, "a PyTorch file") as archive, zip_errors(path):
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise CheckpointError(f"{path}: holds two records of the same name; the file is damaged")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path}: is a zip file, but not one from torch.save; check that the suffix is right")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members:
            raise UnsupportedError(
                f"{path}: is a TorchScript program; save the weights alone: torch.save(model.state_dict(), ...)"
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            return None
        # Read past zipfile, which insists on checksums that torch may have been told not to compute.
        contents = {
            name: _read_stored(file, info)
            for name, info in members.items()
            if name in (pickles[0], folder + "byteorder", folder + "version")
        }
        if contents.get(folder + "byteorder") == b"big":
            return None
        storages = [info for name, info in members.items() if name.startswith(folder + "data/")]
        outline = io.BytesIO()
        with zipfile.ZipFile(outline, "w") as empty:
            for name, content in contents.items():
                empty.writestr(name, content)
            for info in storages:
                empty.writestr(info.filename, b"")
            records = {
                _data_offset(outline, empty.getinfo(info.filename)): (_data_offset(file, info), info.file_size)
                for info in storages
            }
        return _Outline(outline.getvalue(), records)


def _read_stored(file: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    file.seek(_data_offset(file, info))
    return file.read(info.file_size)


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member's data begins: after its local header, whose lengths may differ from the central directory's."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) != 30:
        raise zipfile.BadZipFile("a member lies outside the file")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _explain(error: Exception, path: Path) -> CheckpointError | UnsupportedError:
    """Our one-line error for what ``torch.load`` raised."""
    text = str(error)
    advice = "save its state dict alone: torch.save(model.state_dict(), ...)"
    refused = re.search(
        r"(?:GLOBAL|global|class):? ([\w.]+) was not an allowed|[Uu]nsupported (?:global: GLOBAL|class) ([\w.]+)", text
    )
    if refused:
        return UnsupportedError(f"{path}: holds a {refused[1] or refused[2]}, which is not safe to load; {advice}")
    with open(path, "rb") as file:
        start = file.read(4)
    if not start.startswith((b"PK", b"\x80")):
        return CheckpointError(
            f"{path}: is not a PyTorch file; check that the suffix is right and the download complete"
        )
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        return UnsupportedError(f"{path}: holds Python objects that are not safe to load; {advice}")
    return CheckpointError(
        f"{path}: torch cannot load it ({reason(error)}); it is truncated or damaged, so fetch it again"
    )


class _Storage:
    """Stands for the storage of one tensor while the structure is pickled."""

    def __init__(self, key: str, spec: TensorSpec) -> None:
        self.key, self.spec = key, spec


class _Tensor:
    """Stands for one tensor while the structure is pickled."""

    def __init__(self, storage: _Storage, leaf: Leaf) -> None:
        self.storage, self.leaf = storage, leaf


class _Pickler(pickle.Pickler):
    """Writes stand-ins as ``torch.save`` writes tensors."""

    def __init__(self, file: io.BytesIO, torch: Any) -> None:
        super().__init__(file, protocol=2)  # the one protocol that torch.load(weights_only=True) reads in full
        self._torch = torch

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        storage_class = TYPES[obj.spec.dtype][1]
        if storage_class is None:
            return ("storage", self._torch.storage.UntypedStorage, obj.key, "cpu", obj.spec.packed_bytes)
        return ("storage", getattr(self._torch, storage_class), obj.key, "cpu", obj.spec.size)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Tensor):
            return NotImplemented
        spec, leaf = obj.storage.spec, obj.leaf
        name, storage_class = TYPES[spec.dtype]
        if leaf.torch_type:
            name, storage_class = leaf.torch_type, None
        shape = spec.shape if name != PAIRS else (*spec.shape[:-1], spec.shape[-1] // 2)
        strides = tuple(int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape)))
        rebuild = self._torch._utils
        arguments: tuple[Any, ...]
        if leaf.tag in ("p", "q"):
            plain = Leaf(leaf.name, torch_type=leaf.torch_type)
            arguments = (_Tensor(obj.storage, plain), leaf.tag == "p", OrderedDict())
            if leaf.attributes:
                return rebuild._rebuild_parameter_with_state, (*arguments, leaf.attributes)
            return rebuild._rebuild_parameter, arguments
        arguments = (obj.storage, 0, shape, strides, leaf.tag == "g", OrderedDict())
        function = rebuild._rebuild_tensor_v2
        if storage_class is None:
            function, arguments = rebuild._rebuild_tensor_v3, (*arguments, getattr(self._torch, name))
        if leaf.attributes:
            arguments = (function, self._torch.Tensor, arguments, leaf.attributes)
            function = self._torch._tensor._rebuild_from_type_v2
        return function, arguments


class TorchWriter(CheckpointWriter):
    """Writes a file that ``torch.load(weights_only=True)`` reads, one storage at a time. Tied tensors share a storage.

    ``extra`` as :class:`TorchReader` gave it; without it the file holds a flat dict of tensors.
    """

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True) -> None:
        super().__init__(specs)
        require_dtypes(self.specs, TYPES, "a .pt file", "write .safetensors instead")
        for spec in self.specs:
            if spec.dtype == PAIR and (not spec.shape or spec.shape[-1] % 2):
                raise UnsupportedError(f"tensor {spec.name!r}: a .pt file holds pairs of {spec.dtype.name} alone")
        self._torch = torch = _import_torch(path)
        self._storages: dict[str, _Storage] = {}
        for spec in self.specs:
            if spec.tied_to is None:
                self._storages[spec.name] = _Storage(str(len(self._storages)), spec)
            else:
                self._storages[spec.name] = self._storages[spec.tied_to]
        if extra:
            names = [spec.name for spec in self.specs]
            root = assemble(extra, names, torch, self._stand_in)
        else:
            root = {name: _Tensor(storage, Leaf(name)) for name, storage in self._storages.items()}
        structure = io.BytesIO()
        try:
            _Pickler(structure, torch).dump(root)
        except (RecursionError, UnicodeEncodeError) as error:
            raise UnsupportedError(
                f"{path}: the structure of the .pt file cannot be pickled: {reason(error)}"
            ) from error
        self.target = AtomicFile(path, overwrite=overwrite)
        self._zip = zipfile.ZipFile(self.target.file, "w", zipfile.ZIP_STORED, allowZip64=True)
        try:
            self._add("data.pkl", np.frombuffer(structure.getvalue(), np.uint8))
            self._add("byteorder", np.frombuffer(b"little", np.uint8))
        except BaseException:
            self.abort()
            raise

    def _stand_in(self, leaf: Leaf) -> _Tensor:
        storage = self._storages[leaf.name]
        if leaf.torch_type and storage.spec.dtype.itemsize != getattr(self._torch, leaf.torch_type).itemsize:
            raise ValueError(leaf.torch_type)
        return _Tensor(storage, leaf)

    def _add(self, name: str, values: Array) -> None:
        """Append one member whose data begins at a multiple of ``_ALIGNMENT``."""
        info = zipfile.ZipInfo("archive/" + name, _EPOCH)
        info.file_size = values.nbytes
        needs_64_bits = values.nbytes > 1 << 30
        begin = self.target.file.tell() + 30 + len(info.filename) + (20 if needs_64_bits else 0) + 4
        padding = -begin % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # the field that torch itself pads with
        with self._zip.open(info, "w", force_zip64=needs_64_bits) as member:
            write_in_blocks(member, values)

    def _put(self, spec: TensorSpec, array: Array) -> None:
        self.put(spec, array)

    def put(self, spec: TensorSpec, array: Array) -> None:
        """Store the values of a tensor that is not tied, in any order."""
        self._add(f"data/{self._storages[spec.name].key}", pack(array))

    def finish(self) -> None:
        """Complete the archive; what is left is to commit ``target``."""
        self._add("version", np.frombuffer(b"3\n", np.uint8))
        self._zip.close()

    def _commit(self) -> None:
        self.finish()
        self.target.commit()

    def abort(self) -> None:
        discard_zip(self._zip)
        self.target.abort()
