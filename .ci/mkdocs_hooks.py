"""The root's pages become pages of the site; pages that the table of contents lacks are added to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BROUGHT = {
    "README.md": "readme.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "fixtures/README.md": "fixtures.md",
}
"""File of the repository -> page of the site."""

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|obj):<code>(~?)([^<]*)</code>")
_LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_config(config: Any) -> Any:
    """Give pages that nobody sorted in a place at the end."""
    known = str(config["nav"])
    left = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in known]
    if left:
        config["nav"].append({"More": left})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    for path, page in BROUGHT.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text, (ROOT / path).parent)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave docs/ lead to the pages that were brought in; a link to another file is its name."""
    return markdown if page.file.src_path in BROUGHT.values() else _relinked(markdown, ROOT / "docs")


def on_page_content(html: str, **_: Any) -> str:
    """Show a name that a docstring refers to without the role before it, and after a ``~`` its last part alone."""
    return _ROLE.sub(lambda found: f"<code>{found[2].rpartition('.')[2] if found[1] else found[2]}</code>", html)


def _relinked(text: str, folder: Path) -> str:
    def to_page(found: re.Match[str]) -> str:
        before, link, anchor, after = found.groups()
        if "://" in link:
            return found[0]
        path = (folder / link).resolve()
        inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else link
        if inside.startswith("docs/"):
            inside = inside.removeprefix("docs/")
        return f"{before}{BROUGHT.get(inside, inside)}{anchor or ''}{after}"

    text = _LINK.sub(to_page, text)
    return re.sub(r"\[([^\]]+)\]\((LICENSE|tox\.ini|pyproject\.toml)\)", r"\1", text)
