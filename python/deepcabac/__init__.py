"""Trained neural networks made small: rate-distortion quantisation and context-adaptive arithmetic coding."""

from .accumulation import ErrorAccumulation
from .codec import decode, encode
from .compressor import Report, TensorReport
from .curvature import Curvature
from .errors import (
    CalibrationError,
    CheckpointError,
    DamagedFileError,
    DeepCabacError,
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

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "Curvature",
    "DamagedFileError",
    "DeepCabacError",
    "ErrorAccumulation",
    "LimitError",
    "OpenFile",
    "OptionError",
    "Options",
    "Report",
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
]
