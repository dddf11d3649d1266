"""The structure around the tensors of a ``.pt`` file - nested dicts, lists, numbers - as JSON, and back.

Tensors appear in the skeleton only as "the next one", so that its size does not grow with their names. Written as
JSON arrays:

    null, true, 1, 0.5, "text"      themselves
    ["f", "nan"]                    a float that JSON lacks           ["j", re, im]       complex, each part as a string
    ["x", "00ff"], ["X", "00ff"]    bytes, bytearray                  ["i", "0x1f..."]    an integer beyond 64 bits
    ["l", [...]], ["u", [...]]      list, tuple                       ["s", [...]]        torch.Size
    ["S", [...]]                    set                               ["y", "float32"]    torch.dtype
    ["v", "cuda:0"]                 torch.device
    ["d", [key, value, ...]]        dict                              ["C", [...]]        Counter, likewise
    ["o", [...], meta]              OrderedDict, likewise, and its _metadata if it has one
    ["d", 12], ["o", 12, meta]      the same, of 12 plain tensors whose names are the path so far followed by the key
    ["n", "<f8", "00ff"]            a numpy number, its dtype and its bytes
    ["N", "<f8", [3], "00ff"]       a numpy array, likewise
    ["t"], ["g"]                    the next tensor; the same, requiring its gradient
    ["p"], ["q"]                    the next tensor as a Parameter, which requires its gradient, or not
    ["t", ["a", 1]]                 a tensor with attributes of its own: names and values in turn
    ["t", [], "complex32"]          a tensor of a type that only PyTorch has, whose elements are stored as their bytes

A third element of the outermost array, "bin", is the suffix that the file had; without it, that is "pt".

A tensor's name is the path to it, joined by dots. Names in an outermost dict are kept exactly; where two paths meet,
the later name gets "~2", "~3" and so on.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DamagedFileError, UnsupportedError
from . import numpy_values
from .base import compact_json, parse_json
from .torch_types import ONLY_TORCH

_VERSION = 1
_MAX_NODES = 1 << 21  # a pickle can refer to one list many times over, and so unfold into far more than its size

_PARAMETER, _FIXED_PARAMETER, _WITH_GRADIENT, _PLAIN = "p", "q", "g", "t"
TENSOR_TAGS = (_PARAMETER, _FIXED_PARAMETER, _WITH_GRADIENT, _PLAIN)
_SEQUENCES: dict[str, type] = {"l": list, "u": tuple, "S": set}
_MAPPINGS: dict[str, type] = {"d": dict, "o": OrderedDict, "C": Counter}
_TAG_OF_TYPE: dict[type, str] = {kind: tag for tag, kind in (_SEQUENCES | _MAPPINGS).items()}


def dissolve(root: Any, torch: Any, where: str, suffix: str = "") -> tuple[list[tuple[str, Any]], bytes]:
    """Take the tensors out of ``root``: return (name, tensor) pairs in order, and the skeleton as JSON.

    ``suffix`` is that of the file, without its dot; nothing stands for "pt".

    Raises :class:`UnsupportedError`, its message beginning with ``where``, for anything else than the types listed
    above.
    """
    dissolver = _Dissolver(root, torch, where)
    try:
        skeleton = [_VERSION, dissolver.node(root, None)]
        return dissolver.tensors, compact_json([*skeleton, suffix] if suffix else skeleton)
    except RecursionError as error:
        raise UnsupportedError(f"{where}: is nested too deeply; save its state dict alone") from error
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            f"{where}: a text holds half a UTF-16 pair, which cannot be stored; rename it"
        ) from error


def _join(path: str | None, key: Any) -> str:
    return str(key) if path is None else f"{path}.{key}"


class _Dissolver:
    def __init__(self, root: Any, torch: Any, where: str) -> None:
        self.torch, self.where = torch, where
        self.tensors: list[tuple[str, Any]] = []
        self._nodes = 0
        self._outermost: set[str] = set()
        if isinstance(root, dict):
            self._outermost = {key for key, item in root.items() if type(key) is str and isinstance(item, torch.Tensor)}
        self._taken = set(self._outermost)

    def node(self, value: Any, path: str | None, outermost: bool = True) -> Any:
        """The JSON for ``value``, which sits at ``path``; its tensors are appended to ``self.tensors``."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise UnsupportedError(f"{self.where}: holds more than {_MAX_NODES:,} values; save its state dict alone")
        kind = type(value)
        if isinstance(value, self.torch.Tensor):
            return self._tensor(value, path, outermost)
        if kind in (str, bool, type(None)) or (kind is int and abs(value) < 1 << 63):
            return value
        if kind is float:
            return value if math.isfinite(value) else ["f", str(value)]
        if kind in _MAPPINGS.values():
            return self._mapping(value, path)
        if kind in _SEQUENCES.values():
            items = sorted(value, key=repr) if kind is set else value  # a set's own order changes from run to run
            return [_TAG_OF_TYPE[kind], [self.node(item, _join(path, i), False) for i, item in enumerate(items)]]
        if kind is self.torch.Size:
            return ["s", list(value)]
        if kind is int and value.bit_length() <= 1 << 12:  # Python refuses to print really long ones
            return ["i", hex(value)]
        if kind is complex:
            return ["j", str(value.real), str(value.imag)]
        if kind in (bytes, bytearray):
            return ["x" if kind is bytes else "X", value.hex()]
        if kind is self.torch.dtype:
            return ["y", str(value).removeprefix("torch.")]
        if kind is self.torch.device:
            return ["v", str(value)]
        value = numpy_values.loaded(value)
        if isinstance(value, np.generic | np.ndarray) and numpy_values.is_kept(value.dtype):
            return self._numpy(value, path)
        raise UnsupportedError(
            f"{self.where}: {path or 'the file'!s} is a {kind.__module__}.{kind.__name__}, which cannot be kept; "
            "save a dict of tensors, numbers and texts"
        )

    def _numpy(self, value: Any, path: str | None) -> Any:
        if value.nbytes > numpy_values.MOST_BYTES:
            raise UnsupportedError(
                f"{self.where}: {path or 'the file'!s} is a numpy array of {value.nbytes:,} bytes; "
                "save it as a tensor: torch.from_numpy"
            )
        if isinstance(value, np.generic):
            return ["n", value.dtype.str, value.tobytes().hex()]
        return ["N", value.dtype.str, list(value.shape), value.tobytes().hex()]

    def _mapping(self, mapping: dict[Any, Any], path: str | None) -> Any:
        first = len(self.tensors)
        items: list[Any] = []
        for key, value in mapping.items():
            items += [
                self.node(key, path, False),
                self.node(value, _join(path, key), path is None and type(key) is str),
            ]
        tag = _TAG_OF_TYPE[type(mapping)]
        names = [name for name, _ in self.tensors[first:]]
        all_plain = all(type(key) is str for key in mapping) and all(item == [_PLAIN] for item in items[1::2])
        if mapping and all_plain and names == [_join(path, key) for key in mapping]:
            items_or_count: Any = len(names)
        else:
            items_or_count = items
        attributes = getattr(mapping, "__dict__", {})  # torch.nn.Module.state_dict sets _metadata on its OrderedDict
        if not attributes:
            return [tag, items_or_count]
        if attributes.keys() != {"_metadata"} or tag != "o":
            raise UnsupportedError(
                f"{self.where}: a dict at {path or 'the top'} has attributes of its own; save a plain dict"
            )
        return [tag, items_or_count, self.node(attributes["_metadata"], _join(path, "_metadata"), False)]

    def _tensor(self, tensor: Any, path: str | None, outermost: bool) -> Any:
        wanted = "tensor" if path is None else path
        name = wanted
        if not (outermost and wanted in self._outermost):
            number = 2
            while name in self._taken:
                name = f"{wanted}~{number}"
                number += 1
            self._taken.add(name)
        self.tensors.append((name, tensor))
        if type(tensor) is self.torch.nn.Parameter:
            tag = _PARAMETER if tensor.requires_grad else _FIXED_PARAMETER
        elif type(tensor) is not self.torch.Tensor:
            raise UnsupportedError(
                f"{self.where}: tensor {name!r} is a {type(tensor).__name__}; save an ordinary tensor instead"
            )
        else:
            tag = _WITH_GRADIENT if tensor.requires_grad else _PLAIN
        items: list[Any] = []
        for key, value in tensor.__dict__.items():
            items += [key, self.node(value, f"{name}'s attribute {key}", False)]
        name_of_type = str(tensor.dtype).removeprefix("torch.")
        if name_of_type in ONLY_TORCH:
            return [tag, items, name_of_type]
        return [tag, items] if items else [tag]



