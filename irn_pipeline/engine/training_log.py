"""What a training measures, as JSON lines always and as TensorBoard events where they are wanted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from irn_pipeline.errors import ConfigError
from irn_pipeline.files.atomic import atomic_path
from irn_pipeline.files.json_text import parse_json
from irn_pipeline.files.regular import regular_bytes


class TrainingLog:
    """Writes `losses.jsonl` and `validation.jsonl` of one training, and TensorBoard events where they are wanted.

    Args:
        folder: of the training.
        done: finished steps; lines of later ones, of an epoch that was interrupted, are dropped.
        tensorboard: also write event files to `folder/tensorboard`.

    Raises:
        ConfigError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, done: int, tensorboard: bool = False) -> None:
        self._folder, self._events = folder, None
        for path in (folder / "losses.jsonl", folder / "validation.jsonl", folder / "tensorboard"):
            # What is behind a link is not this training's, and would be written to.
            if path.is_symlink():
                path.unlink()
            elif path.is_file():
                lines = regular_bytes(path).decode("utf-8", errors="replace").split("\n")
                with atomic_path(path) as temporary:
                    kept = "".join(f"{line}\n" for line in lines if _is_before(line, done))
                    temporary.write_text(kept, encoding="utf-8")
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
                ) from error
            self._events = SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one line to `KIND.jsonl`: step, epoch (from 0), time, values."""
        self._folder.mkdir(parents=True, exist_ok=True)
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **values}
        with (self._folder / f"{kind}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(parse_json(line)["step"] <= step)
    except (ValueError, TypeError, KeyError):
        return False  # cut off, or no line of this program
