"""The functions most callers need: arrays or checkpoints to .dcb files and back."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .atomic import AtomicFile
from .checkpoint import create_checkpoint, kind_of_path, open_checkpoint
from .checkpoint.base import Array, PathLike, TensorSpec
from .checkpoint.kinds import left_out, restored_suffix
from .checkpoint.onnx_memory import IntegerModel, Integers
from .checkpoint.suffixes import SUFFIXES, suffix_of_path
from .dcb import bases, reader, writer
from .dcb.bases import BaseLike
from .dcb.reader import OnProgress, OpenFile, QuantizedTensor
from .dcb.updates import Base
from .dcb.writer import Report
from .errors import OptionError, UnsupportedError
from .nnc import files as nnc_files
from .options import OptionFields, Options
from .source import Arrays, Correct

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on

_log = logging.getLogger(__name__)


@contextmanager
def opened_base(base: BaseLike | None, threads: int | None = None) -> Iterator[Base | None]:
    """What differences are made to."""
    if base is None:
        yield None
        return
    opened = bases.open_base(base, threads=threads)
    try:
        yield opened
    finally:
        opened.close()


def compress(
    tensors: Mapping[str, npt.ArrayLike],
    *,
    metadata: Mapping[str, str] | None = None,
    options: Options | None = None,
    base: BaseLike | None = None,
    **settings: Unpack[OptionFields],
) -> bytes:
    """:func:`save_file` to memory: the bytes of a .dcb file."""
    file = io.BytesIO()
    chosen = Options.of(options, settings)
    with opened_base(base, chosen.threads) as opened:
        writer.compress(Arrays(tensors, metadata), file, chosen, base=opened)
    return file.getvalue()


def decompress(
    data: bytes | bytearray | memoryview,
    *,
    base: BaseLike | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """:func:`load_file` from memory."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise OptionError(f"give the bytes of a .dcb file, not {_a(data)}; load_file takes a path")
    with reader.open_bytes(data, max_bytes=max_bytes, threads=threads) as opened:
        if base is not None:
            if opened.base_name is None:
                raise OptionError("base was given, but the data are not an update and need none")
            opened.base = bases.open_base(base, max_bytes=max_bytes, threads=threads)
        return dict(opened.items(keep=True))


def save_file(
    tensors: Mapping[str, npt.ArrayLike],
    path: PathLike,
    *,
    metadata: Mapping[str, str] | None = None,
    options: Options | None = None,
    base: BaseLike | None = None,
    progress: OnProgress | None = None,
    correct: Correct | None = None,
    **settings: Unpack[OptionFields],
) -> Report:
    """Compress arrays into a .dcb file, which appears whole or not at all.

    ``tensors`` maps names to arrays of any shape and of dtype float64, float32, float16, bfloat16, float8_e4m3fn,
    float8_e5m2, bool, any integer, complex, or another of ml_dtypes: numpy's, PyTorch's, or what ``numpy.asarray``
    takes. What is no weight is stored exactly, such as integers, complex numbers, scalars, small vectors, optimizer
    state and masks. ``metadata``, strings by name, is what safetensors files hold besides tensors.

    ``settings`` are the fields of :class:`Options` by name: ``quality=30`` (the default), ``bits=``, ``size=``,
    ``step=`` or ``lossless=True``; ``rate_distortion=``, ``quantizer=``, ``states=``, ``overrides=``, ``threads=``.

    With a ``base`` (a checkpoint or .dcb file, a list of the files of a chain of updates, oldest first, or arrays by
    name) the file is an update: tensors that the base has too, with the same dtype and shape, are stored as
    differences. ``sqnr`` then refers to the differences, by default 10 dB (vectors get 12 dB more). With
    ``lossless=True`` differences are exact.

    ``correct`` is called with the tensors as they will be decoded, by name. It returns new values for some of them,
    which are compressed instead; the other tensors stay as they are. :func:`deepcabac.torch.correction` makes such a
    function.

    Returns a :class:`Report`. Raises :class:`OptionError`, :class:`UnsupportedError` or :class:`CheckpointError`.
    """
    source = Arrays(tensors, metadata)
    chosen = Options.of(options, settings)
    target_path = check_output(path_of(path, "compress makes bytes"))
    with opened_base(base, chosen.threads) as opened, AtomicFile(target_path) as target:
        return writer.compress(source, target.file, chosen, progress, base=opened, correct=correct)


