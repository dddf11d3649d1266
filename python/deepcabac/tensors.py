"""Arrays of other libraries as numpy arrays, and numpy arrays as tensors of PyTorch, without needing it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checkpoint.base import DTYPES, Array
from .errors import OptionError, UnsupportedError

#: numpy (with ml_dtypes) and torch call every type by the same name.
_DTYPE_OF_NAME: dict[str, np.dtype[Any]] = {f"torch.{dtype.name}": dtype for dtype in DTYPES}


def as_array(name: str, value: Any) -> Array:
    """The tensor called ``name`` as a numpy array, on the same memory where that can be.

    Takes tensors of PyTorch (on any device, with or without gradients, bfloat16 too) and what ``numpy.asarray`` takes.
    Raises :class:`UnsupportedError`.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        torch_dtype(name, value)
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


def torch_dtype(name: str, tensor: Any) -> np.dtype[Any]:
    """A torch tensor's dtype; :class:`UnsupportedError` if a .dcb file cannot hold it."""
    import torch

    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedError(f"tensor {name!r} is sparse or nested; convert it with .to_dense() first")
    if tensor.is_meta:
        raise UnsupportedError(f"tensor {name!r} is on the meta device and has no values to save")
    dtype = _DTYPE_OF_NAME.get(str(tensor.dtype))
    if dtype is None or tensor.is_quantized:
        raise UnsupportedError(f"tensor {name!r} has dtype {tensor.dtype}, which is not supported; convert it first")
    return dtype


def from_torch(tensor: Any) -> Array:
    """The values of a torch tensor that :func:`torch_dtype` accepts; no copy if it is contiguous and on the CPU."""
    import torch

    # Through bytes, because numpy knows neither bfloat16 nor float8.
    flat = tensor.detach().to("cpu").resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    array: Array = flat.view(_DTYPE_OF_NAME[str(tensor.dtype)]).reshape(tuple(tensor.shape))
    return array


def torch_memory(target: Any) -> Array | None:
    """A torch tensor's own memory, if a tensor can be decoded straight into it."""
    dtype = _DTYPE_OF_NAME.get(str(target.dtype))
    plain = target.device.type == "cpu" and target.is_contiguous() and not target.is_neg()
    if dtype is None or not plain or target.numel() == 0:
        return None
    return from_torch(target)


def to_torch(name: str, array: Array) -> Any:
    """A torch tensor on the memory of a contiguous array."""
    import torch

    dtype = getattr(torch, array.dtype.name, None)
    if dtype is None:  # uint16 and others before torch 2.3
        raise UnsupportedError(f"tensor {name!r} has dtype {array.dtype.name}, which this version of torch lacks")
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)


def torch_device(device: Any) -> Any:
    """``device`` (a ``torch.device``, or what makes one) as a ``torch.device``. Raises :class:`OptionError`."""
    import torch

    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"device must be one of PyTorch's, such as 'cpu' or 'cuda:0', not {device!r}") from error
