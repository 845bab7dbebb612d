"""Read `torch.save` files as data: torch's own reader of weights runs nothing that they name."""

from __future__ import annotations

import io
import zipfile
from pickle import UnpicklingError
from typing import Any, BinaryIO

from irn_pipeline.files.regular import size_of


def load_torch(stream: BinaryIO) -> Any:
    """The value of an open `torch.save` file: plain containers, numbers, texts and dense tensors, on the CPU.

    Args:
        stream: stands at the beginning of the file.

    Raises:
        UnpicklingError: it holds something else, or unpacks to more than the file has.
        Exception: it is damaged; torch, zipfile and pickle raise many types.
    """
    import torch  # takes a second, and most callers read no such file

    start, size = stream.tell(), size_of(stream)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            # torch packs nothing, but would unpack; that a storage has the bytes it names is its own check.
            if sum(member.file_size for member in archive.infolist()) > size:
                raise UnpicklingError("its archive unpacks to more than the file holds")
        stream.seek(start)
    else:
        # From before torch 1.6. A text may name any length, which a file of the disk would reserve.
        stream.seek(start)
        stream = io.BytesIO(stream.read())
    return torch.load(stream, map_location="cpu", weights_only=True)
