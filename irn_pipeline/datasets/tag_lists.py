"""Several tags in one cell of a table: lists by their form, and texts that are lists by what the other cells hold."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from irn_pipeline.datasets.picture_folder import chosen_names
from irn_pipeline.datasets.tag_cells import MISSING, NUMBER, name_key
from irn_pipeline.errors import DataError

_LISTS = {"[": "]", "{": "}", "(": ")", "'": "'", '"': '"'}
_BROKEN_LIST = re.compile(r"""[\[{(]\s*['"]|^[\[{]""")
_PIECE = re.compile(r"""'[^']*'|"[^"]*"|[^,'"\[\]{}]+""")
_HOLDS_TAGS = re.compile(
    r"choices?|names?|(?:\w*labels?|class(?:es)?|tags?|categor(?:y|ies))(?:_?names?)?", re.I
)
_LONGEST_LIST = 1 << 16
"""Characters of a cell that is read as a Python list."""
_COMMAS = (";", ",", "\uff1b", "\uff0c", "\u3001")
_MARKS = ("|", *_COMMAS, "+", "&", " and ", "/", ":", " ")
"""Separators of tags, in the order in which they are judged."""
_MOSTLY, _NEARLY_ALL = 0.5, 0.9


def listed_tags(value: object, where: str) -> list[str] | str:
    """The tags of a cell that holds a list; a text that holds none comes back as it is.

    Lists are written as in JSON or Python, as NumPy prints them (['cat' 'dog']), with bare words ([cat, dog]), or as
    Label Studio does: {"choices": [...]}, or objects with a key such as "rectanglelabels". In {"cat": 1, "dog": 0} the
    marked names are the tags.

    Args:
        value: text of a cell, or a value of a JSON line.
        where: file and line, for messages.

    Raises:
        DataError: the cell begins like a list and cannot be read, or holds a value that is no tag.
    """
    if not isinstance(value, str):
        return _tags(value, where)
    text = value.strip(" ,;|")
    if text[:1] not in _LISTS and not _BROKEN_LIST.search(text):
        return text
    content = _python_value(text)
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list | tuple | set | dict):
        return _tags(sorted(content, key=str) if isinstance(content, set) else content, where)
    if not _BROKEN_LIST.search(text):
        return text
    inner = text[1:-1]
    # What stands between the pieces must be commas and blanks.
    if (
        text[0] not in "[{"
        or text[-1] != _LISTS[text[0]]
        or _PIECE.sub("", inner).strip(" ,")
        or "..." in inner
    ):
        raise DataError(
            f"{where}: {text[:60]!r} looks like a list of tags, but cannot be read; write \"['cat', 'dog']\""
        )
    pieces = [piece.strip() for piece in _PIECE.findall(inner)]
    if all(NUMBER.fullmatch(number) for piece in pieces for number in piece.split()):
        numbers = [number for piece in pieces for number in piece.split()]
        return _tags([float(number) if "." in number else number for number in numbers], where)
    return [tag for tag in (piece.strip("'\" ") for piece in pieces) if tag]


def _python_value(text: str) -> object:
    """The value of JSON or of a Python literal; None where it is neither."""
    # Python would read the ['cat' 'dog'] that NumPy prints as one text, 'catdog'.
    text = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on backslashes
            return ast.literal_eval(text) if len(text) < _LONGEST_LIST else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # what too many brackets raise
        return None


def _tags(value: object, where: str) -> list[str]:
    found: list[str] = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Mapping):
            found += _tags_of_object(one, where)
        elif isinstance(one, bool) or (one is not None and not isinstance(one, str | int | float)):
            told = str(one) if isinstance(one, bool) else type(one).__name__
            raise DataError(f"{where}: {told!r} is not a label; expected a string or a list of strings")
        elif isinstance(one, float) and not one.is_integer():
            if not math.isnan(one):
                raise DataError(f"{where}: '{one}' is not a label; expected a string or a list of strings")
        elif one is not None:
            found.append(str(int(one) if isinstance(one, float) else one).strip())
    return [tag for tag in found if tag]


def _tags_of_object(content: Mapping[object, object], where: str) -> list[str]:
    if content and all(isinstance(mark, int | float) and mark in (0, 1) for mark in content.values()):
        return [str(name).strip() for name, mark in content.items() if mark]
    held = [value for name, value in content.items() if _HOLDS_TAGS.fullmatch(str(name))]
    if content and not held:
        raise DataError(
            f"{where}: an object with {', '.join(map(repr, list(content)[:3]))} is not a label; "
            f'expected a string, a list of strings or {{"choices": [...]}}'
        )
    return [tag for value in held for tag in _tags(value, where)]


class Asked(NamedTuple):
    """The classes that the user names: all of them, and those that stand in quotation marks, which are never cut."""

    names: frozenset[str] = frozenset()
    quoted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, words: Sequence[str], texts: Collection[str]) -> Asked:
        """Read the words of --classes for a table with these cells."""
        if not words:
            return cls()
        quoted = [word for word in words if '"' in word]
        known = parts_of_texts(texts)
        return cls(frozenset(chosen_names(words, known)), frozenset(chosen_names(quoted, known)))


def split_texts(
    texts: Iterable[str], alone: Collection[str], asked: Asked, *, lists: bool
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Decide, separator by separator, whether the texts of a table's cells are lists of tags or names.

    A separator cuts all texts that hold it, or none; the first rule that fits decides.

    1. `|` cuts; blanks, commas and semicolons do between whole numbers.
    2. Commas, semicolons, `+` and `&` cut where every part of these texts is also a tag by itself.
    3. A class that the user asks for: such a text keeps them; at commas and semicolons, what is only a part cuts them.
    4. If the table lists tags otherwise, nothing cuts.
    5. Commas and semicolons cut where most parts recur in other texts.
    6. Blanks, which belong to many names, cut where texts share parts, and all parts are tags by themselves, or nearly
       all recur and some hold an underscore.

    Args:
        texts: cells that are no list by their form; repeats do not matter.
        alone: tags that stand in lists.
        asked: classes that the user names.
        lists: whether the table lists tags otherwise: in several cells of a row, or in brackets.

    Returns:
        Text -> its tags, and a sentence for each separator that was judged.
    """
    tags: dict[str, tuple[str, ...]] = {text: (text,) for text in texts if text}
    notes: list[str] = []
    for mark in _MARKS:
        whole = {tag for found in tags.values() for tag in found}
        parts_of = {tag: _parts(tag, mark) for tag in sorted(whole)}
        several = {tag: parts for tag, parts in parts_of.items() if len(parts) > 1}
        if not several:
            continue
        single = (whole - several.keys()) | set(alone)
        cut, told = _is_list(mark, several, single, asked, lists=lists)
        example = min(several, key=len)[:60]
        if cut:
            tags = {
                text: tuple(part for tag in found for part in parts_of[tag]) for text, found in tags.items()
            }
            lists = True
            notes.append(
                f"cells such as {example!r} were read as lists of tags; to keep one as a name, give it to --classes in "
                f"quotation marks ('\"{example}\"')"
            )
        elif told:
            notes.append(
                f"cells such as {example!r} were read as one name each, not as lists; if they are lists, write '|' "
                f"between the tags{', or pick the tags with --classes' if mark in _COMMAS else ''}"
            )
    return tags, notes


def parts_of_texts(texts: Iterable[str]) -> set[str]:
    """The texts and all that a separator could make of them."""
    return {part for text in texts for mark in _MARKS for part in (text, *_parts(text, mark))}


def _parts(text: str, mark: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip(" ,;|") for piece in text.split(mark)) if part)


def _is_list(
    mark: str, several: Mapping[str, Sequence[str]], single: Collection[str], asked: Asked, *, lists: bool
) -> tuple[bool, bool]:
    """Whether a separator cuts the texts that hold it, and, where it does not, whether that is to be told."""
    parts = [part for text in several.values() for part in text]
    known = {name_key(tag) for tag in single} | MISSING
    uses = Counter(key for text in several.values() for key in {name_key(part) for part in text})
    keys = [name_key(part) for part in parts]
    all_known = all(key in known for key in keys)
    numbers = mark in (" ", *_COMMAS) and all(part.isdecimal() for part in parts)
    if several.keys() & asked.quoted:
        return False, False
    if mark == "|" or numbers or (all_known and mark in (*_COMMAS, "+", "&")):
        return True, False
    if several.keys() & asked.names:
        return False, False
    if mark in _COMMAS and asked.names & (set(parts) - set(single)):
        return True, False
    recurring = sum(key in known or uses[key] > 1 for key in keys) / len(keys)
    # "cat, small", "cat, large", "dog, small" ...: as many parts everywhere, none of them at two places.
    places = {(place, name_key(part)) for text in several.values() for place, part in enumerate(text)}
    grid = not single and len({len(text) for text in several.values()}) == 1 and len(places) == len(uses)
    if mark == " ":
        joined = recurring >= _NEARLY_ALL and any("_" in part for part in parts)
        likely = not lists and not grid and (all_known or joined)
        return likely and max(uses.values()) > 1, likely
    if mark in _COMMAS:
        return not lists and not grid and recurring > _MOSTLY, True
    return False, all_known
