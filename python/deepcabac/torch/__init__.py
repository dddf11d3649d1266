"""PyTorch models: saved, loaded, measured, corrected, made sparse. Needs torch: ``pip install 'deepcabac[torch]'``."""

from ..curvature import Curvature
from ..errors import UnsupportedError
from ..slices import safe_open

try:
    import torch as _torch  # noqa: F401 - only to see that it is there
except ImportError as _cause:

    class MissingTorchError(UnsupportedError, ImportError):
        """torch is not installed."""

    raise MissingTorchError("deepcabac.torch needs torch: pip install 'deepcabac[torch]'") from _cause

from .bias_correction import correction
from .calibration import calibrate
from .folding import fold_batch_norm
from .models import load_model, save_model
from .posterior import fisher, variational
from .publishing import Publisher, apply
from .sparsity import MagnitudePruning, VariationalDropout, sparsify
from .synthetic import synthetic_inputs, synthetic_tokens
from .tensors import load, load_file, save, save_file

__all__ = [
    "Curvature",
    "MagnitudePruning",
    "Publisher",
    "VariationalDropout",
    "apply",
    "calibrate",
    "correction",
    "fisher",
    "fold_batch_norm",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "save",
    "save_file",
    "save_model",
    "sparsify",
    "synthetic_inputs",
    "synthetic_tokens",
    "variational",
]


def __dir__() -> list[str]:
    return __all__