@dataclass(frozen=True)
class Leaf:
    """A tensor of the structure."""

    name: str
    tag: str = _PLAIN  #: one of TENSOR_TAGS
    attributes: dict[str, Any] = field(default_factory=dict)
    torch_type: str = ""  #: PyTorch's name of its type, where what is stored is of another one


Make = Callable[[Leaf], Any]

_WHAT = "the stored structure of the .pt file"


def _parse(skeleton: bytes) -> tuple[Any, str]:
    """The tree of an untrusted skeleton, and the suffix that the file had."""
    versioned = parse_json(skeleton, _WHAT, DamagedFileError)
    if not isinstance(versioned, list) or len(versioned) not in (2, 3) or type(versioned[0]) is not int:
        raise DamagedFileError(f"{_WHAT} is malformed")
    version, tree, *suffix = versioned
    if version > _VERSION:
        raise UnsupportedError(f"{_WHAT} has version {version}, newer than this program; upgrade deepcabac")
    if version != _VERSION or not all(isinstance(text, str) for text in suffix):
        raise DamagedFileError(f"{_WHAT} is malformed")
    return tree, suffix[0] if suffix else "pt"


def suffix_of(skeleton: bytes) -> str:
    """The suffix that the file had, without its dot. Raises :class:`DamagedFileError` for a malformed skeleton."""
    return _parse(skeleton)[1]


