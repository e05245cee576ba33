"""What `bridge verify` feeds a net, and what it refuses to feed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import FormatError, MissingFileError, ModelError
from tests.conftest import FASHION, need
from tests.nets import make
from tests.test_verify import DEPLOY, NET, WEIGHTS


@pytest.mark.parametrize(
    ("body", "shape", "fits"),
    [
        (
            'type: "Embed" bottom: "x" embed_param { input_dim: 7 num_output: 2 }',
            (4, 9),
            lambda x: set(x.flat) <= set(range(7)),
        ),
        (
            'type: "LSTM" bottom: "d" bottom: "x" recurrent_param { num_output: 2 }',
            (4, 9),
            lambda x: set(x.flat) <= {0, 1} and not x[0].any(),
        ),
        ('type: "BatchReindex" bottom: "d" bottom: "x"', (9,), lambda x: set(x.flat) <= {0, 1, 2, 3}),
        ('type: "Filter" bottom: "d" bottom: "e" bottom: "x" top: "z"', (4,), lambda x: set(x.flat) <= {0, 1}),
        (
            'type: "Upsample" bottom: "d" bottom: "x"',
            (4, 9, 1, 9),
            lambda x: set(x.flat) <= set(range(9)),
        ),
        ('type: "ReLU" bottom: "x"', (4, 9), lambda x: x.min() < 0 < x.max()),
    ],
)
def test_random_inputs_fit_their_use(body: str, shape: tuple[int, ...], fits: Callable[[np.ndarray], bool]) -> None:
    from bridge.verification.inputs import make_inputs

    shapes = {"d": (4, 9, 1, 9), "e": (4, 9), "x": shape}
    dims = {name: " ".join(f"dim: {extent}" for extent in extents) for name, extents in shapes.items()}
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dim} }} }} }}'
        for name, dim in dims.items()
    )
    net = assemble(None, prototxt.parse(f'{text} layer {{ name: "l" top: "y" {body} }}'))
    first, again, other = (make_inputs(net, seed=seed)["x"] for seed in (0, 0, 1))
    assert fits(first)
    assert (first == again).all()
    assert (first != other).any()


def test_inputs_come_from_files(tmp_path: Path) -> None:
    need("PIL")
    from PIL import Image

    from bridge.verification.inputs import make_inputs

    net = bridge.load(DEPLOY, WEIGHTS)
    np.save(tmp_path / "x.npy", np.full((1, 1, 28, 28), 7.0))
    assert (make_inputs(net, given={"data": tmp_path / "x.npy"})["data"] == 7).all()
    np.savez(tmp_path / "x.npz", **{"in:data": np.full((1, 1, 28, 28), 8.0)})
    assert (make_inputs(net, given={"data": tmp_path / "x.npz"})["data"] == 8).all()
    Image.new("L", (56, 56), 9).save(tmp_path / "x.png")
    image = make_inputs(net, given={"data": tmp_path / "x.png"})["data"]
    assert image.shape == (10, 1, 28, 28)
    assert (image == 9).all()
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(FormatError, match="is no image"):
        make_inputs(net, given={"data": tmp_path / "bad.png"})


def test_an_input_larger_than_a_blob_can_be_is_refused_before_it_is_made(tmp_path: Path) -> None:
    need("onnxruntime")
    text = NET.replace("dim: 17 dim: 17", "dim: 1000000 dim: 1000000")
    (tmp_path / "deploy.prototxt").write_text(text)
    bridge.save(make(NET), tmp_path / "weights.caffemodel")
    report = bridge.verify(tmp_path / "deploy.prototxt", tmp_path / "weights.caffemodel")
    size = "input 'data' would be 2 x 4 x 1000000 x 1000000"
    most = "a blob has at most 32 axes and 2,147,483,647 values"
    assert report.status == 1
    assert f"{size} ({most})" in [str(finding) for finding in report.checked[0].findings]
    assert f"outputs were not compared: {tmp_path / 'weights.caffemodel'}: {size} ({most})" in report.remarks
    with pytest.raises(ModelError, match=size) as caught:
        bridge.verify(tmp_path / "weights.caffemodel", inputs={"data": (2, 4, 1000000, 1000000)})
    assert caught.value.hint == most


def test_an_input_that_the_net_cannot_take_is_refused_before_it_is_made() -> None:
    with pytest.raises(ModelError, match="top 'conv1' would be"):  # of 8 GB, which a blob may have
        bridge.verify(DEPLOY, WEIGHTS, inputs={"data": (1, 1, 40000, 50000)}, readers=())


OBJECTS = np.array([None, {}], object)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: path.write_text(DEPLOY.read_text()), "is no NumPy file, expected .npz or .npy"),
        (lambda path: path.write_bytes(b""), "is no NumPy file, expected .npz or .npy"),
        (lambda path: np.savez(path, **{"in:data": OBJECTS}), "holds Python objects, expected numbers"),
        (
            lambda path: np.savez(path, **{"in:data": np.array(["a"])}),
            "array 'in:data': has type <U1, expected numbers",
        ),
        (lambda path: np.savez(path, **{"in:data": np.zeros(1, complex)}), "has type complex128, expected numbers"),
        (lambda path: path.write_bytes((FASHION / "io.npz").read_bytes()[:5000]), "is a damaged NumPy file"),
    ],
)
def test_a_file_that_holds_no_numbers_is_refused_in_our_words(
    tmp_path: Path, write: Callable[[Path], Any], problem: str
) -> None:
    file = tmp_path / "io.npz"
    write(file)
    for wanted in ({"recorded": file}, {"inputs": {"data": file}}):
        with pytest.raises(FormatError) as caught:
            bridge.verify(DEPLOY, WEIGHTS, **wanted)
        message = str(caught.value)
        assert message.startswith(f"{file}: ")
        assert problem in message
        assert "pickle" not in message


@pytest.mark.damage
def test_a_flipped_bit_anywhere_in_a_recorded_file_is_no_crash(tmp_path: Path) -> None:
    from bridge.verification.inputs import Recorded

    np.savez_compressed(tmp_path / "io.npz", **{"in:data": np.arange(60.0), "out:prob": np.ones(9)})
    data = (tmp_path / "io.npz").read_bytes()
    refused = 0
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "flipped.npz").write_bytes(changed)
        try:
            Recorded(tmp_path / "flipped.npz")
        except (FormatError, MissingFileError):
            refused += 1
    assert refused > len(data)
