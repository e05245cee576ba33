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
    "numpy", "protobuf", "onnx", "onnxruntime", "chainer", "cupy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-cu12",
    "h5py", "safetensors", "pillow", "matplotlib", "mpi4py", "opencv-python-headless",
)  # fmt: skip


_STATES = {True: "needed here", False: "not needed here"}
_CLOSE = 1e-3
"""The largest relative difference from NumPy that a training step on a device may have."""


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
    for title in ("readers", "engines", "devices", "gpu"):
        _list(title, data[title])
    _list_patches(data["patches"])


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


def _list_patches(patches: list[dict[str, str]]) -> None:
    """The names of the patches that this environment needs; after ``-v`` each patch with its module and the reason."""
    if manners.VOICE.verbose:
        click.echo("patches to Chainer, made as its modules are imported\n")
        for patch in patches:
            click.echo(f"  {patch['name']}: {patch['module']}, {patch['state']}")
            _say(patch["reason"])
        return
    needed = dict.fromkeys(patch["name"] for patch in patches if patch["state"] == _STATES[True])
    click.echo(
        f"patches to Chainer\n\n  {len(needed)} are needed here; they are made as its modules are imported (-v: why)"
    )
    _say(" ".join(needed))


def _say(remark: str) -> None:
    """A remark below a line; words are not broken, and a command stays on one line, so that it can be copied."""
    indent = " " * 6
    if "pip install" in remark and ", " not in remark:
        click.echo(indent + remark)
        return
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
        "devices": [_cpu(), *_gpus()],
        "gpu": _gpu(),
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


def _gpus() -> list[dict[str, str]]:
    """Every CUDA GPU, with what a training step on it differs from NumPy's; the first one where there is none."""
    from bridge.chain.devices import cuda_devices, cuda_problem

    if problem := cuda_problem():
        return [{"name": "@cupy:0", "summary": "the first CUDA GPU", "problem": problem, "hint": ""}]
    return [_tried(f"@cupy:{number}") for number in range(cuda_devices())]


def _tried(device: str) -> dict[str, str]:
    """A device, tried by one training step: the driver's count of devices does not say that they compute."""
    from bridge.chain.device_facts import step_differences
    from bridge.chain.devices import device_failures

    made = {"name": device, "summary": "", "problem": "", "hint": ""}
    try:
        found = step_differences(device)
    except device_failures() as error:
        return {**made, "problem": f"a training step fails: {type(error).__name__}: {str(error).splitlines()[0]}"}
    text = ", ".join(f"{name} {value:.0e}" for name, value in found.items())
    problem = "" if max(found.values()) < _CLOSE else "a training step gives other numbers than NumPy"
    return {**made, "summary": f"one training step differs from NumPy's by: {text}", "problem": problem}


def _gpu() -> list[dict[str, str]]:
    """What a GPU needs: driver, CuPy and its libraries."""
    from bridge.chain.device_facts import gpu_facts

    return [
        {"name": fact.name, "summary": fact.found, "problem": fact.problem, "hint": fact.hint} for fact in gpu_facts()
    ]


def _patches() -> list[dict[str, str]]:
    from bridge import compat

    return [
        {"name": p.name, "module": p.module, "reason": p.reason, "state": _STATES[p.needed()]} for p in compat.patches()
    ]
