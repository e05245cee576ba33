"""Nets for the tests of bridge.caffe, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bridge import caffe

SMALL = """
name: "small"
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""

FORKED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Power" bottom: "a" top: "b" power_param { scale: 2 } }
layer { name: "c" type: "Power" bottom: "a" top: "c" power_param { scale: 3 } }
layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "sum" }
"""

TRAINED = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 6 dim: 4 } shape { dim: 6 }
    data_filler { type: "gaussian" std: 1 } data_filler { } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: 2 }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
"""


def write(folder: Path, text: str, name: str = "net.prototxt") -> str:
    """A prototxt as a file."""
    path = folder / name
    path.write_text(text)
    return str(path)


def make(folder: Path, text: str = SMALL, phase: int = caffe.TEST, **keywords: Any) -> Any:
    """The net of a prototxt."""
    return caffe.Net(write(folder, text), phase, **keywords)


def feed(net: Any, seed: int = 0, name: str = "data") -> np.ndarray:
    """Random values for an input blob."""
    values = np.random.default_rng(seed).standard_normal(net.blobs[name].data.shape).astype(np.float32)
    net.blobs[name].data[...] = values
    return values


def plain(net: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the layers of SMALL compute, in plain NumPy."""
    weight, bias = (blob.data for blob in net.params["conv"])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    conv = np.maximum(conv, 0)
    pool = conv.reshape(*conv.shape[:2], conv.shape[2] // 2, 2, conv.shape[3] // 2, 2).max((3, 5))
    ip = pool.reshape(len(x), -1) @ net.params["ip"][0].data.T + net.params["ip"][1].data
    prob = np.exp(ip - ip.max(1, keepdims=True))
    return {"conv": conv, "pool": pool, "ip": ip, "prob": prob / prob.sum(1, keepdims=True)}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the scale."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1e-9, float(np.abs(expected).max())))
