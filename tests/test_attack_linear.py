"""Twice the layers cost twice the calls of functions: nothing is quadratic in layers, blobs or names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files.inference import inference_net
from bridge.caffe_files.prototxt import parse
from bridge.exporting import export_onnx
from bridge.verification.parts import compare_nets
from tests import encode
from tests.conftest import need
from tests.nets import make

LAYERS = 60
MOST = 2.5
"""Twice is linear, four times quadratic."""


def chain_of(layers: int) -> str:
    """A prototxt with so many layers, one after the other."""
    data = 'layer { name: "data" type: "Input" top: "b0" input_param { shape { dim: 1 dim: 2 } } }'
    kinds = ("ReLU", "Scale")
    lines = (
        f'layer {{ name: "l{index}" type: "{kinds[index % 2]}" bottom: "b{index}" top: "b{index + 1}" }}'
        for index in range(layers)
    )
    return "\n".join([data, *lines])


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, in Python and in C."""
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


def job(what: str, layers: int, folder: Path) -> Callable[[], object]:
    text = chain_of(layers)
    net, prototxt, weights = make(text), folder / f"{layers}.prototxt", folder / f"{layers}.caffemodel"
    prototxt.write_text(text)
    bridge.save(net, weights)
    work: dict[str, Callable[[], object]] = {
        "load": lambda: bridge.load(prototxt, weights),
        "save": lambda: bridge.save(net, folder / "net.npz"),
        "export": lambda: export_onnx(net, folder / "net.onnx", check=False),
        "chain": lambda: bridge.build_chain(net),
        "parts": lambda: compare_nets(inference_net(net), inference_net(make(text)), ("a", "b")),
        "verify": lambda: bridge.verify(prototxt, weights, engines=(), readers=("protobuf",)),
        "against": lambda: bridge.verify(weights, against=renamed(net, folder), engines=(), readers=(), checks=()),
        "engines": lambda: bridge.verify(weights, engines=("onnxruntime", "chainer"), readers=(), checks=(), draws=1),
    }
    return work[what]


def renamed(net: bridge.Net, folder: Path) -> Path:
    """A file of the net with other names for all layers."""
    path = folder / f"renamed{len(net.layers)}.caffemodel"
    bridge.save(net.replace(layers=tuple(layer.changed(name=f"x{layer.name}") for layer in net.layers)), path)
    return path


@pytest.mark.parametrize("what", ["load", "save", "export", "chain", "parts", "verify", "against", "engines"])
def test_twice_the_layers_take_twice_the_calls(what: str, tmp_path: Path) -> None:
    if what in ("chain", "engines"):
        need("chainer", "onnxruntime")
    job(what, 4, tmp_path)()  # what is imported, and made once
    few, many = (calls(job(what, layers, tmp_path)) for layers in (LAYERS, 2 * LAYERS))
    assert many <= MOST * few, f"{few} calls for {LAYERS} layers, {many} for twice as many"


def test_a_file_of_many_small_layers_is_read(tmp_path: Path) -> None:
    layers = 3000
    net = encode.net(
        [
            (parse(f'name: "c{index}" type: "Convolution" bottom: "a" top: "a" convolution_param {{ num_output: 1 }}'),
             [encode.blob(np.ones((1, 1, 1, 1)), "packed")])
            for index in range(layers)
        ], "V2", parse('name: "n"'),
    )  # fmt: skip
    (tmp_path / "a.caffemodel").write_bytes(net)
    assert len(bridge.load(tmp_path / "a.caffemodel").layers) == layers
