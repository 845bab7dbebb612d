"""Texts of strangers in messages: names of files, classes and hosts may hold what steers a terminal."""

from __future__ import annotations


def plain_line(text: str) -> str:
    r"""One line of what can be printed: runs of white space become a blank, other control characters a '?'.

    Example:
        >>> plain_line("a\n  b\x1b[2Jc")
        'a b?[2Jc'
    """
    return "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split()))
