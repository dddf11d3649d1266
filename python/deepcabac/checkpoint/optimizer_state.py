"""Optimizer state in the structure of a ``.pt`` file: where it is, and the structure without it.

PyTorch's ``Optimizer.state_dict()`` is a dict with the keys ``state`` and ``param_groups``, whichever optimizer it is
of and wherever it is kept. Both functions work on the skeleton (``skeleton.py``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from .base import compact_json
from .skeleton import TENSOR_TAGS

_SEQUENCES, _MAPPINGS = ("l", "u", "S"), ("d", "o", "C")
_KEYS = {"state", "param_groups"}


def optimizer_names(skeleton: bytes, names: Collection[str]) -> set[str]:
    """The names of the tensors that are part of an optimizer's state dict. ``names``: all, in order."""
    walk = _Walk(iter(names), ())
    walk.node(json.loads(skeleton)[1], False)
    return walk.found


def without(skeleton: bytes, names: Collection[str], dropped: Collection[str]) -> bytes:
    """The skeleton without the tensors in ``dropped``, and without the dicts that hold nothing else: an optimizer's
    ``param_groups`` go with its ``state``.
    """
    version, tree, *rest = json.loads(skeleton)
    kept, _, _ = _Walk(iter(names), dropped).node(tree, False)
    return compact_json([version, ["d", []] if kept is None else kept, *rest])


class _Walk:
    """A walk over a skeleton that a reader has just made, in the order in which tensors take their names."""

    def __init__(self, names: Iterator[str], dropped: Collection[str]) -> None:
        self.names, self.dropped = names, dropped
        self.found: set[str] = set()

    def node(self, node: Any, inside: bool) -> tuple[Any, int, int]:
        """The node without what is dropped (None if nothing is left), and how many tensors it has kept and lost.

        ``inside`` says that it is part of an optimizer's state dict.
        """
        if not isinstance(node, list) or not node:
            return node, 0, 0
        tag = node[0]
        if tag in TENSOR_TAGS:
            return self._tensor(node, inside)
        if tag in _SEQUENCES:
            parts = [self.node(item, inside) for item in node[1]]
            kept, lost = sum(part[1] for part in parts), sum(part[2] for part in parts)
            return self._left([tag, [part[0] for part in parts if not _is_gone(part)]], kept, lost)
        return self._mapping(node, inside) if tag in _MAPPINGS else (node, 0, 0)

    def _tensor(self, node: list[Any], inside: bool) -> tuple[Any, int, int]:
        name = next(self.names)
        if inside:
            self.found.add(name)
        for attribute in node[1][1::2] if len(node) > 1 else ():
            self.node(attribute, inside)
        return (None, 0, 1) if name in self.dropped else (node, 1, 0)

    def _mapping(self, node: list[Any], inside: bool) -> tuple[Any, int, int]:
        tag, items, *meta = node
        if isinstance(items, int):
            names = [next(self.names) for _ in range(items)]
            if inside:
                self.found.update(names)
            left = sum(name not in self.dropped for name in names)
            return self._left([tag, left, *meta], left, items - left)
        is_state = {key for key in items[::2] if isinstance(key, str)} >= _KEYS
        result: list[Any] = []
        kept = lost = 0
        for key, value in zip(items[::2], items[1::2], strict=True):
            part = self.node(value, inside or is_state)
            kept, lost = kept + part[1], lost + part[2]
            if not _is_gone(part):
                result += [key, part[0]]
        return self._left([tag, result, *meta], kept, lost)

    @staticmethod
    def _left(node: Any, kept: int, lost: int) -> tuple[Any, int, int]:
        return (None if lost and not kept else node), kept, lost


def _is_gone(part: tuple[Any, int, int]) -> bool:
    return part[0] is None and part[2] > 0
