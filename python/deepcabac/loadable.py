"""Safetensors files whose tensors are small .dcb files: what Hugging Face's libraries load with deepcabac's help.

Each tensor that coding makes smaller is stored under its own name, as a vector of bytes (U8) that is a .dcb file of
this tensor alone. All others are stored as they are, but every tensor of bytes is such a file, so that there is no
doubt. ``__metadata__`` says ``{"deepcabac": "1"}``, and config.json beside it has a ``quantization_config`` that names
this package, so that a library without it says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .atomic import reading, reason
from .checkpoint import create_checkpoint
from .checkpoint.base import Array, TensorSpec, compact_json
from .checkpoint.safetensors_file import SafetensorsReader, SafetensorsStream
from .dcb import reader
from .dcb.reader import OnProgress, OpenFile, TensorInfo
from .dcb.writer import Report
from .errors import CheckpointError, DamagedFileError, OptionError, UnsupportedError, WrongKindError, naming
from .files import compress_checkpoint, open_file
from .options import Options
from .temporaries import TemporaryFolder

if TYPE_CHECKING:
    from typing_extensions import Self

#: The name that this package has in ``__metadata__`` and in ``quantization_config``, and the version of this form.
METHOD, VERSION = "deepcabac", "1"
_CONFIG = {"quant_method": METHOD, "version": int(VERSION)}
_BYTES = np.dtype(np.uint8)
#: Whole models, and their shards and variants, as transformers and diffusers name them.
_WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)([.-][\w.-]*)?\.safetensors")


def code_file(source: Path, target: Path, options: Options, progress: OnProgress | None = None) -> Report:
    """Compress the safetensors file ``source`` into one of this form."""
    with TemporaryFolder(target.parent) as folder:
        beside = folder.path / "coded.dcb"
        _, report = compress_checkpoint(source, beside, options=options, progress=progress)
        with open_file(beside) as opened, SafetensorsReader(source) as original:
            specs = [_stored(original_spec, opened) for original_spec in original.specs]
            stream = SafetensorsStream(target, specs, {**(original.metadata or {}), METHOD: VERSION})
            try:
                for spec, before in zip(specs, original.specs, strict=True):
                    coded = spec != before
                    stream.put(
                        spec.name,
                        np.frombuffer(opened.alone(spec.name), np.uint8) if coded else original.read(spec.name),
                    )
                stream.file.commit()
            except BaseException:
                stream.file.abort()
                raise
    return replace(report, file_bytes=os.path.getsize(target))


def _stored(spec: TensorSpec, opened: OpenFile) -> TensorSpec:
    """What is stored of a tensor: itself, or a .dcb file of it."""
    length = len(opened.alone(spec.name))
    return TensorSpec(spec.name, _BYTES, (length,)) if length < spec.nbytes or spec.dtype == _BYTES else spec


def restore_file(
    source: Path,
    target: Path,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
    progress: OnProgress | None = None,
) -> None:
    """Restore the safetensors file that :func:`code_file` compressed."""
    with naming(str(source)), SafetensorsReader(source) as coded:
        metadata = {name: value for name, value in (coded.metadata or {}).items() if name != METHOD}
        specs = [_original(spec, coded, max_bytes) for spec in coded.specs]
        total, done = sum(spec.nbytes for spec in specs), 0
        extra = compact_json(metadata) if metadata else b""
        with create_checkpoint(target, kind=coded.kind, specs=specs, extra=extra, extra_kind=coded.kind) as writer:
            for spec, stored in zip(specs, coded.specs, strict=True):
                values = coded.read(spec.name)
                writer.write(
                    spec.name, decoded(values, max_bytes=max_bytes, threads=threads) if is_blob(stored) else values
                )
                done += spec.nbytes
                if progress is not None:
                    progress(done, total)


def is_blob(spec: TensorSpec) -> bool:
    """Whether a tensor of a coded file is a .dcb file."""
    return spec.dtype == _BYTES and len(spec.shape) == 1


def _original(spec: TensorSpec, coded: SafetensorsReader, max_bytes: int | None) -> TensorSpec:
    if not is_blob(spec):
        return spec
    with opened_blob(coded.read(spec.name), max_bytes) as opened:
        (name,) = opened
        info = opened.info(name)
        return TensorSpec(spec.name, info.dtype, info.shape)


def opened_blob(values: Array, max_bytes: int | None = None, threads: int | None = None) -> OpenFile:
    """The .dcb file in a tensor of bytes. Raises :class:`DamagedFileError` unless it holds one tensor, on its own."""
    opened = reader.open_bytes(values.data, max_bytes=max_bytes, threads=threads)
    if len(opened) != 1 or opened.base_name is not None:
        opened.close()
        raise DamagedFileError(f"a coded tensor is a .dcb file of {len(opened)} tensors, not of one; it is damaged")
    return opened


def decoded(values: Array, *, max_bytes: int | None = None, threads: int | None = None) -> Array:
    """The tensor in a tensor of bytes."""
    with opened_blob(values, max_bytes, threads) as opened:
        ((_, array),) = opened.items()
        return array


class CodedFile:
    """A coded safetensors file, looked at and checked as an :class:`OpenFile` is. A context manager."""

    kind = SafetensorsReader.kind
    base_name: str | None = None
    base_digest = ""
    index_bytes = 0  # each tensor has its own

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self._reader, self._threads = SafetensorsReader(path), threads
        if METHOD not in (self._reader.metadata or {}):
            self._reader.close()
            raise WrongKindError(f"{path}: is not compressed")
        self._specs = {spec.name: spec for spec in self._reader.specs}
        self.file_bytes = os.path.getsize(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def info(self, name: str) -> TensorInfo:
        """What the file says about a tensor. ``coded_bytes`` are those of its whole .dcb file, if it is one."""
        spec = self._specs[name]
        if not is_blob(spec):
            return TensorInfo(
                name, spec.dtype, spec.shape, "exact", spec.nbytes, spec.nbytes, None, None, None, None, coding="raw"
            )
        with opened_blob(self._reader.read(name)) as opened:
            (own,) = opened
            return replace(opened.info(own), name=name, coded_bytes=spec.nbytes)

    def check(self, progress: OnProgress | None = None, *, decode: bool = True) -> Iterator[tuple[str, str]]:
        """Decode everything, or compare checksums alone; yields (name, what is wrong) for each damaged tensor."""
        total, done = sum(spec.nbytes for spec in self._reader.specs), 0
        for spec in self._reader.specs:
            if is_blob(spec):
                try:
                    data = self._reader.read(spec.name)
                    if decode:
                        decoded(data, threads=self._threads)
                    else:
                        with reader.open_bytes(data.data, max_bytes=None, threads=1) as opened:
                            for _, damage in opened.check(decode=False):
                                raise DamagedFileError(damage)
                except DamagedFileError as error:
                    yield spec.name, str(error)
            done += spec.nbytes
            if progress is not None:
                progress(done, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


# Folders


def read_config(folder: Path) -> dict[str, Any] | None:
    """``config.json`` of a folder, if it is a model's of transformers or diffusers; else None."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        with reading(path):
            config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {reason(error)}") from error
    known = isinstance(config, dict) and ("model_type" in config or "_class_name" in config)
    return config if known else None


