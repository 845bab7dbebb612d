"""Image lists of VOC folders: which pictures there are, and which of them a list names.

A line of an image list is read by the first rule that fits: (1) the whole line is the stem or file name of
a picture in JPEGImages, so stems may hold dots, spaces and any script; (2) it starts with
`/JPEGImages/NAME.jpg`, as in the lists of IRNet and its successors; (3) it is a stem and a label of -1, 0 or
1, as in VOC's class lists (the label is not used: tags come from the XML files). Blank lines and lines that
start with `#` are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES, READ_KINDS
from irn_pipeline.errors import DataError
from irn_pipeline.foreign.files import regular_bytes

_SUFFIXES = PICTURE_SUFFIXES
_LIST_FOLDERS = ("Segmentation", "Main")
_DEFAULT_LISTS = ("Segmentation/train_aug.txt", "Segmentation/train.txt", "Main/trainval.txt")
_LIST_WITH_PATHS = re.compile(
    rf"/?JPEGImages/([^/\\]+?)(?:{'|'.join(map(re.escape, _SUFFIXES))})(?:\s|$)", re.IGNORECASE
)
_LIST_LABELS = ("-1", "0", "1")


def find_pictures(voc_root: Path, warnings: list[str]) -> dict[str, Path]:
    """Path of every picture in JPEGImages by stem.

    Args:
        voc_root: the folder that holds JPEGImages.
        warnings: a sentence is added when files share a stem; .jpg then wins over the others.

    Raises:
        DataError: the folder is missing, or holds no JPEGImages, or no picture.
    """
    if not voc_root.is_dir():
        raise DataError(f"{voc_root}: no such folder; --voc-root must name the folder that holds JPEGImages")
    folder = voc_root / "JPEGImages"
    if not folder.is_dir():
        near = [voc_root.parent, *sorted(voc_root.glob("*")), *sorted(voc_root.glob("*/*"))]
        better = [path for path in near if (path / "JPEGImages").is_dir()]
        hint = f"did you mean {better[0]}?" if better else "it must hold JPEGImages and Annotations"
        raise DataError(f"{voc_root}: has no folder JPEGImages; {hint}")
    files = sorted(folder.iterdir())
    pictures: dict[str, Path] = {}
    twice: list[str] = []
    for suffix in _SUFFIXES:
        for path in (path for path in files if path.suffix.lower() == suffix):
            # Files like ._name.jpg are left behind by macOS and hold no picture.
            if path.name.startswith("._"):
                continue
            if path.stem in pictures:
                twice.append(path.stem)
            pictures.setdefault(path.stem, path)
    if not pictures:
        raise DataError(f"{folder}: holds no picture; {READ_KINDS} files are read")
    if twice:
        warnings.append(f"several files share a name, {_SUFFIXES[0]} was preferred: {some(twice)}")
    return pictures


def choose_images(
    voc_root: Path, image_list: str | Path | None, pictures: dict[str, Path], warnings: list[str]
) -> tuple[tuple[str, ...], str]:
    """Ids of the pictures to load.

    Args:
        voc_root: the folder that holds ImageSets.
        image_list: as for `load_voc`.
        pictures: result of `find_pictures`.
        warnings: a sentence is added when lines were repeated.

    Returns:
        Ids in the list's order without repeats, and the list's path (or JPEGImages) for messages.

    Raises:
        DataError: the list is missing, empty, or names pictures that are not there.
    """
    path = _find_list(voc_root, image_list)
    if path is None:
        return tuple(sorted(pictures)), str(voc_root / "JPEGImages")
    lines = [line.strip() for line in read_text(path).splitlines()]
    entries = [_parse_line(line, pictures, path) for line in lines if line and not line.startswith("#")]
    image_ids = listed_ids(entries, pictures, path, voc_root / "JPEGImages")
    if len(image_ids) < len(entries):
        warnings.append(f"{path}: {len(entries) - len(image_ids)} repeated lines were dropped")
    return image_ids, str(path)


def _find_list(voc_root: Path, image_list: str | Path | None) -> Path | None:
    folder = voc_root / "ImageSets"
    if image_list is None:
        return next((folder / name for name in _DEFAULT_LISTS if (folder / name).is_file()), None)
    name, given = str(image_list).removesuffix(".txt"), Path(image_list)
    named = [folder / kind / f"{name}.txt" for kind in _LIST_FOLDERS] if given.name == str(image_list) else []
    candidates = [given, *named] if given.suffix == ".txt" else [*named, given]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = sorted({path.stem for kind in _LIST_FOLDERS for path in (folder / kind).glob("*.txt")})
        hint = f"the data set has {', '.join(there[:8])}" if there else f"{folder} has none"
        raise DataError(f"{image_list}: no such image list, neither as a file nor in {folder}; {hint}")
    return found


def _parse_line(line: str, pictures: dict[str, Path], path: Path) -> str:
    if line in pictures:
        return line
    stem, dot, suffix = line.rpartition(".")
    if dot + suffix.lower() in _SUFFIXES and stem in pictures:
        return stem
    if match := _LIST_WITH_PATHS.match(line):
        return match[1]
    words = line.rsplit(None, 1)
    if len(words) == 2 and words[1] in _LIST_LABELS:
        line = words[0]
    require_plain_id(line, path)
    return line


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without a byte order mark; DataError when it cannot be read."""
    try:
        return regular_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the folder and the spelling") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None


def require_plain_id(image_id: str, source: Path) -> None:
    """Raise DataError, naming `source`, when an id could lead out of the data set's folders."""
    if not image_id or image_id == ".." or any(mark in image_id for mark in "/\\\0"):
        raise DataError(f"{source}: {image_id!r} is not an image id; write file stems, without a folder")


def listed_ids(
    entries: Sequence[str], known: Container[str], path: Path, source: str | Path
) -> tuple[str, ...]:
    """The entries of an image list without repeats.

    Args:
        entries: image ids in the list's order.
        known: those of the data set.
        path: the list, for messages.
        source: what the data set was read from, for messages.

    Raises:
        DataError: there is no entry, or one is not known.
    """
    if not entries:
        raise DataError(f"{path}: lists no picture; write one image id a line")
    image_ids = tuple(dict.fromkeys(entries))
    absent = [image_id for image_id in image_ids if image_id not in known]
    if absent:
        raise DataError(
            f"{path}: not in {source}: {some(absent)} of {len(image_ids)}; does the list belong to this data set?"
        )
    return image_ids


def some(image_ids: Iterable[str]) -> str:
    """How many ids, and the first three by name, for messages."""
    ids = list(image_ids)
    return f"{len(ids)} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
