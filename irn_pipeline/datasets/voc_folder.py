"""Files, image lists and XML files of VOC folders.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from irn_pipeline.datasets.headers import PICTURE_SUFFIXES, READ_KINDS
from irn_pipeline.datasets.lists import listed_ids, read_bytes, read_lines, some
from irn_pipeline.errors import DataError

_LIST_FOLDERS = ("Segmentation", "Main", "")
# CVAT and Datumaro call a set without parts "default".
_DEFAULT_LISTS = (
    *("Segmentation/train_aug", "Segmentation/train", "Segmentation/trainval"),
    *("Main/trainval", "Main/train", "trainval", "train", "Segmentation/default", "Main/default"),
)
_CLASS_LIST = re.compile(r".+_(train|val|trainval|test)")
_LIST_WITH_PATHS = re.compile(
    rf"(?:.*?[/\\])?JPEGImages[/\\]([^/\\]+?)(?:{'|'.join(map(re.escape, PICTURE_SUFFIXES))})(?:\s|$)",
    re.IGNORECASE,
)
_NUMBER_BEHIND = re.compile(r"(.*\S)\s+[+-]?\d+", re.ASCII)
_MOST_NUMBERS = 256
"""Of a line: one a class."""
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]{1,40})[\"']")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEVERAL_BYTES = ("big5", "cp9", "euc_", "gb", "hz", "iso2022", "johab", "shift_jis")
"""How Python's names of the encodings begin that expat cannot read."""
_SIDE = re.compile(r"\s*(\d{1,6})(?:\.0*)?\s*", re.ASCII)


def files_by_id(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files of a folder by image id, without its subfolders; none where there is no such folder.

    Suffixes may be in upper case. Where several files have one id, the first suffix comes first, and lower case
    before upper case.

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
    """Path of every picture in JPEGImages by image id; of files that share a stem .jpg wins, and `warnings` tells.

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
    pictures = files_by_id(folder, PICTURE_SUFFIXES)
    if not pictures:
        raise DataError(f"{folder}: holds no image; {READ_KINDS} files are read")
    if twice := [image_id for image_id, paths in pictures.items() if len(paths) > 1]:
        warnings.append(f"several files share a name, {PICTURE_SUFFIXES[0]} was preferred: {some(twice)}")
    return {image_id: paths[0] for image_id, paths in pictures.items()}


def choose_images(
    voc_root: Path, image_list: str | Path | None, pictures: dict[str, Path], warnings: list[str]
) -> tuple[tuple[str, ...], str]:
    """Ids of the pictures to load.

    Args:
        voc_root: the folder that holds ImageSets.
        image_list: as for `load_voc`.
        pictures: result of `find_pictures`.
        warnings: told are repeated lines, numbers that were not used, and lists that are not training lists.

    Returns:
        Ids in the list's order without repeats, and the list's path (or JPEGImages) for messages.

    Raises:
        DataError: the list is missing, empty, or names pictures that are not there.
    """
    path = _find_list(voc_root, image_list)
    if path is None:
        if there := _list_names(voc_root):
            warnings.append(
                f"{voc_root / 'ImageSets'}: its lists ({', '.join(there[:8])}) are not training lists, so every image "
                f"is taken, those held out for tests too; name a list with --image-list"
            )
        return tuple(sorted(pictures)), str(voc_root / "JPEGImages")
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    entries = [_parse_line(line, pictures, path) for line in lines]
    image_ids = listed_ids(entries, pictures, path, voc_root / "JPEGImages", warnings)
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
        if dot + suffix.lower() in PICTURE_SUFFIXES and stem in pictures:
            return stem
        if match := _LIST_WITH_PATHS.match(line):
            return match[1]
        if not (shorter := _NUMBER_BEHIND.fullmatch(line)):
            break
        line = shorter[1]
    # An id must not lead out of the data set's folders.
    if line == ".." or any(mark in line for mark in "/\\\0"):
        raise DataError(f"{path}: {line!r} is not an image id; write file stems, without a folder")
    return line


@dataclass(frozen=True)
class Annotation:
    """What an XML file says of its picture: the names of its objects, and its (H, W) in pixels if it is there."""

    names: set[str]
    size: tuple[int, int] | None


def read_annotation(path: Path) -> Annotation:
    """Read one XML file, in any encoding that its first line declares and Python knows; else UTF-8 or UTF-16.

    Returns:
        Names of the objects (not of their parts) without blanks around them, in Unicode's composed form.

    Raises:
        DataError: the file cannot be read, is no XML, is in an unknown encoding, or has a DOCTYPE.
    """
    found: dict[str, list[list[str]]] = {"object/name": [], "size/height": [], "size/width": []}
    open_tags: list[str] = []

    def place() -> str:
        return f"{open_tags[1]}/{open_tags[2]}" if len(open_tags) == 3 else ""

    def start(tag: str, _: object) -> None:
        open_tags.append(tag)
        if place() in found:
            found[place()].append([])

    def text(data: str) -> None:
        if place() in found:
            found[place()][-1].append(data)

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: has a DOCTYPE, which can hide an entity bomb; remove that line from the file"
        )

    data = read_bytes(path)
    try:
        data, encoding = _readable(data)
        parser = expat.ParserCreate(encoding)
        parser.StartElementHandler = start
        parser.EndElementHandler = lambda _: open_tags.pop()
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(data, True)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{path}: its text cannot be read in the encoding that its first line declares ({error}); "
            f"save it as UTF-8 and declare that"
        ) from None
    except expat.ExpatError as error:
        remedy = "copy or write it again"
        if not data.startswith(_UTF_16) and not _is_utf_8(data):
            remedy = "it is not UTF-8 text: save it as UTF-8, or declare its encoding in the first line"
        raise DataError(f"{path}: not a readable XML file ({error}); {remedy}") from None
    texts = {key: ["".join(pieces).strip() for pieces in entries] for key, entries in found.items()}
    sides = [_SIDE.fullmatch("".join(texts[key][:1])) for key in ("size/height", "size/width")]
    height, width = (int(side[1]) if side else 0 for side in sides)
    names = {unicodedata.normalize("NFC", name) for name in texts["object/name"]}
    return Annotation(names, (height, width) if height and width else None)


def _readable(data: bytes) -> tuple[bytes, str | None]:
    """The bytes to parse and their encoding; None where expat finds it by itself."""
    declared = _DECLARED.match(data)
    name = codecs.lookup(declared[1].decode()).name if declared else ""
    if name.startswith(_SEVERAL_BYTES):
        # What is declared as GB2312 holds characters of its supersets as a rule.
        return data.decode("gb18030" if name.startswith("gb") else name).encode(), "utf-8"
    # A declaration that can be read as ASCII is not in UTF-16, whatever it says.
    utf_8 = name.startswith("utf-16") or data.startswith(codecs.BOM_UTF8)
    return data, "utf-8" if utf_8 else None


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
