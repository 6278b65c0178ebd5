"""Lines and progress bars on the screen."""

import io
import os
import subprocess
import sys
from typing import Any

import pytest

from plainres import console
from plainres.console import aligned, first_that_fits, narrowed, quantity, shortened, wrapped


@pytest.mark.parametrize(("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert quantity(number, "run") == text


def test_irregular_plural() -> None:
    assert [quantity(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("columns", "line"), [(None, "a long line"), (12, "a long line"), (11, "a line"), (6, "a li…"), (1, "")]
)
def test_the_longest_line_that_fits_is_shown(columns: int | None, line: str) -> None:
    assert first_that_fits(["a long line", "a line"], columns) == line


def test_a_text_is_cut_with_an_ellipsis() -> None:
    assert [shortened("abcd", columns) for columns in (5, 4, 3, 1, 0)] == ["abcd", "abcd", "ab…", "…", ""]


NAME = "identity-110-w16-s0-a1b2c3d4"


@pytest.mark.parametrize(
    ("columns", "start", "end"),
    [
        (120, f"{NAME}:  10 %|#", "| 6200/64000 [10:00<1:33:31, 10.30step/s, test error 12.34 %]"),
        (100, f"{NAME}:  10 %| ", " 6200/64000 [10:00<1:33:31, 10.30step/s, test error 12.34 %]"),
        (80, "identity-110-w16-s0…: ", " 6200/64000 [1:33:31 left, 10.30step/s, test error 12.34 %]"),
        (60, "identity-110…: ", " 6200/64000 [1:33:31 left, test error 12.34 %]"),
        (40, "identity-11", " 6200/64000 [1:33:31 left]"),
    ],
)
def test_a_bar_keeps_its_numbers_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, start: str, end: str
) -> None:
    bar: Any = console.bar(NAME, "step", 64000, file=io.StringIO(), initial=20)
    bar.set_postfix_str("test error 12.34 %", refresh=False)
    bar.n = 6200
    values = dict(bar.format_dict) | {"ncols": columns, "elapsed": 600.0, "rate": None, "ascii": True}
    monkeypatch.setattr(type(bar), "format_dict", values)
    text = str(bar)
    assert text.startswith(start)
    assert text.endswith(end)
    assert len(text) <= columns
    bar.close()


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (None, "measuring:   0 %|          | 0/2 [01:05, plain]"),
        (46, "measuring:   0 %|         | 0/2 [01:05, plain]"),
        (38, "measuring:   0 %| 0/2 [01:05, plain]"),
        (30, "measuring: 0/2 [01:05, plain]"),
        (25, "measuring: 0/2 [01:05]"),
    ],
)
def test_a_bar_shows_no_numbers_that_are_not_known_yet(
    monkeypatch: pytest.MonkeyPatch, columns: int | None, line: str
) -> None:
    bar: Any = console.bar("measuring", "network", 2, file=io.StringIO())
    bar.set_postfix_str("plain", refresh=False)
    values = dict(bar.format_dict) | {"ncols": columns, "elapsed": 65.0, "rate": None, "ascii": True}
    monkeypatch.setattr(type(bar), "format_dict", values)
    assert str(bar) == line
    bar.close()


def test_the_last_cell_is_wrapped_within_its_column_or_below_long_ones() -> None:
    assert aligned([["plain", "failed: the loss is NaN"]], indent="  ", width=24) == [
        *("  plain  failed: the", "         loss is NaN")
    ]
    assert aligned([["projection_all", "failed: the loss is NaN"]], indent="  ", width=24) == [
        *("  projection_all", "      failed: the loss", "      is NaN")
    ]
    assert aligned([["projection_all", "missing"]], indent="  ", width=25) == ["  projection_all  missing"]
    assert aligned([["a", "one"], ["bc", ""]], indent="  ", width=25) == ["  a   one", "  bc"]


def test_a_name_is_never_split() -> None:
    assert wrapped("the same run as plain-8-w8-s0-a1b2c3d4", 20, "  ") == [
        "the same run as",
        "  plain-8-w8-s0-a1b2c3d4",
    ]


@pytest.mark.parametrize(
    ("width", "heads", "dropped"),
    [
        (21, ["depth", "error", "parameters"], ["multiply-adds"]),
        (100, ["depth", "error", "multiply-adds", "parameters"], []),
        (12, ["depth", "error"], ["multiply-adds", "parameters"]),
        (5, ["depth", "error"], ["multiply-adds", "parameters"]),
    ],
)
def test_a_table_is_narrowed_by_its_least_important_columns(width: int, heads: list[str], dropped: list[str]) -> None:
    table = [["depth", "error", "multiply-adds", "parameters"], ["8", "0.01", "1", "2"]]
    (head, cells), left_out = narrowed(table, ["multiply-adds", "parameters", "of another table"], width + 3)
    assert (head, left_out) == (heads, dropped)
    assert cells == [dict(zip(*table, strict=True))[name] for name in heads]


@pytest.mark.parametrize(("terminal", "interval"), [(True, 0.2), (False, 10)])
def test_a_bar_in_a_pipe_is_updated_rarely(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, interval: float) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with console.bar("lesion", "network", 2) as bar:
        assert bar.mininterval == interval


def test_output_that_cannot_be_written_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = open(writer, "w", encoding="ascii")  # noqa: PTH123, SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    with console.unfailing_output():
        console.say("“one”")
        assert os.read(reader, 100) == b"?one?\n"
        os.close(reader)
        console.say("two")
        print("three", file=sys.stderr, flush=True)
    assert sys.stderr is stream
    stream.close()


def test_a_full_disk_ends_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stream)
        with console.unfailing_output():
            print("x" * 10000, flush=True)


def test_streams_that_are_not_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.unfailing_output():
        console.say("a line")
    assert stream.getvalue() == "a line\n"


def test_closed_streams_are_opened_for_child_processes_too() -> None:
    program = "import os, subprocess, sys; from plainres.console import open_closed_streams; open_closed_streams();"
    program += "print('lost'); print('lost', file=sys.stderr); file = open('/dev/null'); assert file.fileno() > 2;"
    program += "sys.exit(subprocess.run([sys.executable, '-c', 'import sys; sys.exit(sys.stderr is None)']).returncode)"
    shell = f'"{sys.executable}" -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, program], check=False).returncode == 0
