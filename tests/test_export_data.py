"""Exports whose weights lie in a file of their own, or stay in the source."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import OutputError, UsageError
from bridge.exporting import net as exporting
from bridge.onnx_export import file as onnx_file
from tests.conftest import FASHION, need
from tests.encode import blob, chunk, tag, varint
from tests.nets import make
from tests.test_export import CASE, DEPLOY, SOURCES, WEIGHTS, check_numbers, ends, text_of
from tests.test_export_graph import run
from tests.test_golden import load

# ---- external data ---------------------------------------------------------------------------------


def external(path: Path) -> dict[str, dict[str, str]]:
    """Where each tensor of a model lies that is not in it."""
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    return {t.name: {e.key: e.value for e in t.external_data} for t in tensors if t.data_location == t.EXTERNAL}


def test_weights_go_into_a_file_beside_the_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, _ = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx", "--external-data")
    assert status == 0
    places = external(tmp_path / "out.onnx")
    assert {place["location"] for place in places.values()} == {"out.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places.values())
    assert (tmp_path / "out.onnx").stat().st_size < 20_000
    check_numbers(tmp_path / "out.onnx")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in SOURCES:
        shutil.move(tmp_path / name, moved)
    check_numbers(moved / "out.onnx")


@pytest.mark.parametrize("external", [None, "file"])
def test_a_split_into_many_parts_runs(tmp_path: Path, external: str | None) -> None:
    """Its extents take more than a kilobyte; a runtime infers shapes from them."""
    need("onnxruntime", "chainer")
    tops = " ".join(f'top: "t{i}"' for i in range(200))
    net = assemble(
        None,
        prototxt.parse(
            'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 200 } } }'
            f'layer {{ name: "s" type: "Slice" bottom: "x" {tops} }}'
        ),
    )
    bridge.export_onnx(net, tmp_path / "out.onnx", external_data=external)
    assert bridge.verify(net, against=tmp_path / "out.onnx").status == 0


def test_external_data_of_float16(tmp_path: Path) -> None:
    need("onnxruntime")
    bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", half=True, external_data="file")
    _, inputs, recorded = load(FASHION)
    assert (tmp_path / "out.onnx.data").stat().st_size < 100_000
    np.testing.assert_allclose(run(tmp_path / "out.onnx", inputs)["prob"], recorded["prob"], 4e-3, 2e-3)


def test_both_files_are_written_over(tmp_path: Path) -> None:
    for name in SOURCES:
        (tmp_path / name).write_bytes(b"old" * 100_000)
    bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", external_data="file")
    check_numbers(tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == list(SOURCES)


def test_a_link_stays_a_link_and_the_data_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    link, file = tmp_path / "link.onnx", tmp_path / "models" / "модель 1.onnx"
    file.write_bytes(b"old")
    link.symlink_to(file)
    bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), link, external_data="file", check=False)
    assert link.is_symlink()
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, f"{file.name}.data"]
    check_numbers(file)


@pytest.mark.parametrize("fails", [1, 2])
def test_both_files_stay_as_they_were_when_one_cannot_be_written(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SOURCES:
        (tmp_path / name).write_bytes(b"old")
    store, calls = exporting._store, iter(range(1, 3))

    def full(*arguments: Any) -> None:
        store(*arguments)
        if next(calls) == fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "_store", full)
    with pytest.raises(OutputError, match="No space left"):
        bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", external_data="file", check=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(SOURCES, b"old")


# ---- external data that is the source itself -------------------------------------------------------


@pytest.mark.parametrize("folder", [".", "models"])
def test_weights_stay_in_the_caffemodel(folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("chainer", "onnxruntime")
    sources = tmp_path / folder
    sources.mkdir(exist_ok=True)
    files = [shutil.copy(path, sources) for path in (DEPLOY, WEIGHTS)]
    status, _, err = ends(capfd, *files, "-o", tmp_path / "out.onnx", "--external-data=source")
    assert (status, err) == (0, "")
    places = external(tmp_path / "out.onnx")
    location = (Path(folder) / WEIGHTS.name).as_posix()
    assert {place["location"] for place in places.values()} == {location}
    assert any(int(place["offset"]) % 4 for place in places.values())
    assert len(list(tmp_path.glob("out*"))) == 1
    check_numbers(tmp_path / "out.onnx")


def test_weights_that_lie_elsewhere_cannot_be_referred_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx", "--external-data=source")
    assert status == 2
    assert err.splitlines() == [
        f"bridge: {tmp_path / 'out.onnx'}: the weights lie in {WEIGHTS}, expected a place in {tmp_path} or below",
        "  hint: write the model beside its weights",
    ]
    assert not list(tmp_path.iterdir())


def test_double_weights_cannot_be_referred_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(CASE["net_alexnet_mini_double"], tmp_path / "model")
    files = [folder / "deploy.prototxt", folder / "weights.caffemodel"]
    status, _, err = ends(capfd, *files, "-o", folder / "out.onnx", "--external-data=source", "--no-check")
    assert status == 2
    assert "holds no weights that a model could refer to" in err
    assert not (folder / "out.onnx").exists()
    status, _, _ = ends(capfd, *files, "-o", folder / "out.onnx", "--external-data", "--no-check")
    assert status == 0


def test_weights_that_are_needed_transposed_are_in_the_model(tmp_path: Path) -> None:
    turned, kept = (f"inner_product_param {{ num_output: 40 axis: 2 {more}}} }}" for more in ("", "transpose: true "))
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 30 } } }\n'
        f'layer {{ name: "f" type: "InnerProduct" bottom: "x" top: "f" {turned}\n'
        f'layer {{ name: "g" type: "InnerProduct" bottom: "f" top: "g" {kept}\n'
    )
    (tmp_path / "net.prototxt").write_text(text_of(net))
    bridge.save(net, tmp_path / "net.caffemodel")
    read = bridge.load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    graph = bridge.export_onnx(read, tmp_path / "out.onnx", external_data="source", check=False)
    assert graph.notes == ["1 of 2 weights are in the model: the source has them in another form"]
    assert list(external(tmp_path / "out.onnx")) == ["g.weight"]
    need("onnxruntime")
    x = np.random.default_rng(0).standard_normal((2, 3, 30)).astype(np.float32)
    expected = (x @ net["f"].weight.T + net["f"].bias) @ net["g"].weight + net["g"].bias
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})["g"], expected, 1e-4, 1e-4)


def test_half_weights_serve_a_half_model_where_they_are(tmp_path: Path) -> None:
    need("onnxruntime")
    weight = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float16)
    layer = chunk(1, b"f") + chunk(2, b"InnerProduct") + chunk(7, blob(weight, "half"))
    (tmp_path / "net.caffemodel").write_bytes(chunk(100, layer))
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 40 } } }\n'
        'layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" '
        "inner_product_param { num_output: 30 bias_term: false } }"
    )
    net = bridge.load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    bridge.export_onnx(net, tmp_path / "out.onnx", external_data="source", half=True)
    assert list(external(tmp_path / "out.onnx")) == ["f.weight"]
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})["f"], x @ weight.T.astype(np.float32), 4e-3, 2e-2)
    with pytest.raises(UsageError, match="another type"):
        bridge.export_onnx(net, tmp_path / "out.onnx", external_data="source", check=False)


# ---- large models ----------------------------------------------------------------------------------


def sparse_model(folder: Path, rows: int, columns: int, layers: int) -> tuple[Path, Path]:
    """A net of square layers whose weights are a hole in the file: all zeros, and no space on the disk."""
    text = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: {columns} }} }} }}\n'
    param = f"inner_product_param {{ num_output: {rows} bias_term: false }}"
    with open(folder / "net.caffemodel", "wb") as file:
        for index in range(layers):
            bottom = f"f{index - 1}" if index else "x"
            text += f'layer {{ name: "f{index}" type: "InnerProduct" bottom: "{bottom}" top: "f{index}" {param} }}\n'
            length = rows * columns * 4
            shape = chunk(7, chunk(1, varint(rows) + varint(columns)))
            head = shape + tag(5, 2) + varint(length)
            inner = chunk(1, f"f{index}".encode()) + chunk(2, b"InnerProduct")
            inner += tag(7, 2) + varint(len(head) + length) + head
            file.write(tag(100, 2) + varint(len(inner) + length) + inner)
            file.seek(length, 1)
        file.write(chunk(1, b"sparse"))
    (folder / "net.prototxt").write_text(text)
    return folder / "net.prototxt", folder / "net.caffemodel"


def test_a_model_too_large_for_one_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LIMIT", 100_000)
    with pytest.raises(UsageError, match=r"takes 1\d\d,\d\d\d bytes, one file can hold 95,904") as error:
        bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx")
    assert "--external-data" in error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    files = sparse_model(tmp_path, 17_000, 17_000, 2)
    assert files[1].stat().st_size > 1 << 31
    net = bridge.load(*files)
    with pytest.raises(UsageError, match="one file can hold"):
        bridge.export_onnx(net, tmp_path / "out.onnx", check=False)
    for mode in ("source", "file"):
        bridge.export_onnx(net, tmp_path / "out.onnx", external_data=mode, check=False)
        assert (tmp_path / "out.onnx").stat().st_size < 10_000
        places = external(tmp_path / "out.onnx")
        assert int(places["f1.weight"]["offset"]) + int(places["f1.weight"]["length"]) > 1 << 31
        assert bridge.load(tmp_path / "out.onnx")["f1"].weight.shape == (17_000, 17_000)
    assert (tmp_path / "out.onnx.data").stat().st_size > 1 << 31
