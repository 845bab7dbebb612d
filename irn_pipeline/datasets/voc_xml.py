"""Image-level tags from the XML files of VOC folders."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path
from xml.parsers import expat

from irn_pipeline.errors import DataError
from irn_pipeline.files.regular import regular_bytes

_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]{1,40})[\"']")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEVERAL_BYTES = ("big5", "cp9", "euc_", "gb", "hz", "iso2022", "johab", "shift_jis")
"""How Python's names of the encodings begin that expat cannot read."""


def object_names(path: Path) -> set[str]:
    """Names of the objects (not of their parts, which have names too) in one XML file.

    Args:
        path: XML in any encoding that Python knows, if it is declared in the first line; else UTF-8 or UTF-16.

    Returns:
        The names without blanks around them, in Unicode's composed form.

    Raises:
        DataError: the file cannot be read, is no XML, is in an unknown encoding, or has a DOCTYPE.
    """
    names: list[list[str]] = []
    open_tags: list[str] = []

    def inside_name() -> bool:
        return len(open_tags) == 3 and open_tags[1:] == ["object", "name"]

    def start(tag: str, _: object) -> None:
        open_tags.append(tag)
        if inside_name():
            names.append([])

    def text(data: str) -> None:
        if inside_name():
            names[-1].append(data)

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: has a DOCTYPE, which can hide an entity bomb; remove that line from the file"
        )

    try:
        data = regular_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
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
    return {unicodedata.normalize("NFC", "".join(parts).strip()) for parts in names}


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
