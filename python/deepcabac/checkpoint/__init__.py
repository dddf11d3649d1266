"""Checkpoint files of every supported kind, read and written one tensor at a time."""

from .base import CheckpointReader, CheckpointWriter, TensorSpec
from .kinds import KINDS, create_checkpoint, open_checkpoint
from .suffixes import kind_of_path

__all__ = [
    "KINDS",
    "CheckpointReader",
    "CheckpointWriter",
    "TensorSpec",
    "create_checkpoint",
    "kind_of_path",
    "open_checkpoint",
]
