"""Many small files in a few large ones: WebDataset shards, which are plain tar files.

Beside each shard lies an index, which names the files in it that have reached the disk. A killed process leaves at most
the end of a shard half-written, and no file there is in the index. The shard is a valid tar file after each file added.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from irn_pipeline.errors import ArtifactError
from irn_pipeline.files.atomic import atomic_path, require_own_folder, sync, write_fault
from irn_pipeline.files.regular import Member, open_regular, regular_bytes, size_of

Layout: TypeAlias = Literal["files", "shards"]
"""How the results of pictures are stored."""
SHARDS_NAME = "shards"
"""Name of a folder of shards."""
SHARD_BYTES = 1 << 30
"""A shard that is at least so large gets no more files."""
_COMMIT_SECONDS = 1.0
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
"""What ends a tar file."""


class Draft(io.BytesIO):
    """A file in memory, which writers take in the place of a path; its content stays when it is closed."""

    def open(self, mode: str = "wb") -> Draft:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing."""


def read_shards(folder: Path) -> dict[str, Member]:
    """The files in all shards of a folder, by name; of two with one name, the later.

    Raises:
        ArtifactError: an index is damaged.
    """
    return {member.name: member for shard in sorted(folder.glob("*.tar")) for member in _members(shard)}


def mend_shards(folder: Path) -> None:
    """Cut off what a killed process left half-written in a folder that nobody else writes to.

    Raises:
        ArtifactError: an index is damaged, a file is a link, or a shard cannot be written.
    """
    for shard in sorted(folder.glob("*.tar")):
        index, length = _index(shard), shard.stat().st_size
        for path in (shard, index):
            require_own_folder(folder, path)
        members = [member for member in _members(shard) if member.offset + member.size <= length]
        end = max((member.offset + _padded(member.size) for member in members), default=0)
        lines = b"".join(map(_line, members))
        try:
            if not index.is_file() or index.stat().st_size != len(lines):
                with atomic_path(index) as temporary:
                    temporary.write_bytes(lines)
            if length != end + len(_END):
                with shard.open("r+b") as stream:
                    stream.truncate(end)
                    stream.seek(end)
                    stream.write(_END)
                sync(shard)
        except OSError as error:
            raise write_fault(shard, error) or error from error


class ShardWriter:
    """Adds files to the shards of one folder.

    Args:
        folder: made when the first file is added; `mend_shards` has been called if it is there.
        series: number that no other process at work in this folder has.
        limit: `SHARD_BYTES`.
    """

    def __init__(self, folder: Path, series: int, limit: int = SHARD_BYTES) -> None:
        self._folder, self._series, self._limit = folder, series, limit
        self._shard: Path | None = None
        self._stream: BinaryIO | None = None
        self._end = 0
        self._uncommitted: list[Member] = []
        self._committed_at = time.monotonic()

    def add(self, name: str, content: bytes) -> None:
        """Add a file. It is in the index at the latest a second after the next one, or when this is closed.

        Raises:
            ArtifactError: the system refused the write.
        """
        header = tarfile.TarInfo(name)
        header.size, header.mtime = len(content), int(time.time())
        head = header.tobuf(tarfile.PAX_FORMAT)
        padding = bytes(_padded(len(content)) - len(content))
        try:
            if self._shard is None or self._stream is None or self._end >= self._limit:
                self.close()
                self._shard, self._stream = self._open()
            self._stream.seek(self._end)
            self._stream.write(head + content + padding + _END)
            self._stream.flush()
            self._uncommitted.append(Member(self._shard, name, self._end + len(head), len(content)))
            self._end += len(head) + len(content) + len(padding)
            if time.monotonic() - self._committed_at >= _COMMIT_SECONDS:
                self._commit()
        except OSError as error:
            raise write_fault(self._shard or self._folder, error) or error from error

    def close(self) -> None:
        """Write what is left of the index.

        Raises:
            ArtifactError: the system refused the write.
        """
        if self._stream is None:
            return
        try:
            with self._stream:
                self._commit()
        except OSError as error:
            raise write_fault(self._shard or self._folder, error) or error from error
        finally:
            self._stream = None

    def _open(self) -> tuple[Path, BinaryIO]:
        """The last shard of the series if there is room in it, or a new one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = [path.stem.partition("-")[2] for path in self._folder.glob(f"{self._series:04d}-*.tar")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=-1)
        shard = self._folder / f"{self._series:04d}-{last:06d}.tar"
        if last < 0 or shard.stat().st_size - len(_END) >= self._limit:
            shard = self._folder / f"{self._series:04d}-{last + 1:06d}.tar"
            shard.write_bytes(_END)
            _index(shard).touch()
            sync(self._folder)
        for path in (shard, _index(shard)):
            require_own_folder(self._folder, path)
        stream = shard.open("r+b")
        self._end = shard.stat().st_size - len(_END)
        return shard, stream

    def _commit(self) -> None:
        if self._shard is None or self._stream is None or not self._uncommitted:
            return
        os.fsync(self._stream.fileno())
        with _index(self._shard).open("ab") as lines:
            lines.write(b"".join(map(_line, self._uncommitted)))
            lines.flush()
            os.fsync(lines.fileno())
        self._uncommitted = []
        self._committed_at = time.monotonic()


def _index(shard: Path) -> Path:
    return shard.with_suffix(".jsonl")


def _line(member: Member) -> bytes:
    return json.dumps([member.name, member.offset, member.size]).encode() + b"\n"


def _members(shard: Path) -> list[Member]:
    """What the index names; without one, as after a copy of the shards alone, the whole files that the shard holds."""
    index = _index(shard)
    if not index.is_file():
        return _scanned(shard)
    lines = regular_bytes(index).split(b"\n")[:-1]  # a line without an end is half-written
    try:
        entries = json.loads(b"[" + b",".join(lines) + b"]")
        if not all(list(map(type, entry)) == [str, int, int] and min(entry[1:]) >= 0 for entry in entries):
            raise ValueError("no list of a name, an offset and a size")
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{index}: damaged ({error}); delete it, and it is made again from {shard.name}"
        ) from error
    return [Member(shard, *entry) for entry in entries]


def _scanned(shard: Path) -> list[Member]:
    found: list[Member] = []
    with open_regular(shard) as stream, suppress(tarfile.TarError, ValueError):  # from there on half-written
        length = size_of(stream)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for one in archive:
                if one.isreg() and one.offset_data + one.size <= length:
                    found.append(Member(shard, one.name, one.offset_data, one.size))
    return found


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
