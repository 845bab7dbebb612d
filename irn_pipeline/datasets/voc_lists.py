"""Files and image lists of VOC folders: which pictures there are, and which of them a list names.

An image id is a file stem in Unicode's composed form, because a Mac stores names decomposed.

A line of an image list is read by the first rule that fits: (1) the whole line is the stem or file name of
a picture in JPEGImages, so stems may hold dots, spaces and any script; (2) it starts with a path that ends in
`JPEGImages/NAME.jpg`, as in the lists of IRNet and its successors; (3) it is one of these with whole numbers
behind it, as in VOC's class lists (the numbers are not used: tags come from the XML files). Blank lines and lines
that start with `#` are passed over.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES, READ_KINDS
from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import regular_bytes

_SUFFIXES = PICTURE_SUFFIXES
_LIST_FOLDERS = ("Segmentation", "Main", "")
# CVAT and Datumaro call a set without parts "default".
_DEFAULT_LISTS = (
    *("Segmentation/train_aug", "Segmentation/train", "Segmentation/trainval"),
    *("Main/trainval", "Main/train", "trainval", "train", "Segmentation/default", "Main/default"),
)
_CLASS_LIST = re.compile(r".+_(train|val|trainval|test)")
_LIST_WITH_PATHS = re.compile(
    rf"(?:.*?[/\\])?JPEGImages[/\\]([^/\\]+?)(?:{'|'.join(map(re.escape, _SUFFIXES))})(?:\s|$)", re.IGNORECASE
)
_NUMBER_BEHIND = re.compile(r"(.*\S)\s+[+-]?\d+", re.ASCII)
_MOST_NUMBERS = 256
"""Of a line: one a class."""


def files_by_id(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files of a folder by image id; none where there is no such folder.

    Suffixes may be in upper case. Where several files have one id, the first suffix comes first, and lower case
    before upper case.

    Args:
        folder: its subfolders are not looked into.
        suffixes: in lower case, with the dot.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    found: dict[str, list[Path]] = {}
    # Files like ._name.jpg are left behind by macOS and hold no picture.
    usable = [path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith("._")]
    for path in sorted(usable, key=lambda p: (suffixes.index(p.suffix.lower()), not p.suffix.islower(), p)):
        found.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return found


def find_pictures(voc_root: Path, warnings: list[str]) -> dict[str, Path]:
    """Path of every picture in JPEGImages by image id.

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
    pictures = files_by_id(folder, _SUFFIXES)
    if not pictures:
        raise DataError(f"{folder}: holds no picture; {READ_KINDS} files are read")
    if twice := [image_id for image_id, paths in pictures.items() if len(paths) > 1]:
        warnings.append(f"several files share a name, {_SUFFIXES[0]} was preferred: {some(twice)}")
    return {image_id: paths[0] for image_id, paths in pictures.items()}


def choose_images(
    voc_root: Path, image_list: str | Path | None, pictures: dict[str, Path], warnings: list[str]
) -> tuple[tuple[str, ...], str]:
    """Ids of the pictures to load.

    Args:
        voc_root: the folder that holds ImageSets.
        image_list: as for `load_voc`.
        pictures: result of `find_pictures`.
        warnings: a sentence is added when lines were repeated, when numbers behind the ids were not used, and when
            every picture was taken although there are lists.

    Returns:
        Ids in the list's order without repeats, and the list's path (or JPEGImages) for messages.

    Raises:
        DataError: the list is missing, empty, or names pictures that are not there.
    """
    path = _find_list(voc_root, image_list)
    if path is None:
        if there := _list_names(voc_root):
            warnings.append(
                f"{voc_root / 'ImageSets'}: its lists ({', '.join(there[:8])}) are no training lists, so every picture "
                f"is taken, those held out for tests too; name a list with --image-list"
            )
        return tuple(sorted(pictures)), str(voc_root / "JPEGImages")
    lines = [unicodedata.normalize("NFC", line.strip()) for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    entries = [_parse_line(line, pictures, path) for line in lines]
    image_ids = listed_ids(entries, pictures, path, voc_root / "JPEGImages")
    if len(image_ids) < len(entries):
        warnings.append(f"{path}: {len(entries) - len(image_ids)} repeated lines were dropped")
    if any(_NUMBER_BEHIND.fullmatch(line) and line not in pictures for line in lines):
        warnings.append(
            f"{path}: the numbers behind its image ids are not used; tags come from the XML files"
        )
    return image_ids, str(path)


def _find_list(voc_root: Path, image_list: str | Path | None) -> Path | None:
    folder = voc_root / "ImageSets"
    if image_list is None:
        defaults = (folder / f"{name}.txt" for name in _DEFAULT_LISTS)
        return next((path for path in defaults if path.is_file()), None)
    name, given = str(image_list).removesuffix(".txt"), Path(image_list)
    named = [folder / kind / f"{name}.txt" for kind in _LIST_FOLDERS] if given.name == str(image_list) else []
    candidates = [given, *named] if given.suffix == ".txt" else [*named, given]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = _list_names(voc_root)
        hint = f"the data set has {', '.join(there[:8])}" if there else f"{folder} has none"
        raise DataError(f"{image_list}: no such image list, neither as a file nor in {folder}; {hint}")
    return found


def _list_names(voc_root: Path) -> list[str]:
    """Names of the lists in ImageSets, without those of single classes (cat_train) where there are others."""
    folder = voc_root / "ImageSets"
    names = sorted({path.stem for kind in _LIST_FOLDERS for path in (folder / kind).glob("*.txt")})
    return [name for name in names if not _CLASS_LIST.fullmatch(name)] or names


def _parse_line(line: str, pictures: dict[str, Path], path: Path) -> str:
    """The image id of a line in composed form; what stands before the numbers if no picture is found."""
    for _ in range(_MOST_NUMBERS):
        stem, dot, suffix = line.rpartition(".")
        if line in pictures:
            return line
        if dot + suffix.lower() in _SUFFIXES and stem in pictures:
            return stem
        if match := _LIST_WITH_PATHS.match(line):
            return match[1]
        if not (shorter := _NUMBER_BEHIND.fullmatch(line)):
            break
        line = shorter[1]
    require_plain_id(line, path)
    return line


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, or in UTF-16 with a byte order mark, as Windows writes it; line ends become LF.

    Raises:
        DataError: the file cannot be read, or is in another encoding.
    """
    try:
        data = regular_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the folder and the spelling") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not UTF-8 text (it holds zero bytes); save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
