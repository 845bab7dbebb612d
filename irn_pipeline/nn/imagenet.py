"""torchvision's ImageNet weights: the only thing that the program ever fetches from the network."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path

import torch

from irn_pipeline.errors import CheckpointError

_BLOCK = 1 << 20


def imagenet_weights(name: str) -> Path:
    """The file of a network's IMAGENET1K_V1 weights, in torch's cache; downloaded when it is not there.

    torch checks the hash of what it downloads, but not of what an earlier run or another program left in the cache.
    Here the file's hash is checked whenever it is used.

    Args:
        name: of a torchvision model, such as resnet50.

    Returns:
        A path whose SHA-256 begins with the digits that torchvision put into the file's name.

    Raises:
        CheckpointError: the download failed, or the file is not the published one.
    """
    # torchvision takes longer to import than the rest of the program, and no help text needs it.
    from torchvision.models import get_model_weights

    url: str = get_model_weights(name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    digits = path.stem.rsplit("-", 1)[-1]
    if not path.is_file():
        _download(name, url, path, digits)
    try:
        found = _sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove it, or name another file: --backbone-weights PATH"
        ) from error
    if not found.startswith(digits):
        raise CheckpointError(
            f"{path}: is not the file that torchvision published (its SHA-256 begins with {found[: len(digits)]}, "
            f"expected {digits}); remove it and start again, or name a file: --backbone-weights PATH"
        )
    return path


def _download(name: str, url: str, path: Path, digits: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed when its hash is right.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:  # network, disk; a broken reply; a wrong hash
        raise CheckpointError(
            f"{name}: ImageNet weights could not be downloaded ({error}); download {url} elsewhere and name the "
            "file: --backbone-weights PATH, or train from scratch: --backbone-weights none"
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
