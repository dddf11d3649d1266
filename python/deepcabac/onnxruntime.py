"""ONNX Runtime sessions straight from .dcb files. Needs onnxruntime: ``pip install 'deepcabac[onnxruntime]'``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .checkpoint.base import PathLike, TensorSpec
from .checkpoint.onnx_memory import without_initializers
from .dcb.bases import BaseLike
from .errors import OptionError, UnsupportedError, naming
from .files import open_file

try:
    import onnxruntime
except ImportError as _cause:

    class MissingOnnxRuntimeError(UnsupportedError, ImportError):
        """onnxruntime is not installed."""

    raise MissingOnnxRuntimeError(
        "deepcabac.onnxruntime needs onnxruntime: pip install 'deepcabac[onnxruntime]'"
    ) from _cause

__all__ = ["session"]

#: Smaller tensors are in the model itself: shape inference reads them.
_LEAST = 1024


def session(
    path: PathLike,
    sess_options: Any = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[dict[Any, Any]] | None = None,
    *,
    base: BaseLike | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
    **settings: Any,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a .dcb file that was made from an ONNX model. No ONNX file is written.

    ``sess_options``, ``providers``, ``provider_options`` and ``settings`` are those of ``InferenceSession``. The
    options are given the weights, so make new ones for each session. ``base``, ``max_bytes`` and ``threads`` as for
    :func:`deepcabac.load_file`.

    Raises :class:`OptionError` (also if the file was not made from an ONNX model), :class:`DamagedFileError`,
    :class:`LimitError`, and what ``InferenceSession`` raises.
    """
    with open_file(path, base=base, max_bytes=max_bytes, threads=threads) as opened:
        if opened.kind != "onnx":
            made = f"a checkpoint of kind {opened.kind}" if opened.kind else "arrays"
            raise OptionError(f"{path}: was made from {made}, not from an ONNX model: it has no graph to run")
        infos = [opened.info(name) for name in opened]
        specs = [TensorSpec(info.name, info.dtype, info.shape) for info in infos]
        arrays = dict(opened.items(keep=True))
        with naming(str(path)):
            model, outside = without_initializers(opened.extra, specs, arrays.__getitem__, _LEAST)
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    names, values = [], []
    for name, code in outside.items():
        array = arrays.pop(name)
        own = array.dtype.isbuiltin == 1  # bfloat16 and float8 go as integers of their bits
        names.append(name)
        values.append(make(array if own else array.view(f"u{array.dtype.itemsize}"), code))
    if names:
        options.add_external_initializers(names, values)
    return onnxruntime.InferenceSession(model, options, providers, provider_options, **settings)