def load_file(
    path: PathLike,
    *,
    base: BaseLike | None = None,
    apply: bool = False,
    quantized: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """All tensors of a .dcb or .nnc file as arrays, with names, shapes and dtypes. Tied tensors share their array.

    An update needs its ``base``: a checkpoint or .dcb file, a list of the files of a chain of updates (oldest first),
    or arrays by name. By default the base is looked for next to the file, under the name it had.

    With ``quantized=True`` quantised tensors come as a :class:`QuantizedTensor`: their levels in int8, int16 or int32,
    with the step and scales. Others, and differences to a base, come as arrays.

    Raises :class:`DamagedFileError`, :class:`CheckpointError` (the file cannot be read), :class:`LimitError` (the
    tensors take more than ``max_bytes``) or :class:`OptionError` (the base is missing, or is not the one that the
    update was made from).

    For an update in a .nnc file, give the streams before it as ``base``. The result is then the difference that the
    update holds, or with ``apply=True`` the updated model.
    """
    path = path_of(path, "decompress takes bytes")
    if nnc_files.is_stream(path):
        if isinstance(base, Mapping):
            raise OptionError(f"{path}: the base of an update in a .nnc file is a file, or several")
        if quantized:
            raise OptionError(f"{path}: quantized= is for .dcb files")
        return nnc_files.load_path(path, base, apply=apply, max_bytes=max_bytes, threads=threads)
    if apply:
        raise OptionError(f"{path}: apply= is for updates in .nnc files; those in .dcb files are always applied")
    with open_file(path, base=base, max_bytes=max_bytes, threads=threads) as opened:
        if not quantized:
            return dict(opened.items(keep=True))
        found: dict[str, Any] = {}
        for info in map(opened.info, opened):
            if info.tied_to is not None:
                found[info.name] = found[info.tied_to]
            else:
                read = opened.levels if opened.has_levels(info.name) else opened.__getitem__
                found[info.name] = read(info.name)
        return found


def open_file(
    path: PathLike, *, base: BaseLike | None = None, max_bytes: int | None = None, threads: int | None = None
) -> OpenFile:
    """Open a .dcb file for decoding single tensors: ``keys()``, ``info(name)``, ``f[name]``; a context manager.

    Only the index is read. ``max_bytes`` limits each tensor. ``base`` is for updates, as in :func:`load_file`; it is
    checked as a whole when a tensor first needs it. Raises :class:`DamagedFileError` and :class:`CheckpointError`.
    """
    path = path_of(path, "decompress takes bytes")
    return bases.open_based(path, base, max_bytes=max_bytes, threads=threads)


def compress_checkpoint(
    model: PathLike,
    path: PathLike | None = None,
    *,
    options: Options | None = None,
    base: BaseLike | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
    correct: Correct | None = None,
    **settings: Unpack[OptionFields],
) -> tuple[Path, Report]:
    """Compress a checkpoint file (.safetensors, .npz, .pt, .onnx, or an index of several such files), tensor by tensor.

    ``path`` is by default the model's with the suffix .dcb. All other arguments are those of :func:`save_file`. Returns
    the path and a :class:`Report`.

    Raises :class:`OptionError` if the file exists, unless ``overwrite`` is true: model.safetensors and model.onnx both
    become model.dcb. (:func:`save_file` replaces files, as ``numpy.save`` and safetensors do.)
    """
    model = path_of(model, "save_file takes arrays")
    chosen = Options.of(options, settings)
    target_path = check_output(default_output(model) if path is None else Path(path))
    with (
        open_checkpoint(model) as source,
        opened_base(base, chosen.threads) as opened,
        AtomicFile(target_path, overwrite=overwrite) as target,
    ):
        return target_path, writer.compress(source, target.file, chosen, progress, base=opened, correct=correct)


def path_of(path: PathLike, instead: str) -> Path:
    """``path`` as a Path. Raises :class:`OptionError`, which says what to do ``instead``, if it is something else."""
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise OptionError(f"give the path of a file, not {_a(path)}; {instead}")
    return Path(path)


def _a(value: object) -> str:
    """The type of ``value`` with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeio' else 'a'} {name}"


def check_output(path: Path) -> Path:
    """``path``, unless its suffix says that it is not a .dcb file. Raises :class:`OptionError`."""
    if kind_of_path(path) is not None:
        instead = default_output(path).name
        raise OptionError(f"{path}: is a checkpoint's name, but what is written is a .dcb file: name it {instead}")
    if path.suffix.lower() == nnc_files.SUFFIX:
        raise OptionError(f"{path}: what is written is a .dcb file; deepcabac.nnc.encode makes .nnc streams")
    return path


def default_output(model: Path) -> Path:
    """``model.dcb`` beside ``model.safetensors`` (or ``model.safetensors.index.json``)."""
    suffix = suffix_of_path(model)
    return model.with_name(model.name[: -len(suffix)] + ".dcb") if suffix else model.with_suffix(".dcb")


def default_restored(path: Path, kind: str, extra: bytes = b"") -> Path:
    """Where a checkpoint of this kind goes by default: ``model.safetensors`` beside ``model.dcb``."""
    suffix = restored_suffix(kind, extra)
    if suffix is None:
        raise UnsupportedError(f"{path}: made from a checkpoint of unknown kind {kind!r}: name the file to write")
    return path.with_name(path.stem + suffix)


def decompress_checkpoint(
    path: PathLike,
    model: PathLike | None = None,
    *,
    base: BaseLike | None = None,
    overwrite: bool = False,
    int8: bool = False,
    external_data: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
    progress: OnProgress | None = None,
) -> Path:
    """Restore a checkpoint from a .dcb file, tensor by tensor. Returns its path.

    The suffix of ``model`` chooses the kind. By default the checkpoint is of the kind that the file was made from and
    goes next to the file.
    ``base`` as in :func:`load_file`. ``progress`` is called with the bytes of tensors decoded so far and those of all.

    For ONNX: with ``int8`` weights whose levels all fit become int8 initializers, each with a DequantizeLinear node;
    the others stay floats, and are named by a warning in the log. With ``external_data`` the larger weights go to a
    file beside the model, ``MODEL.onnx.data``.

    Another kind than the original's holds the tensors, but not what was beside them (a graph, the epoch): a warning in
    the log ``deepcabac`` says so.

    Raises :class:`OptionError` if a file that it would write exists, unless ``overwrite`` is true: it may be the
    original.
    """
    with open_file(path, base=base, max_bytes=max_bytes, threads=threads) as opened:
        if model is None:
            model = default_restored(Path(path), opened.kind, opened.extra)
        kind = kind_of_path(model)
        if kind is None:
            raise OptionError(f"{model}: the suffix names no kind of checkpoint; use one of {' '.join(SUFFIXES)}")
        if Path(model).exists() and Path(model).samefile(path):
            raise OptionError(f"{model}: would overwrite the file it is restored from")
        infos = [opened.info(name) for name in opened]
        specs = [TensorSpec(info.name, info.dtype, info.shape, info.tied_to) for info in infos]
        extra, extra_kind = opened.extra, opened.kind
        if (int8 or external_data) and not kind == extra_kind == "onnx":
            option = "int8" if int8 else "external_data"
            raise OptionError(f"{model}: {option} is for an .onnx file that is restored from one made from .onnx")
        if int8:
            if external_data:
                raise OptionError("choose one of int8 and external_data")
            floats = restore_integers(opened, Path(model), overwrite=overwrite, progress=progress)
            if floats:
                _log.warning("%s: stay floats: %s", model, ", ".join(floats))
            return Path(model)
        missing = left_out(kind, extra, extra_kind)
        with create_checkpoint(
            model,
            kind=kind,
            specs=specs,
            extra=extra,
            extra_kind=extra_kind,
            overwrite=overwrite,
            external=external_data,
        ) as target:
            for info, (name, array) in zip(infos, opened.items(progress=progress), strict=True):
                if info.tied_to is None:
                    target.write(name, array)
                    _log.info("%s: %s bytes", name, f"{array.nbytes:,}")
        if missing:
            _log.warning("%s: %s", model, missing)
        return Path(model)


def restore_integers(
    opened: OpenFile, model: Path, *, overwrite: bool = False, progress: OnProgress | None = None
) -> list[str]:
    """Restore an ONNX model with int8 weights; returns the names of quantised tensors that stay floats.

    A tensor can have a step, and a scale for each row or for each column (of a matrix), but not for both: that is what
    DequantizeLinear knows.
    """
    infos = [opened.info(name) for name in opened]
    made = IntegerModel(opened.extra, [TensorSpec(info.name, info.dtype, info.shape) for info in infos])
    integers: dict[str, Integers] = {}
    floats = []
    total, done = sum(info.nbytes for info in infos), 0
    for info in infos:
        if info.method == "quantized" or opened.has_levels(info.name):
            one = None
            if opened.has_levels(info.name):
                one = _integers(opened.levels(info.name))
            if one is not None and not made.takes(info.name, scaled=one.axis is not None):
                one = None
            if one is None:
                floats.append(info.name)
            else:
                integers[info.name] = one
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    with AtomicFile(model, overwrite=overwrite) as target:
        for piece in made.pieces(integers, opened.__getitem__):
            target.file.write(piece)
    return floats


def _integers(tensor: QuantizedTensor) -> Integers | None:
    """A tensor as DequantizeLinear takes it, if it can."""
    row, column = tensor.row_scales, tensor.column_scales
    several = (row is not None and column is not None) or (column is not None and tensor.levels.ndim != 2)
    if tensor.levels.dtype != np.int8 or several:
        return None
    scales = row if row is not None else column
    scale = np.float32(tensor.step) if scales is None else np.float32(tensor.step) * scales
    axis = None if scales is None else int(column is not None)
    return Integers(tensor.levels, np.asarray(scale, np.float32).astype(tensor.dtype), axis)
