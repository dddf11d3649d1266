"""Trained neural networks made small: rate-distortion quantisation and context-adaptive arithmetic coding."""

from importlib.metadata import version as _version

from .codec import decode, encode
from .compressor import Report, TensorReport
from .curvature import Curvature
from .errors import (
    CalibrationError,
    CheckpointError,
    DamagedFileError,
    DeepCabacError,
    EvaluationError,
    LimitError,
    OptionError,
    UnsupportedError,
)
from .files import (
    compress,
    compress_checkpoint,
    decompress,
    decompress_checkpoint,
    load_file,
    open_file,
    save_file,
)
from .options import Options
from .reader import OpenFile, TensorInfo
from .search import SearchResult, search

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "Curvature",
    "DamagedFileError",
    "DeepCabacError",
    "EvaluationError",
    "LimitError",
    "OpenFile",
    "OptionError",
    "Options",
    "Report",
    "SearchResult",
    "TensorInfo",
    "TensorReport",
    "UnsupportedError",
    "compress",
    "compress_checkpoint",
    "decode",
    "decompress",
    "decompress_checkpoint",
    "encode",
    "load_file",
    "open_file",
    "save_file",
    "search",
]

__version__ = _version("deepcabac")
