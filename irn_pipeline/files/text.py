"""Texts of strangers in messages: names of files, classes and hosts may hold what steers a terminal."""

from __future__ import annotations


def plain_line(text: str) -> str:
    r"""One line of what can be printed: runs of white space become a blank, other control characters a '?'.

    Example:
        >>> plain_line("a\n  b\x1b[2Jc")
        'a b?[2Jc'
    """
    return _printable(" ".join(text.split()))


def plain_lines(text: str) -> str:
    r"""What can be printed, as it stands, on as many lines; other control characters become a '?'.

    Example:
        >>> plain_lines("a   b\n\x1b[2Jc")
        'a   b\n?[2Jc'
    """
    return "\n".join(_printable(line) for line in text.split("\n"))


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else "?" for mark in text)
