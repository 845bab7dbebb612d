"""Parameters of stage make_cam: those of all kinds of seeds, and each kind's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from irn_pipeline.ops.scenes import require_tile
from irn_pipeline.seeds import SEEDS, SeedName
from irn_pipeline.variants import bases_of


@dataclass(frozen=True)
class CommonParams:
    """Parameters of all kinds of seeds."""

    seeds: SeedName = field(default="cam", metadata={"fingerprint": "unless default"})
    """How to compute the maps: cam (published), layercam, lpcam (prototypes clustered over the image list), advcam,
    pixels (a per-cell classifier that also learns background), centre (for images with one object in the middle), or
    defects (against images without a tag)."""

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Relative image sizes whose maps are summed, each also mirrored."""
    tile: int | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Cut images that are longer than this into overlapping tiles of this side, in pixels, for the network; 0 never
    cuts. Default: 2048 for images of 4000 pixels and more."""
    from_model: str | None = field(default=None, metadata={"fingerprint": "unless default"})
    """Use the probabilities of this trained model as maps, for a second round: RUN/train_segmenter/deeplabv3."""
    from_cams: tuple[str, ...] = field(default=(), metadata={"fingerprint": "unless default"})
    """Average the CAM files (ID.npy) in these folders, by geometric mean, instead of running a network."""
    feature_affinity: float = field(default=0.0, metadata={"fingerprint": "unless default"})
    """Spread the maps over cells with similar features, using this power (2 works well). 0 is off, as published."""
    keep_high_res: bool = field(default=False, metadata={"fingerprint": False})
    """Also write the maps at full size (high_res), which other programs read. They take nine tenths of the disk space,
    and this program makes them again from the smaller ones."""

    def __post_init__(self) -> None:
        require_tile(self.tile)
        if not 0 <= self.feature_affinity < float("inf"):
            raise ValueError(
                f"feature_affinity is {self.feature_affinity}; it must be a number from 0 on (2 works well, 0 is off)"
            )
        if self.from_cams and self.from_model is not None:
            raise ValueError("from_cams and from_model both name where maps come from; give one of them")
        if self.seeds != "cam" and (self.from_cams or self.from_model is not None):
            raise ValueError(
                f"seeds {self.seeds} are made with the classifier of train_cam, which is not used with from_cams or "
                "from_model; leave one of them out"
            )


@dataclass(frozen=True)
class Params(*bases_of([seed.params for seed in SEEDS.values()]), CommonParams):  # type: ignore[misc]
    """Parameters of the activation maps."""


def fits(params: Params) -> bool:
    """Whether the seeds are made by a classifier that is fitted to all pictures and kept as a file."""
    return SEEDS[params.seeds].restore is not None
