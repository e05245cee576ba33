"""``bridge doctor``: what is installed, what works, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from bridge import __version__
from bridge.cli import options

_PACKAGES = (
    "numpy", "protobuf", "onnx", "onnxruntime", "chainer", "cupy", "cupy-cuda12x", "h5py",
    "safetensors", "pillow", "matplotlib", "mpi4py", "opencv-python-headless",
)  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout.")
def doctor(as_json: bool) -> None:
    """Show what is installed, which readers, engines and devices work, and how to get the rest."""
    data = examine()
    if as_json:
        options.write_json(data, "-")
        return
    click.echo(f"weight-bridge {__version__}, Python {data['python']}, {data['platform']}")
    options.table("packages", ["package", "version"], [[k, v or "not installed"] for k, v in data["packages"].items()])
    for title in ("readers", "engines", "devices"):
        rows = [[item["name"], item["summary"], item["problem"] or "works", item["hint"]] for item in data[title]]
        options.table(title, ["name", "what", "state", "how to get it"], rows)
    rows = [[p["name"], p["module"], p["state"], p["reason"]] for p in data["patches"]]
    options.table("patches to Chainer, made as its modules are imported", ["patch", "module", "state", "reason"], rows)


def examine() -> dict[str, Any]:
    """All findings as plain data."""
    from bridge import engines, readers

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
    found = (str(problem.args[0]), problem.hint) if problem else ("", "")
    return {"name": name, "summary": engines.find(name).summary, "problem": found[0], "hint": found[1]}


def _cpu() -> dict[str, str]:
    import os

    return {"name": "-1", "summary": f"CPU, {os.cpu_count()} cores", "problem": "", "hint": ""}


def _cuda() -> dict[str, str]:
    from bridge.devices import HINT, cuda_problem

    problem = cuda_problem()
    hint = HINT if problem else ""
    return {"name": "@cupy:0", "summary": "the first CUDA GPU", "problem": problem, "hint": hint}


def _patches() -> list[dict[str, str]]:
    from bridge import compat

    states = {True: "needed here", False: "not needed here"}
    return [
        {"name": p.name, "module": p.module, "reason": p.reason, "state": states[p.needed()]} for p in compat.patches()
    ]
