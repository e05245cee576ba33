"""``bridge doctor``: what is installed, what works, and how to install the rest."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap
from typing import Any

import click

from bridge import __version__
from bridge.cli import manners, options
from bridge.show.table import print_styled, print_table, table_rows, terminal_width

_PACKAGES = (
    "numpy", "protobuf", "onnx", "onnxruntime", "chainer", "cupy", "cupy-cuda12x", "h5py",
    "safetensors", "pillow", "matplotlib", "mpi4py", "opencv-python-headless",
)  # fmt: skip


@manners.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
def doctor(as_json: bool) -> None:
    """Show what is installed, which readers, engines and devices work, and how to install the rest."""
    data = examine()
    if as_json:
        options.write_json(data, "-")
        return
    click.echo(f"weight-bridge {__version__}, Python {data['python']}, {data['platform']}")
    packages = [(name, version or "not installed") for name, version in data["packages"].items()]
    print_table("packages", ("package", "version"), packages)
    click.echo()
    for title in ("readers", "engines", "devices"):
        _list(title, data[title])
    click.echo("patches to Chainer, made as its modules are imported\n")
    for patch in data["patches"]:
        click.echo(f"  {patch['name']}: {patch['module']}, {patch['state']}")
        _say(patch["reason"])


def _list(title: str, items: list[dict[str, str]]) -> None:
    """A line for each item; below one that does not work, the reason and how to install it."""
    click.echo(f"{title}\n")
    cells = [(item["name"], "no" if item["problem"] else "works", item["summary"]) for item in items]
    heading, *rows = table_rows(("name", "state", "what"), cells, width=terminal_width(), prose=True, indent="  ")
    print_styled(heading, "bold")
    for item, row in zip(items, rows, strict=True):
        click.echo(row)
        _say(item["problem"])
        _say(item["hint"])
    click.echo()


def _say(remark: str) -> None:
    """A remark below a line; words are not broken, so that commands can be copied."""
    indent = " " * 6
    width = min(terminal_width() or 80, 80) - len(indent)
    for line in textwrap.wrap(remark, width, break_long_words=False, break_on_hyphens=False):
        click.echo(indent + line)


def examine() -> dict[str, Any]:
    """All findings as plain data."""
    from bridge import engines
    from bridge.files import readers

    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "readers": [
            {"name": s.name, "summary": s.summary, "problem": s.problem, "hint": s.hint} for s in readers.available()
        ],
        "engines": [_engine(name) for name in engines.ENGINES],
        "devices": [_cpu(), _cuda()],
        "patches": _patches(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engine(name: str) -> dict[str, str]:
    from bridge import engines

    problem = engines.missing(name)
    text = str(problem.args[0]) if problem else ""
    for prefix in (f"engine '{name}': ", f"{name}: "):
        text = text.removeprefix(prefix)
    hint = problem.hint if problem else ""
    return {"name": name, "summary": engines.find(name).summary, "problem": text, "hint": hint}


def _cpu() -> dict[str, str]:
    import os

    return {"name": "-1", "summary": f"CPU, {os.cpu_count()} cores", "problem": "", "hint": ""}


def _cuda() -> dict[str, str]:
    from bridge.chain.devices import GPU_HINT, cuda_problem

    problem = cuda_problem()
    hint = GPU_HINT if problem else ""
    return {"name": "@cupy:0", "summary": "the first CUDA GPU", "problem": problem, "hint": hint}


def _patches() -> list[dict[str, str]]:
    from bridge import compat

    states = {True: "needed here", False: "not needed here"}
    return [
        {"name": p.name, "module": p.module, "reason": p.reason, "state": states[p.needed()]} for p in compat.patches()
    ]
