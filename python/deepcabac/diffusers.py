"""Models and pipelines of diffusers, loaded by their own ``from_pretrained`` from folders that deepcabac compressed.

Importing this module registers deepcabac as a way to quantise, with diffusers and, for the parts of a pipeline that are
models of transformers, with that. The models that are loaded are plain ones.
"""

from __future__ import annotations

import enum
from typing import Any

from . import transformers as _transformers  # noqa: F401 - text encoders
from .errors import OptionError, UnsupportedError
from .loadable import METHOD, check_version, decoded
from .tensors import from_torch, to_torch

try:
    import torch
    from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from diffusers.quantizers.base import DiffusersQuantizer
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin
except ImportError as _cause:

    class MissingDiffusersError(UnsupportedError, ImportError):
        """diffusers is not installed, or too old."""

    raise MissingDiffusersError("deepcabac.diffusers needs diffusers 0.42 or later") from _cause

__all__: list[str] = []


class Method(str, enum.Enum):
    """The name of the method, as diffusers wants it."""

    DEEPCABAC = METHOD


class DeepCabacDiffusersConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """``quantization_config`` of a folder that was compressed for diffusers."""

    def __init__(self, version: int = 1, **extra: Any) -> None:
        check_version({"version": version})
        self.quant_method = Method.DEEPCABAC
        self.version = version

    def to_diff_dict(self) -> dict[str, Any]:
        """What is said about it, all of which counts."""
        return {"quant_method": METHOD, "version": self.version}


class DeepCabacDiffusersQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Decodes tensors before diffusers puts them into the model."""

    requires_calibration = False

    def validate_environment(self, *args: Any, **settings: Any) -> None:
        """Refuse to compress while loading."""
        if not self.pre_quantized:
            raise OptionError("the folder is not compressed: deepcabac.compress_folder makes one that is")

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a file, decoded."""
        return {name: _plain(name, tensor) for name, tensor in state_dict.items()}

    def check_if_quantized_param(self, *args: Any, **settings: Any) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **settings: Any) -> None:
        pass

    def _process_model_after_weight_loading(self, model: Any, **settings: Any) -> Any:
        # A plain model: saved again, it says nothing of this. Its configuration can only be replaced.
        said = {name: value for name, value in model._internal_dict.items() if name != "quantization_config"}
        model._internal_dict = type(model._internal_dict)(said)
        model.is_quantized = False
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def supports_safetensors_serialization(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _plain(name: str, tensor: Any) -> Any:
    if tensor.dtype == torch.uint8 and tensor.ndim == 1:
        return to_torch(name, decoded(from_torch(tensor))).to(tensor.device)
    return tensor


AUTO_QUANTIZER_MAPPING[METHOD] = DeepCabacDiffusersQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = DeepCabacDiffusersConfig


def __dir__() -> list[str]:
    return __all__