def beside_tensors(skeleton: bytes) -> list[str]:
    """What the structure holds besides tensors and the dicts and lists around them: a path to each value.

    Raises :class:`DamagedFileError` for a malformed skeleton.
    """

    def visit(node: Any, path: str | None) -> tuple[list[str], bool]:
        """The paths below ``node``, and whether tensors are below it."""
        if isinstance(node, list) and node and node[0] in TENSOR_TAGS:
            return ([f"{path}'s attributes"] if len(node) > 1 and node[1] else []), True
        children: list[tuple[Any, Any]] = []
        if isinstance(node, list) and len(node) > 1 and node[0] in (*_SEQUENCES, *_MAPPINGS):
            if node[0] in _MAPPINGS and not isinstance(node[1], list):
                return [], True
            items = node[1] if isinstance(node[1], list) else []
            children = list(enumerate(items))
            if node[0] in _MAPPINGS:
                keys = (key if isinstance(key, str | int) else "..." for key in items[::2])
                children = list(zip(keys, items[1::2], strict=False))
        below = [visit(child, _join(path, key)) for key, child in children]
        if any(tensors for _, tensors in below):
            return [name for names, _ in below for name in names], True
        return [path or "the file"], False

    try:
        return visit(_parse(skeleton)[0], None)[0]
    except RecursionError as error:
        raise DamagedFileError(f"{_WHAT} is malformed") from error


def assemble(skeleton: bytes, names: Iterable[str], torch: Any, make: Make) -> Any:
    """Rebuild the structure from an untrusted skeleton; ``make`` supplies each tensor.

    Raises :class:`DamagedFileError` when the skeleton is malformed or does not use exactly the tensors in ``names``.
    """
    what = _WHAT
    tree, _ = _parse(skeleton)
    assembler = _Assembler(iter(names), torch, make)
    try:
        root = assembler.build(tree, None)
    # A malformed tree fails in as many ways as there are types in it, all of them harmless.
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, StopIteration, OverflowError) as error:
        raise DamagedFileError(f"{what} is malformed: {type(error).__name__}") from error
    if next(assembler.names, None) is not None:
        raise DamagedFileError(f"{what} does not mention every tensor; the file is damaged")
    return root


class _Assembler:
    def __init__(self, names: Iterator[str], torch: Any, make: Make) -> None:
        self.names, self.torch, self.make = names, torch, make

    def build(self, node: Any, path: str | None) -> Any:
        """The value that ``node`` describes; any of several exceptions when it describes none."""
        if not isinstance(node, list):
            return node
        tag, *arguments = node
        if tag in TENSOR_TAGS:
            return self._tensor(tag, path, *arguments)
        if tag in _MAPPINGS:
            return self._mapping(tag, path, *arguments)
        (argument, *more) = arguments
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([self.build(item, _join(path, i)) for i, item in enumerate(argument)])
        if tag == "f":
            return float(argument)
        if tag == "i":
            return int(argument, 16)
        if tag == "j":
            return complex(float(argument), float(more[0]))
        if tag == "n":
            return numpy_values.from_bytes(numpy_values.dtype_of(argument), bytes.fromhex(more[0]), ())[()]
        if tag == "N":
            shape, values = more
            return numpy_values.from_bytes(numpy_values.dtype_of(argument), bytes.fromhex(values), tuple(shape))
        if tag in ("x", "X"):
            return (bytes if tag == "x" else bytearray).fromhex(argument)
        if tag == "s":
            return self.torch.Size(argument)
        if tag == "v":
            return self.torch.device(argument)
        if tag == "y":
            dtype = getattr(self.torch, argument)
            if isinstance(dtype, self.torch.dtype):
                return dtype
        raise ValueError(tag)

    def _tensor(self, tag: str, path: str | None, items: Any = (), torch_type: Any = "") -> Any:
        name = next(self.names)
        if torch_type and torch_type not in ONLY_TORCH:
            raise ValueError(torch_type)
        attributes: dict[str, Any] = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError(key)
            attributes[key] = self.build(value, path)
        return self.make(Leaf(name, tag, attributes, torch_type))

    def _mapping(self, tag: str, path: str | None, items_or_count: Any, metadata: Any = None) -> Any:
        mapping = _MAPPINGS[tag]()
        if isinstance(items_or_count, int):
            prefix = "" if path is None else path + "."
            for _ in range(items_or_count):
                name = next(self.names)
                if not name.startswith(prefix):
                    raise ValueError(name)
                mapping[name[len(prefix) :]] = self.make(Leaf(name))
        else:
            for key, value in zip(items_or_count[::2], items_or_count[1::2], strict=True):
                built = self.build(key, path)
                mapping[built] = self.build(value, _join(path, built))
        if metadata is not None:
            mapping._metadata = self.build(metadata, _join(path, "_metadata"))
        return mapping
