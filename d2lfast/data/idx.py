"""Reader of the IDX format of the MNIST family."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_UINT8 = 0x08


def read_idx(path: str | Path, dims: int | None = None) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file; it is unpacked if it begins as gzip files do, whatever its name.
        dims: the number of dimensions that it must have (1 for labels, 3 for images); None accepts any.

    Returns:
        A uint8 tensor of the sizes that the header states.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another kind; the message names it.
    """
    path = Path(path)
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: it cannot be unpacked ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UINT8 or data[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {data[:4].hex() or 'nothing'}"
        )
    count = data[3]
    if dims is not None and count != dims:
        raise ValueError(f"{path} holds {count}-dimensional data, expected {dims} dimensions")
    header = 4 + 4 * count
    if len(data) < header:
        raise ValueError(f"{path} is damaged: it ends within its header")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count, offset=4))
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path} is damaged: {len(data)} bytes, expected {expected} for the sizes {shape}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())
