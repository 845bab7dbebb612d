from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from irn_pipeline.files.text import plain_line, plain_lines


def test_a_line_is_one_line() -> None:
    assert plain_line("a\n  b\x1b[2Jc\t d") == "a b?[2Jc d"


def test_a_table_keeps_its_lines_and_columns() -> None:
    assert plain_lines("cam    33.0\nlabel   1.5") == "cam    33.0\nlabel   1.5"
    assert plain_lines("a\x1b[2J\r\nb\x07") == "a?[2J?\nb?"


@given(st.text())
def test_nothing_that_steers_a_terminal_passes(text: str) -> None:
    assert plain_line(text).isprintable()
    assert plain_lines(text).replace("\n", "").isprintable()
    assert plain_lines(text).count("\n") == text.count("\n")
