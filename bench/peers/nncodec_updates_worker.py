"""Encode a model and differences to it with NNCodec 2.1.3 and its temporal context adaptation.

    PEER_PYTHON bench/peers/nncodec_updates_worker.py INPUT.npz OUTPUT.npz --qp -36

INPUT.npz holds float32 arrays called STEP/NAME: STEP 0 is the model, those from 1 on are differences. OUTPUT.npz
receives the last step as NNCodec decodes it; a line of JSON says how many bytes each step took. PEER_PYTHON as for
nncodec_worker.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

import numpy as np
from nncodec_worker import import_nncodec


def fresh_states() -> dict[str, Any]:
    """What NNCodec remembers of the version before: it fills the fields itself."""
    return {"parameters": {}, "put_node_depth": {}, "device_id": 0, "parameter_id": {}}


def main() -> None:
    """Code the steps one after the other, decode them again, write the last one, print the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", metavar="INPUT.npz")
    parser.add_argument("output", metavar="OUTPUT.npz")
    parser.add_argument("--qp", type=int, required=True, help="of the differences; the model's is -40")
    parser.add_argument("--no-tca", action="store_true", help="without temporal context adaptation")
    arguments = parser.parse_args()
    with np.load(arguments.input) as archive:
        tensors = {name: archive[name] for name in archive.files}
    steps = sorted({int(name.split("/", 1)[0]) for name in tensors})
    sizes = []
    decoded: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        nnc = import_nncodec()
        coder, reader = fresh_states(), fresh_states()
        for step in steps:
            prefix = f"{step}/"
            arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            stream = nnc.compress(
                arrays,
                bitstream_path=None,
                return_bitstream=True,
                verbose=False,
                qp=arguments.qp if step else -40,
                # Differences of biases and norms are as small as others.
                nonweight_qp=arguments.qp if step else -75,
                use_dq=True,
                param_opt=True,
                row_skipping=True,
                tca=not arguments.no_tca,
                compress_differences=step > 0,
                approx_param_base=coder,
                update_base_param=True,
            )
            sizes.append(len(stream))
            decoded = nnc.decompress(stream, verbose=False, approx_param_base=reader, update_base_param=True)
    with open(arguments.output, "wb") as file:
        np.savez(file, **decoded)
    print(json.dumps({"bytes": sizes}))


if __name__ == "__main__":
    main()
