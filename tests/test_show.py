"""Tables and pages: what is escaped, and how wide a table gets."""

from __future__ import annotations

import re

from bridge.show import html
from bridge.show.html import Markup, tag

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