def is_coded(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that this package coded the model."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`OptionError` if a model is quantised already."""
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise OptionError(f"{folder}: is quantised already, by {method}: start from the original model")


def check_version(quantization: Mapping[str, Any]) -> None:
    """Raise :class:`UnsupportedError` for a ``quantization_config`` of a later version."""
    if quantization.get("version") != _CONFIG["version"]:
        raise UnsupportedError(
            f"a folder of version {quantization.get('version')!r} of deepcabac's form for Hugging Face's libraries; "
            f"this release reads version {VERSION}: update deepcabac"
        )


def is_model_file(path: Path) -> bool:
    """Whether a file holds a model's weights, by the name that transformers and diffusers give it."""
    return _WEIGHTS.fullmatch(path.name) is not None


def marked_config(text: str, dtype: str | None) -> str:
    """The text of a ``config.json``, its first entry a ``quantization_config``, before which is ``dtype`` if given.

    :func:`unmarked_config` takes away just these characters, so that the rest stays as it was written.
    """
    start = text.index("{") + 1
    return text[:start] + _mark(dtype) + text[start:]


def unmarked_config(text: str) -> str:
    """The text that :func:`marked_config` was given; if it was written anew since then, the same in other words."""
    plain = re.sub(r'( "dtype": "\w+",)?' + re.escape(_mark(None)), "", text, count=1)
    if plain != text:
        return plain
    config = json.loads(text)
    config.pop("quantization_config", None)
    return json.dumps(config, indent=2) + "\n"


def _mark(dtype: str | None) -> str:
    said = "" if dtype is None else f' "dtype": "{dtype}",'
    return f'{said} "quantization_config": {json.dumps(_CONFIG)},'


def needs_dtype(config: Mapping[str, Any]) -> bool:
    """Whether a configuration leaves it to the weights of which type the model is, which then must be told."""
    return "model_type" in config and config.get("dtype") is None and config.get("torch_dtype") is None


def common_dtype(reports: Iterable[Report]) -> str | None:
    """The floating-point type that most weights have."""
    counts: dict[str, int] = {}
    for tensor in (tensor for report in reports for tensor in report.tensors):
        if tensor.dtype.startswith(("float", "bfloat")):
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.size
    return max(counts, key=counts.__getitem__, default=None)
