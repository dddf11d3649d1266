"""Which kind of checkpoint a file's name says it is."""

from __future__ import annotations

import os
import re

#: Kind by suffix. A shard index may name a variant: ``model.safetensors.index.fp16.json``.
_PATTERNS = [
    (re.compile(r"\.safetensors\.index(\.[\w-]{1,40})?\.json"), "safetensors-sharded"),
    (re.compile(r"\.(bin|pt|pth)\.index(\.[\w-]{1,40})?\.json"), "torch-sharded"),
    (re.compile(r"\.safetensors"), "safetensors"),
    (re.compile(r"\.npz"), "npz"),
    (re.compile(r"\.(pt|pth|bin|ckpt|tar|pt\.tar|pth\.tar)"), "torch"),
    (re.compile(r"\.onnx"), "onnx"),
    (re.compile(r"\.gguf"), "gguf"),
]
#: The suffixes to name in messages.
SUFFIXES = (
    *(".safetensors.index.json", ".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".bin.index.json"),
    *(".onnx", ".gguf"),
)
_LONGEST = 80  # characters


def _found(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    name = os.path.basename(os.fspath(path)).lower()
    dots = [place for place, sign in enumerate(name) if sign == "." and len(name) - place <= _LONGEST]
    for place in dots:  # the longest suffix first
        for pattern, kind in _PATTERNS:
            if pattern.fullmatch(name, place):
                return name[place:], kind
    return "", None


def suffix_of_path(path: str | os.PathLike[str]) -> str:
    """The suffix by which a file's name names a kind, in lower case; empty if it names none."""
    return _found(path)[0]


def kind_of_path(path: str | os.PathLike[str]) -> str | None:
    """The kind of checkpoint that a file name's suffix asks for, None if unknown. The file need not exist."""
    return _found(path)[1]
