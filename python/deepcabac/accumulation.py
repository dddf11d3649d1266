"""Error accumulation: what quantisation dropped of one update is added to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import files
from .checkpoint.base import Array
from .errors import OptionError
from .options import OptionFields

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on


class ErrorAccumulation:
    """Compresses a series of updates of one model. What quantisation drops from one update is sent with the next.

    So nothing is lost for good, as in Seide et al., "1-bit stochastic gradient descent" (2014). An update holds
    differences of weights, or gradients. Each sender needs its own object. ::

        accumulation = deepcabac.ErrorAccumulation()
        for round in rounds:
            data = accumulation.compress(update, sqnr=3)
    """

    def __init__(self) -> None:
        #: What the receiver still lacks, by name.
        self.dropped: dict[str, Array] = {}

    def compress(self, update: Mapping[str, npt.ArrayLike], **settings: Unpack[OptionFields]) -> bytes:
        """The bytes of a .dcb file of ``update`` and what was dropped before; ``decompress`` gives what arrives.

        ``update`` maps names to arrays; ``settings`` are those of :func:`deepcabac.save_file`. Raises
        :class:`OptionError` if a tensor has another shape than in the update before.
        """
        total = {}
        for name, given in update.items():
            array = np.asarray(given)
            before = self.dropped.get(name)
            if before is not None and before.shape != array.shape:
                raise OptionError(f"tensor {name!r} has shape {array.shape}, in the update before {before.shape}")
            total[name] = array if before is None else (array + before).astype(array.dtype)
        data = files.compress(total, **settings)
        arrived = files.decompress(data, threads=settings.get("threads"))
        kept = {name: array for name, array in self.dropped.items() if name not in total}
        with np.errstate(invalid="ignore"):  # what is not finite is sent exactly
            kept |= {
                name: np.nan_to_num(array - arrived[name]) for name, array in total.items() if array.dtype.kind in "fV"
            }
        self.dropped = kept
        return data
