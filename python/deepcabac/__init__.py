"""Trained neural networks made small: rate-distortion quantisation and context-adaptive arithmetic coding."""

from .codec import decode, encode
from .errors import (
    CheckpointError,
    DamagedFileError,
    DeepCabacError,
    LimitError,
    OptionError,
    UnsupportedError,
)

__all__ = [
    "CheckpointError",
    "DamagedFileError",
    "DeepCabacError",
    "LimitError",
    "OptionError",
    "UnsupportedError",
    "decode",
    "encode",
]
