"""The folder that the documents' commands run in, and how a page's blocks are run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.conftest import FASHION, ROOT

CLASSIFY = """\
import sys

import caffe
import numpy as np
from PIL import Image

net = caffe.Net("deploy.prototxt", "model.caffemodel", caffe.TEST)
net.blobs["data"].reshape(1, 1, 28, 28)
net.blobs["data"].data[...] = np.asarray(Image.open(sys.argv[1])) / 256
scores = net.forward()["prob"][0]
print("class", scores.argmax(), "with", scores.max().round(4))
"""
"""A script as people wrote it for pycaffe."""


def fill(folder: Path) -> None:
    """Put the small model, under the documents' names for it, into a folder, with pictures and a script."""
    from PIL import Image

    for name in ("deploy.prototxt", "train.prototxt"):
        shutil.copy(FASHION / name, folder / name)
    shutil.copy(FASHION / "fashion_alexnet.caffemodel", folder / "model.caffemodel")
    shutil.copy(FASHION / "io.npz", folder / "io.npz")
    (folder / "models").mkdir()
    for name in ("deploy.prototxt", "fashion_alexnet.caffemodel"):
        shutil.copy(FASHION / name, folder / "models" / name)
    (folder / "classify.py").write_text(CLASSIFY)
    with np.load(FASHION / "io.npz") as recorded:
        images, truth = recorded["in:data"], recorded["out:prob"].argmax(1)
    for number, (image, label) in enumerate(zip(images, truth, strict=True)):
        place = folder / "pictures" / ("shoes" if label in (5, 7, 9) else "clothes")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(place / f"{number:02}.png")
    shutil.copy(next((folder / "pictures" / "shoes").iterdir()), folder / "shoe.png")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        line: The line of the page that it begins on.
        language: The word behind the fence.
        text: Its lines.
        skipped: Why it is not run with its page, as the comment before it says.
        runner: The test that runs it in place of the page, as a comment before it or below the page's title says.
    """

    line: int
    language: str
    text: str
    skipped: str
    runner: str = ""


_FENCE = re.compile(r"((?:<!-- [^>]* -->\n+)*)^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    runners = dict(re.findall(r"<!-- (\w+) blocks are run by (\S+) -->", text))
    for found in _FENCE.finditer(text):
        comments, indent, language, body = found.groups()
        body = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        why, runner = (re.search(rf"<!-- {word} (.*) -->", comments) for word in ("not run:", "run by"))
        yield Block(
            text.count("\n", 0, found.start(2)) + 1,
            language,
            body,
            why[1] if why else "",
            runner[1] if runner else "" if why else runners.get(language, ""),
        )


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command: ``bridge`` and ``python`` are those of the tests."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    for name, command in (("bridge", f'"{sys.executable}" -m bridge'), ("python", f'"{sys.executable}"')):
        (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of ``sh`` or ``python`` in a folder."""
    command = ["sh", "-ec", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def same(expected: str, found: str) -> bool:
    """Whether an output is the one on the page, where ``...`` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, found.strip(), re.DOTALL) is not None
