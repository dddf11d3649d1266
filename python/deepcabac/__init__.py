"""Trained neural networks made small: rate-distortion quantisation and context-adaptive arithmetic coding."""

from . import dc2019, nnc
from .accumulation import ErrorAccumulation
from .codec import decode, encode
from .curvature import Curvature
from .dcb.reader import OpenFile, QuantizedTensor, TensorInfo
from .dcb.writer import Report, TensorReport
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
from .files import compress, compress_checkpoint, decompress, decompress_checkpoint, load_file, open_file, save_file
from .folders import FolderReport, compress_folder, decompress_folder
from .options import Options
from .slices import safe_open
from .trials.search import SearchResult, search

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "Curvature",
    "DamagedFileError",
    "DeepCabacError",
    "ErrorAccumulation",
    "EvaluationError",
    "FolderReport",
    "LimitError",
    "OpenFile",
    "OptionError",
    "Options",
    "QuantizedTensor",
    "Report",
    "SearchResult",
    "TensorInfo",
    "TensorReport",
    "UnsupportedError",
    "compress",
    "compress_checkpoint",
    "compress_folder",
    "dc2019",
    "decode",
    "decompress",
    "decompress_checkpoint",
    "decompress_folder",
    "encode",
    "load_file",
    "nnc",
    "open_file",
    "safe_open",
    "save_file",
    "search",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # takes longer than many a command

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
