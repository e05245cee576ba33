"""The examples in the page about fine-tuning run, one after the other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import cli
from tests.conftest import ROOT, need
from tests.example import blocks

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "msra" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "fc8" type: "InnerProduct" bottom: "conv1" top: "fc8" inner_product_param { num_output: 7
  weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""


@pytest.mark.training
@pytest.mark.filterwarnings("ignore")
def test_the_page_on_finetuning_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer", "onnxruntime", "PIL")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("deploy.prototxt").write_text(NET)
    net = bridge.load("deploy.prototxt")
    bridge.save(bridge.from_chain(bridge.build_chain(net, seed=0), net), "weights.caffemodel")
    rng = np.random.default_rng(0)
    for name in "abcde":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (15, 17, 3), np.uint8)).save(f"pictures/{name}/{number}.png")
    x, labels = rng.random((20, 3, 12, 12), np.float32), (np.arange(20) % 5).astype(np.int32)
    (tmp_path / "photos").mkdir()
    shutil.copy("pictures/a/0.png", "photos")
    names: dict[str, Any] = {"x": x, "labels": labels}
    for block in blocks(ROOT / "docs" / "finetune.md"):
        if block.runner and block.language == "python":
            shutil.rmtree("run", ignore_errors=True)
            exec(compile(block.text, "finetune.md", "exec"), names)
        elif block.runner:
            shutil.rmtree("run", ignore_errors=True)
            for line in block.text.splitlines():
                with pytest.raises(SystemExit) as left:
                    cli.main(line.replace("bridge ", "", 1).split())
                assert left.value.code in (0, 1), line  # 1: pictures of noise cannot be told apart
    assert Path("photos.csv").read_text().startswith("file,class,score")
    assert names["run"].evaluation is not None
    tuned = bridge.load("tuned.caffemodel")
    assert np.array_equal(tuned["conv1"].weight, net_of("weights.caffemodel")["conv1"].weight)
    assert tuned["fc8"].weight.shape[0] == 5


def net_of(weights: str) -> bridge.Net:
    return bridge.load("deploy.prototxt", weights)
