"""Tables and pages: what is escaped, and how wide a table gets."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.show import html
from bridge.show.html import Markup, tag
from bridge.show.table import print_table, table_rows, table_text
from tests.conftest import FASHION
from tests.processes import on_terminal

EVIL = "<script>alert('x')</script> & \"y\""


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", EVIL) == f"<p>{html.join(EVIL)}</p>"
    assert html.join(EVIL) == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;y&quot;"
    assert tag("p", tag("b", "a"), Markup("<i>")) == "<p><b>a</b><i></p>"


def test_text_made_of_markup_is_text_again() -> None:
    """Nothing that a name was put into by hand passes for HTML."""
    inner = tag("b", "a")
    for mixed in (inner + EVIL, f"{inner}{EVIL}", inner.replace("a", EVIL), "".join([inner, EVIL])):
        assert "<script" not in tag("p", mixed)


def test_attributes_are_escaped_and_may_be_left_out() -> None:
    made = tag("td", "a", class_=None, data_of=EVIL, style="--x: 1")
    assert made.startswith('<td data-of="&lt;script&gt;')
    assert made.endswith('style="--x: 1">a</td>')
    assert made.count('"') == 4


def test_every_part_of_a_page_escapes() -> None:
    parts = (html.facts([(EVIL, EVIL)]), html.table([EVIL], [[EVIL]]), html.image(b"", EVIL), [EVIL, None, [EVIL]])
    page = html.page(EVIL, *parts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 1 + 2 + 3 + 1 + 2


def test_a_page_loads_nothing() -> None:
    page = html.page("title", html.image(b"png", "picture"))
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:image/png;base64,cG5n"]
    assert "url(" not in page
    assert "@import" not in page


# -- tables ------------------------------------------------------------------------------------


def test_a_row_is_one_line_where_no_terminal_is(capfd: pytest.CaptureFixture[str]) -> None:
    print_table("", ["layer", "shape"], [["a" * 100, "16 x 10 x 3 x 3"]])
    assert capfd.readouterr().out == f"layer{' ' * 97}shape\n{'a' * 100}  16 x 10 x 3 x 3\n"


def test_long_names_have_a_line_of_their_own() -> None:
    names = [f"inception_5b/5x5_reduce/branch/{kind}/with/a/long/name" * 2 for kind in ("in", "out")]
    rows = [*((name, "t" * 60, "1 x 2 x 3 x 4", "same") for name in names), ("short", "t", "1", "different")]
    head, *made = table_rows(("layer", "top", "shape", "verdict"), rows, width=80, names=2, indent="  ")
    lines = [line for row in made for line in row.split("\n")]
    assert max(map(len, [head, *lines])) <= 80
    together = "".join(line.strip() for line in lines)
    for name in names:
        assert f"{name}{'t' * 60}1 x 2 x 3 x 4  same" in together  # nothing is lost
    places = {made[row].split("\n")[-1].index("same") for row in (0, 1)}
    assert places == {head.index("verdict")} == {made[2].index("different")}


def test_names_that_fit_stay_in_their_row() -> None:
    rows = [("inception_3a/3x3_reduce", "inception_3a/3x3", "1 x 96", "same"), ("conv1", "conv1", "1 x 8", "same")]
    assert table_rows(("layer", "top", "shape", "verdict"), rows, width=80, names=2, indent="  ") == [
        "  layer                    top               shape   verdict",
        "  inception_3a/3x3_reduce  inception_3a/3x3  1 x 96  same",
        "  conv1                    conv1             1 x 8   same",
    ]


def test_prose_wraps_between_words_below_its_column() -> None:
    rows = [("protobuf", "straight from the bytes of the file, of any fork"), ("hdf5", "short")]
    assert table_rows(("name", "what"), rows, width=34, prose=True) == [
        "name      what",
        "protobuf  straight from the bytes\n          of the file, of any fork",
        "hdf5      short",
    ]


def test_wide_characters_take_two_columns() -> None:
    assert table_text(("layer", "n"), [("\u5377\u79ef", "1"), ("conv", "2")]) == "layer  n\n\u5377\u79ef   1\nconv   2"


@given(
    st.lists(
        st.tuples(st.text("ab/ -", max_size=40), st.text("xy", max_size=9), st.text("uv w", max_size=60)), max_size=5
    ),
    st.integers(40, 90),
    st.booleans(),
)
def test_no_character_is_lost(rows: list[tuple[str, str, str]], width: int, prose: bool) -> None:
    made = table_rows(("name", "size", "what"), rows, width=width, prose=prose)
    for row, text in zip(rows, made[1:], strict=True):
        assert sorted("".join("".join(row).split())) == sorted("".join(text.split()))
        if prose:
            assert max(map(len, text.split("\n"))) <= width


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("plain", [False, True], ids=["colour", "NO_COLOR"])
def test_on_a_terminal_lines_fit_and_the_heading_stands_out(width: int, plain: bool) -> None:
    status, text = on_terminal("info", FASHION / "deploy.prototxt", plain=plain, COLUMNS=str(width))
    assert status == 0
    assert (b"\x1b[1m" in text) != plain
    plain_text = re.sub(r"\x1b\[[\d;]*m", "", text.decode())
    assert "Convolution" in plain_text
    table = [row for row in plain_text.splitlines() if not row.startswith("file ")]
    assert max(map(len, table)) <= width


def test_what_does_not_fit_otherwise_stands_one_space_apart() -> None:
    rows = [("conv1/with/a/long/name", "Convolution", "scale_factor", "64 x 3 x 7 x 7", "float32")]
    columns = ("layer", "type", "blob", "shape", "dtype")
    wide, narrow = (table_rows(columns, rows, width=width, names=2) for width in (60, 50))
    assert max(map(len, "\n".join(wide).split("\n"))) <= 60
    assert "scale_factor  64 x 3" in wide[1]
    assert "scale_factor 64 x 3" in narrow[1]
    assert max(map(len, "\n".join(narrow).split("\n"))) <= 50
