"""ISO/IEC 15938-17 (NNC) streams, as NNCodec writes and reads them. docs/nnc.md says which parts of the standard."""

from .reading import load as decode
from .syntax import recognises
from .writing import Settings, encode

__all__ = ["Settings", "decode", "encode", "recognises"]


def __dir__() -> list[str]:
    return __all__
