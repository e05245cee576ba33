"""HTML pages: no script, no network, readable on a phone and in the dark.

What is escaped follows from the type of a text: :class:`Markup` is HTML, any other text is escaped
where it becomes part of an element. So no name out of a file can be taken for HTML::

    >>> tag("p", "a < b", tag("br"), "&", class_="soft")
    '<p class="soft">a &lt; b<br>&amp;</p>'
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Content: TypeAlias = str | Iterable["Content"] | None
"""What an element may contain: text, elements, nothing, or any number of these."""

_VOID = frozenset({"br", "img", "meta"})
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}
"""What stands for characters that no page may have, and that a terminal would obey: ``\\x1b``."""
"""Elements that contain nothing and have no end."""

_STYLE = """
:root { --back: #fff; --text: #1c2126; --soft: #5b6570; --line: #d8dde2; --good: #1f7a4d; --bad: #b3261e;
  --track: #edf0f2; --blue: #1c5fa8; }
@media (prefers-color-scheme: dark) { :root { --back: #14181c; --text: #e4e8ec; --soft: #9aa5af; --line: #343b42;
  --good: #4fbf86; --bad: #ff8a80; --track: #262c32; --blue: #2f7fd6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; } dd, p, h3, li { overflow-wrap: anywhere; }
header { border-left: .5rem solid var(--good); padding-left: 1rem; margin-bottom: 1.5rem; }
header.failed { border-color: var(--bad); }
h1 { margin: 0; font-size: 2.2rem; line-height: 1.2; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
h3 { margin: 1.25rem 0 .4rem; font-size: 1rem; font-weight: 600; } p { margin: .25rem 0; }
b { font-weight: 600; } i { font-style: normal; } ul { padding-left: 1.25rem; }
.soft, .skipped, .note { color: var(--soft); } .same, header.passed h1 { color: var(--good); }
.different, .error, header.failed h1 { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } td i { display: block; font-size: .85em;
  color: var(--soft); } .number { white-space: nowrap; } .narrow { max-width: 36rem; }
.narrow .number { text-align: right; }
.wide { overflow-x: auto; } .matrix { width: auto; } .matrix th, .matrix td { border: 0; padding: .15rem .3rem;
  text-align: center; min-width: 2.1rem; } .matrix th.row { text-align: left; font-weight: 400; }
.matrix td { border-radius: .2rem;
  background: color-mix(in srgb, var(--blue) calc(var(--share) * 100%), var(--track)); }
.matrix td.dark { color: #fff; }
.bar { width: 7rem; height: .6rem; display: block; margin-top: .45rem; }
.histogram { width: 9rem; height: 2.2rem; display: block; } meter { width: 100%; min-width: 5rem; height: .8rem; }
.track { fill: var(--track); } .mark { fill: var(--text); } .good { fill: var(--good); } .bad { fill: var(--bad); }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; }
img.small { width: auto; max-width: 100%; } img.pixels { width: min(100%, 32rem); border-radius: 0; }
img.pixels, figure img { image-rendering: pixelated; } figure { margin: 0; font-size: .85rem; line-height: 1.3; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
pre { background: var(--track); padding: .7rem .9rem; margin: 0; overflow-x: auto; border-radius: .4rem;
  font: 13px/1.5 ui-monospace, monospace; overflow-wrap: normal; }
@media (max-width: 40rem) {
  h1 { font-size: 1.7rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  .cards thead { display: none; } .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .cards td { border: 0; padding: .1rem 0; display: flex; gap: 1rem; }
  .cards td::before { content: attr(data-of); color: var(--soft); flex: 0 0 30%; }
  .cards td > span { flex: 1; min-width: 0; overflow-wrap: anywhere; } .cards .bar, .cards .histogram { width: 100%; }
}
"""


class Markup(str):
    """HTML. Every other text is escaped where it becomes part of a page."""

    __slots__ = ()


def join(*content: Content) -> Markup:
    """Elements and texts, one after the other; texts are escaped."""
    return Markup("".join(_pieces(content)))


def _pieces(content: Iterable[Content]) -> Iterable[str]:
    for item in content:
        if isinstance(item, str):
            yield item if isinstance(item, Markup) else _escaped(item)
        elif item is not None:
            yield from _pieces(item)


def _escaped(text: str) -> str:
    return html.escape(text).translate(_CONTROLS)


def tag(name: str, /, *content: Content, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Its name.
        content: What it contains; texts are escaped.
        attributes: By name, ``class_`` for ``class`` and ``data_of`` for ``data-of``; escaped. One that is ``None``
            is left out.

    Source: HTML Living Standard, 13.1.2 Elements.
    """
    head = "".join(
        f' {word.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for word, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{head}>" if name in _VOID else f"<{name}{head}>{join(content)}</{name}>")


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """A list of names, each with what it stands for."""
    return tag("dl", ((tag("dt", name), tag("dd", value)) for name, value in pairs))


def table(columns: Sequence[str], rows: Iterable[Iterable[Content]]) -> Markup:
    """A table; on a phone each row is a card, its cells labelled with their columns."""
    head = tag("thead", tag("tr", (tag("th", name) for name in columns)))
    body = (
        (tag("tr", (tag("td", tag("span", cell), data_of=name) for name, cell in zip(columns, row, strict=True))), "\n")
        for row in rows
    )
    return tag("table", head, tag("tbody", "\n", body), class_="cards")


def image(png: bytes, alt: str, class_: str | None = None) -> Markup:
    """A picture that is part of the page."""
    return tag("img", class_=class_, alt=alt, src=f"data:image/png;base64,{base64.b64encode(png).decode()}")


def fragment(*content: Content) -> str:
    """What a notebook shows in place of an object: plain elements, which take the notebook's own style."""
    return tag("div", content, style="max-width: 64rem")


def folded(title: str, *content: Content) -> Markup:
    """Content that a click on its title opens."""
    return tag("details", tag("summary", title, style="cursor: pointer"), content)


def page(title: str, *content: Content) -> str:
    """A complete page, which loads nothing: its style and its pictures are in it.

    Source: Content Security Policy Level 3, W3C.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    body = tag("body", "\n", ((part, "\n") for part in content))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"
