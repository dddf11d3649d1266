"""Models of transformers, loaded by their own ``from_pretrained`` from folders that deepcabac compressed.

Importing this module registers deepcabac as a way to quantise: from then on ``AutoModel.from_pretrained(folder)``, and
all that builds on it, take a folder that ``deepcabac compress FOLDER --format transformers`` or :func:`save_pretrained`
wrote. The model that is loaded is a plain one. Needs transformers: ``pip install 'deepcabac[transformers]'``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .checkpoint.base import PathLike
from .errors import OptionError, UnsupportedError
from .folders import FolderReport, compress_folder
from .loadable import METHOD, check_version, decoded
from .slices import TensorSlice, safe_open
from .temporaries import TemporaryFolder
from .tensors import from_torch, to_torch

try:
    import torch
    from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as _cause:

    class MissingTransformersError(UnsupportedError, ImportError):
        """transformers is not installed, or too old."""

    raise MissingTransformersError(
        "deepcabac.transformers needs transformers 5.12 or later, and torch: pip install 'deepcabac[transformers]'"
    ) from _cause

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import OptionFields

__all__ = ["DeepCabacConfig", "LazyStateDict", "save_pretrained"]


def save_pretrained(
    model: Any, folder: PathLike, *, overwrite: bool = False, **settings: Unpack[OptionFields]
) -> FolderReport:
    """Save a model of transformers as ``model.save_pretrained`` does, compressed.

    ``settings`` are the fields of :class:`deepcabac.Options` by name. The folder appears whole or not at all. A
    tokenizer is saved by its own ``save_pretrained``. Raises :class:`OptionError` and what
    :func:`deepcabac.compress_folder` raises.
    """
    if not callable(getattr(model, "save_pretrained", None)):
        raise OptionError(f"give a model of transformers, not a {type(model).__name__}")
    with TemporaryFolder() as plain:
        model.save_pretrained(plain.path)
        return compress_folder(plain.path, folder, format="transformers", overwrite=overwrite, **settings)


class LazyTensor(TensorSlice):
    """A tensor that is decoded when it is indexed, and tells its type before."""

    @property
    def dtype(self) -> Any:
        """The tensor's ``torch.dtype``."""
        return getattr(torch, self._info.dtype.name)

    def is_floating_point(self) -> bool:
        """Whether it is of a floating-point type."""
        return bool(self.dtype.is_floating_point)


class LazyStateDict(Mapping[str, TensorSlice]):
    """The tensors of a .dcb file, decoded when ``from_pretrained(None, config=..., state_dict=...)`` asks for each."""

    def __init__(self, path: PathLike, **settings: Any) -> None:
        """``settings`` as for :class:`deepcabac.safe_open`."""
        self._file = safe_open(path, "pt", **settings)

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(self._file, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.offset_keys())

    def __len__(self) -> int:
        return len(self._file.offset_keys())

    def close(self) -> None:
        """Close the file."""
        self._file.__exit__(None, None, None)


@register_quantization_config(METHOD)
class DeepCabacConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """``quantization_config`` of a folder that was compressed for transformers."""

    def __init__(self, version: int = 1, **extra: Any) -> None:
        check_version({"version": version})
        self.quant_method = METHOD
        self.version = version
        self.dequantize = True  # the loaded model is a plain one, and says so


@register_quantizer(METHOD)
class DeepCabacQuantizer(HfQuantizer):  # type: ignore[misc]
    """Decodes tensors while transformers loads them, before it renames, merges or splits them."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **settings: Any) -> None:
        """Refuse to compress while loading."""
        if not self.pre_quantized:
            raise OptionError("the folder is not compressed: deepcabac.transformers.save_pretrained makes one that is")

    def _process_model_before_weight_loading(self, model: Any, **settings: Any) -> Any:
        if getattr(model.config, "distributed_config", None) is not None or settings.get("device_mesh") is not None:
            raise UnsupportedError(
                "coded tensors cannot be cut while they are loaded: load without tp_plan, or decompress first"
            )
        self._model = model
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """The model's conversions, each with decoding before it, and one for all other tensors."""
        model = model if model is not None else self._model
        self._converted: list[tuple[Any, Any]] = [(one, _decoding(one)) for one in weight_conversions]
        rest = WeightConverter(["^(.+)$"], [r"\1"], operations=[Decode(alone=True)])
        return [*(changed for _, changed in self._converted), rest]

    def get_weight_conversions(self) -> list[Any]:
        return []

    def _process_model_after_weight_loading(self, model: Any, **settings: Any) -> Any:
        # For save_pretrained: the names that the model's files have, without the decoding.
        model._weight_conversions = [one for one, changed in self._converted if changed.was_used()]
        del self._converted, self._model
        return model

    def is_serializable(self, *args: Any, **settings: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _decoding(conversion: WeightTransform) -> WeightTransform:
    """A conversion with decoding before its operations; a mere renaming as it is."""
    if not isinstance(conversion, WeightConverter):
        return conversion
    changed = copy.deepcopy(conversion)
    changed.operations = [Decode(), *changed.operations]
    return changed


class Decode(ConversionOps):  # type: ignore[misc]
    """Coded tensors become tensors of the type that the model wants; others pass."""

    def __init__(self, alone: bool = False) -> None:
        """``alone``: for a tensor without other operations, which then gets its full name."""
        self._alone = alone

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str] | None = None,
        target_patterns: list[str] | None = None,
        full_layer_name: str = "",
        model: Any = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Decode what was collected for the parameter ``full_layer_name``."""
        dtype = _wanted_dtype(full_layer_name, model)
        found = {
            pattern: [_plain(full_layer_name, tensor, dtype) for tensor in tensors]
            if isinstance(tensors, list)
            else _plain(full_layer_name, tensors, dtype)
            for pattern, tensors in input_dict.items()
        }
        if not self._alone:
            return found
        (tensors,) = found.values()
        return {full_layer_name: tensors}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def _plain(name: str, tensor: Any, dtype: Any) -> Any:
    if tensor.dtype == torch.uint8 and tensor.ndim == 1:
        tensor = to_torch(name, decoded(from_torch(tensor))).to(tensor.device)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor


def _wanted_dtype(name: str, model: Any) -> Any:
    """The type that a floating-point parameter or buffer is to have, None to leave it: as transformers chooses it."""
    module, _, leaf = name.rpartition(".")
    try:
        there = getattr(model.get_submodule(module), leaf)
    except AttributeError:
        return None
    if there is None or not there.is_floating_point():
        return None
    for pattern, dtype in (model._get_dtype_plan(model.dtype) or {}).items():
        if re.search(pattern.replace("*", ".*"), name):
            return dtype
    return there.dtype


def __dir__() -> list[str]:
    return __all__
