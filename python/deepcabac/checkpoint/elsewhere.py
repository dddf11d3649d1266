"""Checkpoints that are not read here: what they are, and the way from them to a file that is."""

from __future__ import annotations

import os
from pathlib import Path

_KERAS = "is a file of Keras; load it in Keras and give deepcabac.save_file the model's weights by name"
_SUFFIXES = {
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".msgpack": "is a file of Flax; flax.serialization.msgpack_restore gives the arrays for deepcabac.save_file",
    ".npy": "is a single array; deepcabac.save_file({'name': numpy.load(path)}, ...) compresses it",
    ".distcp": "is part of a distributed checkpoint of PyTorch; give its folder",
}
_TORCH = (
    "is a distributed checkpoint of PyTorch; 'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
    "model.pt' makes a file that can be compressed (it unpickles: only for folders that you trust)"
)
_ORBAX = "is a checkpoint of Orbax; restore it and give its arrays, by name, to deepcabac.save_file"


def way_from_file(path: str | os.PathLike[str]) -> str | None:
    """What a file is by its suffix, and what to do; None if that is not known."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((words for suffix, words in _SUFFIXES.items() if name.endswith(suffix)), None)


def way_from_folder(folder: Path) -> str | None:
    """The same for a folder, by the files that only one library writes."""
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        return _TORCH
    if (folder / "manifest.ocdbt").is_file() or (folder / "_CHECKPOINT_METADATA").is_file():
        return _ORBAX
    return None
