"""Encode and decode the tensors of an .npz file with NNCodec 2.1.3 and print what it took, as one line of JSON.

    PEER_PYTHON bench/peers/nncodec_worker.py INPUT.npz OUTPUT.npz --qp -20 [--dq] [--lambda-scale X] [--repeat N]

PEER_PYTHON belongs to an environment of its own, because NNCodec asks for numpy < 2:

    python3 -m venv PEER
    PEER/bin/pip install "numpy<2"
    PEER/bin/pip install --no-deps nncodec==2.1.3       # compiles its C++ coder, in a minute or two

INPUT.npz holds float32 arrays of one dimension or more. They are coded in memory, all in one call, as NNCodec's
interface intends. Only the two calls are timed, and the best of N repeats of each is reported: encoding includes
quantisation, decoding includes the way back to float32. OUTPUT.npz receives the decoded arrays under the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]
Result = TypeVar("Result")

# NNCodec's C++ coder has no threads and holds the interpreter lock, and nothing around it starts workers for coding
# (the `workers` option of its front end belongs to the training data loader). One core is all it can use.
THREADS = 1


def import_nncodec() -> Any:
    """Import NNCodec's coder without its training helpers.

    `nncodec.nnc` imports `nncodec.framework` (torch, torchvision, OpenCV, pandas, data sets) when it is loaded, but
    calls nothing of it to code a dict of arrays. An empty package in its place keeps the environment at NumPy;
    everything that is timed here is the released code, untouched.
    """
    framework = ModuleType("nncodec.framework")
    for name in ("pytorch_model", "tensorflow_model", "use_case_init"):
        setattr(framework, name, ModuleType(f"nncodec.framework.{name}"))
    sys.modules["nncodec.framework"] = framework
    from nncodec import nnc

    return nnc


def encoder_settings(qp: int, dq: bool, lambda_scale: float) -> dict[str, Any]:
    """Arguments of `nnc.compress`: NNCodec's defaults, except where a comment gives another reason."""
    return {
        "qp": qp,  # one step size for all tensors of two dimensions or more: 2^(qp/4), linear between octaves
        "nonweight_qp": -75,  # tensors of one dimension
        "use_dq": dq,  # dependent (trellis coded) quantisation
        "lambda_scale": lambda_scale,  # rate term of the quantiser's search; 0 is none
        "param_opt": True,  # a dry pass picks how each context adapts: 0.5 to 0.7 % smaller, half as fast to encode
        "row_skipping": True,  # default of `nncodec.nn.encode`; free on dense tensors, smaller on rows of zeros
        "scan_order": 0,  # row by row; the block scans are larger and, decoded by one thread, no faster
        "cabac_unary_length_minus1": 10,
    }


def load_tensors(path: str) -> Tensors:
    """Read every array of an .npz file, refusing what NNCodec cannot code (it would print the input and exit)."""
    with np.load(path) as archive:
        tensors = {name: archive[name] for name in archive.files}
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or tensor.ndim == 0:
            raise SystemExit(f"{path}: {name} is {tensor.dtype} {tensor.shape}; need float32 of one dimension or more")
    return tensors


def best_time(call: Callable[[], Result], repeat: int) -> tuple[float, Result]:
    """Run `call` `repeat` times; return its shortest time in seconds and its last result."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", metavar="INPUT.npz", help="float32 arrays to encode")
    parser.add_argument("output", metavar="OUTPUT.npz", help="where the decoded arrays go")
    parser.add_argument("--qp", type=int, required=True, help="quantisation parameter; four to an octave of step size")
    parser.add_argument("--dq", action="store_true", help="dependent quantisation")
    parser.add_argument("--lambda-scale", type=float, default=0.0, metavar="X", help="rate term (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="best of N (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def main() -> None:
    """Code the tensors, write what came back, print the measurements."""
    arguments = parse_arguments()
    tensors = load_tensors(arguments.input)
    settings = encoder_settings(arguments.qp, arguments.dq, arguments.lambda_scale)
    # stdout is for the JSON line alone, and `verbose=False` does not silence everything: notes on clipped QPs stay.
    with contextlib.redirect_stdout(sys.stderr):
        nnc = import_nncodec()
        encode_seconds, stream = best_time(
            # without a path of None it writes ./bitstream.nnc
            lambda: nnc.compress(tensors, bitstream_path=None, return_bitstream=True, verbose=False, **settings),
            arguments.repeat,
        )
        decode_seconds, decoded = best_time(lambda: nnc.decompress(stream, verbose=False), arguments.repeat)
    with open(arguments.output, "wb") as file:
        np.savez(file, **decoded)
    print(
        json.dumps(
            {
                "encode_seconds": encode_seconds,
                "decode_seconds": decode_seconds,
                "bytes": len(stream),
                "weights": sum(tensor.size for tensor in tensors.values()),
                "threads": THREADS,
                "versions": {
                    "nncodec": version("nncodec"),
                    "numpy": version("numpy"),
                    "python": platform.python_version(),
                },
                "settings": settings,
            }
        )
    )


if __name__ == "__main__":
    main()
