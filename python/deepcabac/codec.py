"""The entropy coder alone: integer arrays to bytes and back, exact. See FORMAT.md, section 12."""

from __future__ import annotations

import math
import struct
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from ._parallel import run_all
from .dcb import container
from .errors import DamagedFileError, LimitError, OptionError, UnsupportedError
from .options import PRESETS
from .wire import Cursor, varint

_MAGIC = b"\xdc\x01"


def encode(levels: npt.ArrayLike, *, preset: str = "default", threads: int | None = None) -> bytes:
    """Code an integer array, e.g. the levels of a quantised tensor. :func:`decode` gives it back exactly.

    ``levels`` has any shape and any integer dtype (or bool), with values that fit int32. Rows (and convolution kernels,
    for three or more dimensions) are taken from the shape, so pass a tensor's levels in its own shape. ``preset`` is
    speed or size, ``"fast"``, ``"default"`` or ``"small"``; ``threads`` is the number of threads, by default one a
    core; the bytes do not depend on it.

    Raises :class:`OptionError` for other dtypes, values or levels.
    """
    array = np.asarray(levels)
    if array.dtype.kind not in "iub":
        raise OptionError(f"levels must be integers, not {array.dtype}: quantise them first, or use save_file")
    if array.size and not (int(array.min()) >= -(1 << 31) and int(array.max()) < 1 << 31):
        raise OptionError("levels must fit int32 (-2^31 to 2^31 - 1)")
    if array.ndim > container.MAX_DIMENSIONS:
        raise OptionError(f"levels have {array.ndim} dimensions, more than {container.MAX_DIMENSIONS}")
    if preset not in PRESETS:
        raise OptionError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    flat = np.ascontiguousarray(array, np.int32).reshape(-1)
    sample = np.concatenate([flat[run] for run in _core.sample_runs(array.shape, flat.size)])
    params = _core.fit_whole(array.shape, sample, flat[: _core.first(array.shape)], preset=preset)
    each = _core.chunk_levels(params)
    pieces = [flat[start : start + each] for start in range(0, flat.size, each)]
    codes = run_all([partial(_core.encode, params, piece) for piece in pieces], threads)
    chunks = tuple(container.Chunk(0, len(code), _core.crc32(code)) for code in codes)
    head = _MAGIC + bytes([array.ndim]) + b"".join(varint(size) for size in array.shape)
    head += container.write_chunks(params, chunks)
    return b"".join([head, struct.pack("<I", _core.crc32(head)), *codes])


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int | None = None, threads: int | None = None) -> Any:
    """The int32 array that :func:`encode` coded, in its shape.

    Raises :class:`DamagedFileError` if ``data`` is not exactly what :func:`encode` returned, :class:`LimitError` if
    the array would take more than ``max_bytes``.
    """
    container.check_max_bytes(max_bytes)
    view = memoryview(data).cast("B")
    cursor = Cursor(view, "coded levels")
    magic = bytes(cursor.take(min(2, cursor.left)))
    if magic[:1] == _MAGIC[:1] and len(magic) == 2 and magic != _MAGIC:
        raise UnsupportedError(f"coded levels of format version {magic[1]}; this release reads version 1")
    if magic != _MAGIC:
        raise DamagedFileError("not coded levels: the data do not begin like what deepcabac.encode returns")
    shape = container.read_shape(cursor)
    size = math.prod(shape)
    params, chunks = container.read_chunks(cursor, size, 0)
    head = cursor.at
    if cursor.u32() != _core.crc32(view[:head]):
        raise cursor.damaged("the checksum of the header does not match")
    if sum(chunk.length for chunk in chunks) != cursor.left:
        raise cursor.damaged("its chunks do not add up to its length")
    if max_bytes is not None and 4 * size > max_bytes:
        raise LimitError(f"the levels take {4 * size} bytes, more than max_bytes = {max_bytes}")
    try:
        out = np.empty(size, np.int32)
    except (MemoryError, ValueError):
        raise LimitError(f"the levels take {4 * size} bytes, more than this machine has") from None
    each = _core.chunk_levels(params)
    jobs = []
    for number, chunk in enumerate(chunks):
        code = cursor.take(chunk.length)
        chunk.check(code, "levels")
        jobs.append(_core.Job(params, code, out[number * each : (number + 1) * each]))
    lanes = _core.parameters(params).lanes
    batches = [jobs[start : start + lanes] for start in range(0, len(jobs), lanes)]
    if not all(all(good) for good in run_all([partial(_core.decode, batch) for batch in batches], threads)):
        raise DamagedFileError("damaged coded levels: a chunk does not decode to its number of levels")
    return out.reshape(shape)
