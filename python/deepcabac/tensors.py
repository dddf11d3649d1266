"""Arrays of other libraries as numpy arrays, and numpy arrays as tensors of PyTorch, without needing it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checkpoint.base import Array, TensorSpec, bits_of
from .checkpoint.packing import pack, unpack
from .checkpoint.torch_types import PAIR, PAIRS, spec_of_torch
from .errors import OptionError, UnsupportedError


def as_array(name: str, value: Any) -> Array:
    """The tensor called ``name`` as a numpy array, on the same memory where that can be.

    Takes tensors of PyTorch (on any device, with or without gradients, bfloat16 too) and what ``numpy.asarray`` takes.
    Raises :class:`UnsupportedError`.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        torch_spec(name, value)
        return from_torch(value)
    if isinstance(value, Mapping):
        inner = next((str(key) for key in value), "...")
        raise UnsupportedError(
            f"tensor {name!r} is a mapping, not an array: flatten nested ones first, as to '{name}.{inner}'"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedError(f"tensor {name!r} cannot become a numpy array: {error}") from error
    if array.dtype == object:
        raise UnsupportedError(f"tensor {name!r} is a {type(value).__name__} of dtype object, not an array of numbers")
    return array


def torch_spec(name: str, tensor: Any) -> TensorSpec:
    """What a torch tensor is stored as; :class:`UnsupportedError` if a .dcb file cannot hold it."""
    import torch

    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedError(f"tensor {name!r} is sparse or nested; convert it with .to_dense() first")
    if tensor.is_meta:
        raise UnsupportedError(f"tensor {name!r} is on the meta device and has no values to save")
    spec = spec_of_torch(name, tensor)
    if spec is None or tensor.is_quantized:
        raise UnsupportedError(f"tensor {name!r} has dtype {tensor.dtype}, which is not supported; convert it first")
    return spec


def from_torch(tensor: Any) -> Array:
    """The values of a torch tensor that :func:`torch_spec` accepts; no copy if it is contiguous and on the CPU."""
    import torch

    spec = torch_spec("", tensor)
    # Through bytes, because numpy knows neither bfloat16 nor float8.
    plain = tensor.detach().to("cpu").resolve_neg().resolve_conj().contiguous()
    flat: Array = plain.reshape(-1).view(torch.uint8).numpy()
    return unpack(flat, spec) if bits_of(spec.dtype) < 8 else flat.view(spec.dtype).reshape(spec.shape)


def torch_memory(target: Any) -> Array | None:
    """A torch tensor's own memory, if a tensor can be decoded straight into it."""
    plain = target.device.type == "cpu" and target.is_contiguous() and not target.is_neg() and not target.is_conj()
    spec = spec_of_torch("", target)
    if spec is None or bits_of(spec.dtype) < 8 or not plain or target.numel() == 0:
        return None
    return from_torch(target)


def to_torch(name: str, array: Array) -> Any:
    """A torch tensor on the memory of a contiguous array; pairs of 4-bit floats are packed."""
    import torch

    shape = array.shape
    dtype = getattr(torch, array.dtype.name, None)
    if array.dtype == PAIR and shape and shape[-1] % 2 == 0:
        dtype, shape, array = getattr(torch, PAIRS, None), (*shape[:-1], shape[-1] // 2), pack(array)
    elif bits_of(array.dtype) < 8:  # PyTorch has int4, but next to nothing that can be done with it
        dtype = torch.int8 if array.dtype.name.startswith("int") else torch.uint8
        dtype = None if array.dtype.name.startswith("float") else dtype
    if dtype is None:  # uint16 and others before torch 2.3
        raise UnsupportedError(f"tensor {name!r} has dtype {array.dtype.name}, which this version of torch lacks")
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(shape)


def torch_device(device: Any) -> Any:
    """``device`` (a ``torch.device``, or what makes one) as a ``torch.device``. Raises :class:`OptionError`."""
    import torch

    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"device must be one of PyTorch's, such as 'cpu' or 'cuda:0', not {device!r}") from error
