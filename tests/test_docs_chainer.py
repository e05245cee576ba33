"""The examples in the pages about Chainer run, one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from tests import nets
from tests.conftest import ROOT, need
from tests.test_transplant_article import ALEXNET


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def users(net: bridge.Net) -> Any:
    """A class as a reader of the page has it: layers in a chain of its own, a new head, a method for the scores."""
    from bridge.chain.functions import F, chainer

    L = chainer.links
    trunk = chainer.Chain()
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        layer = net[name]
        kernel, stride, pad, _ = layer.window(2)
        trunk.add_link(name, L.Convolution2D(None, layer.outputs, kernel, stride, pad, groups=layer.group))
    for name in ("fc6", "fc7"):
        trunk.add_link(name, L.Linear(None, net[name].outputs))

    class Model(chainer.Chain):  # type: ignore[misc]
        def scores(self, x: Any) -> Any:
            def normed(h: Any) -> Any:
                h = F.local_response_normalization(F.relu(h), 5, 1, 1e-4 / 5, 0.75)
                return F.max_pooling_2d(h, 3, stride=2)

            t = self.features
            h = normed(t.conv2(normed(t.conv1(x))))
            h = F.relu(t.conv5(F.relu(t.conv4(F.relu(t.conv3(h))))))
            h = F.dropout(F.relu(t.fc6(F.max_pooling_2d(h, 3, stride=2))))
            return self.head(F.dropout(F.relu(t.fc7(h))))

        def forward(self, x: Any) -> Any:
            return F.softmax(self.scores(x))

    return Model(features=trunk, head=L.Linear(None, 20))


@pytest.mark.filterwarnings("ignore")
def test_the_page_on_chainer_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer", "onnx", "onnxruntime")
    from bridge.chain.functions import chainer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy.prototxt").write_text(ALEXNET)
    bridge.save(nets.make(ALEXNET), "alexnet.caffemodel")
    net = bridge.load("deploy.prototxt", "alexnet.caffemodel")
    model = users(net)
    optimizer = chainer.optimizers.SGD().setup(model)
    names: dict[str, Any] = {
        "images": np.ones((2, 3, 99, 99), "f"),
        "labels": np.zeros(2, "i"),
        "model": model,
        "optimizer": optimizer,
        "trainer": Trainer(),
    }
    blocks = examples("chainer.md")
    assert len(blocks) > 8
    for block in blocks:
        if "bridge.build_chain(net)" in block:  # its last line wants a net with a loss
            block = "\n".join(line for line in block.splitlines() if not line.startswith("loss ="))
        exec(compile(block, "chainer.md", "exec"), names)
    assert names["report"].filled
    assert (tmp_path / "tuned.caffemodel").exists()
    assert (tmp_path / "model.onnx").exists()


class Trainer:
    """Stands for a trainer that an extension is given to."""

    def extend(self, extension: Any, trigger: Any) -> None:
        extension(self)


@pytest.mark.process
def test_the_page_on_compat_is_true(tmp_path: Path) -> None:
    need("chainer", "onnx")
    (first,) = examples("compat.md")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{first}\nprint(chainer.__version__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("7.8"), done.stderr


def test_the_page_on_compat_names_every_patch_and_its_number_of_modules() -> None:
    from bridge.compat.table import PATCHES

    text = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+(?:-\w+)+)` \|", text, re.MULTILINE)) == {patch.name for patch in PATCHES}
    assert len({patch.module for patch in PATCHES}) == 38
    assert "When one of thirty-eight modules" in text
