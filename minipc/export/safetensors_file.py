"""A model as a safetensors file: its arrays under PyTorch's names, and what else it needs.

The format is eight bytes, the length of a JSON header, the header, and the arrays one after the
other.  We write it here, because the package safetensors puts the metadata in another order on
every run, and the same model shall give the same bytes.
"""

import json

import numpy as np

from minipc.export.described import Described
from minipc.export.state_dict import state_dict
from minipc.models.file import Model

KINDS = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}


def content(model: Model, about: Described) -> bytes:
    """Return the bytes of the file of a model on the host."""
    header: dict = {"__metadata__": about.as_text() | {"eps": repr(model.config.eps)}}
    arrays, at = [], 0
    for name, array in state_dict(model).items():
        place = [at, at + array.nbytes]
        header[name] = {
            "dtype": KINDS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": place,
        }
        arrays.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        at = place[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *arrays])
