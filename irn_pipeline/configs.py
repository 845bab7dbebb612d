"""Where the YAML files of `configs/` are: in a checkout beside the package, else where the installer put them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from irn_pipeline.errors import ConfigError

_KNOWN = "voc12.yaml"


def config_folder() -> Path:
    """The folder that holds `voc12.yaml`, `demo.yaml` and `presets/`.

    Raises:
        ConfigError: it is not there; the installation is incomplete.
    """
    checkout = Path(__file__).resolve().parents[1] / "configs"
    if (checkout / _KNOWN).is_file():
        return checkout
    try:
        files = metadata.files("irn_pipeline") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _KNOWN:
            return Path(str(file.locate())).resolve().parent
    raise ConfigError(f"{checkout}: no such folder; install irn_pipeline again, or run it from its checkout")
