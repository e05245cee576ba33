"""Caffe's small programs: databases of images, their mean, features, and files of old versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bridge import caffe
from bridge.caffe import commands
from bridge.caffe.proto import caffe_pb2
from tests.caffe_door.nets import SMALL, close, make, plain, write
from tests.conftest import need

V1 = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
layers { name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" blobs_lr: 1 blobs_lr: 2 inner_product_param { num_output: 2 } }
"""  # noqa: E501


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    from bridge.caffe.state import STATE

    monkeypatch.setattr(STATE, "stream", None)
    return tmp_path


@pytest.fixture
def pictures(here: Path) -> np.ndarray:
    """Three pictures in files, listed in list.txt with the labels 5, 6 and 7: (3, 3, 8, 8), blue first."""
    need("PIL", "lmdb")
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(here / f"{number}.png")
    (here / "list.txt").write_text("".join(f"{number}.png {number + 5}\n" for number in range(3)))
    return images[..., ::-1].transpose(0, 3, 1, 2)


def entries(path: str) -> dict[str, caffe_pb2.Datum]:
    import lmdb

    with lmdb.open(path, readonly=True, lock=False) as database, database.begin() as transaction:
        return {key.decode(): caffe_pb2.Datum.FromString(value) for key, value in transaction.cursor()}


def test_images_into_a_database(here: Path, pictures: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["convert_imageset", "-backend=lmdb", "--check_size", f"{here}/", "list.txt", "made"]) == 0
    found = entries("made")
    assert list(found) == ["00000000_0.png", "00000001_1.png", "00000002_2.png"]
    for image, datum, label in zip(pictures, found.values(), (5, 6, 7), strict=True):
        np.testing.assert_array_equal(caffe.io.datum_to_array(datum), image)
        assert datum.label == label
    assert commands.main(["convert_imageset", f"{here}/", "list.txt", "made"]) == 2
    assert "made: exists, expected a new database" in capsys.readouterr().err
    flags = ["--gray=true", "--resize_width=4", "--resize_height=6", "--shuffle"]
    assert commands.main(["convert_imageset", *flags, f"{here}/", "list.txt", "grey"]) == 0
    shapes = {(datum.channels, datum.height, datum.width) for datum in entries("grey").values()}
    assert shapes == {(1, 6, 4)}
    assert commands.main(["compute_image_mean", "made", "mean.binaryproto"]) == 0
    blob = caffe_pb2.BlobProto.FromString((here / "mean.binaryproto").read_bytes())
    close(caffe.io.blobproto_to_array(blob), pictures.mean(0)[None])
    assert "mean_value channel [2]: " in capsys.readouterr().err


def test_features(here: Path) -> None:
    need("lmdb", "onnxruntime")
    net = make(here)
    net.save("net.caffemodel")
    net.blobs["data"].data[...] = 0
    wanted = plain(net, net.blobs["data"].data)
    words = ["net.caffemodel", "net.prototxt", "pool,ip", "pools,ips", "3", "lmdb", "CPU"]
    assert commands.main(["extract_features", *words]) == 0
    found = entries("pools")
    assert (len(found), list(found)[5]) == (6, "0000000005")
    for number, datum in enumerate(found.values()):
        close(caffe.io.datum_to_array(datum), wanted["pool"][number % 2])
    assert [datum.channels for datum in entries("ips").values()] == [5] * 6
    assert commands.main(["extract_features", *words[:2], "pool", "a,b", "1", "lmdb"]) == 2


def test_old_files(here: Path) -> None:
    from google.protobuf import text_format

    write(here, V1, "old.prototxt")
    assert commands.main(["upgrade_net_proto_text", "old.prototxt", "new.prototxt"]) == 0
    new = text_format.Parse((here / "new.prototxt").read_text(), caffe_pb2.NetParameter())
    assert [(layer.name, layer.type) for layer in new.layer] == [("input", "Input"), ("ip", "InnerProduct")]
    assert [spec.lr_mult for spec in new.layer[1].param] == [1, 2]
    net = make(here, SMALL)
    net.save("a.caffemodel")
    assert commands.main(["upgrade_net_proto_binary", "a.caffemodel", "b.caffemodel"]) == 0
    again = caffe_pb2.NetParameter.FromString((here / "b.caffemodel").read_bytes())
    close(caffe.io.blobproto_to_array(again.layer[1].blobs[0]), net.params["conv"][0].data)
    write(here, 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" solver_type: ADAM', "old_solver.prototxt")
    assert commands.main(["upgrade_solver_proto_text", "old_solver.prototxt", "solver.prototxt"]) == 0
    solver = text_format.Parse((here / "solver.prototxt").read_text(), caffe_pb2.SolverParameter())
    assert (solver.type, solver.net, solver.HasField("solver_type")) == ("Adam", "net.prototxt", False)


def test_device_query_says_what_the_driver_says(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bridge.chain import devices

    monkeypatch.setattr(devices, "cuda_problem", lambda: "")
    monkeypatch.setattr(devices, "cuda_devices", lambda: 1)
    monkeypatch.setattr(devices, "name_and_memory", lambda number: ("H200", 7 + number))
    assert commands.main(["device_query"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == ["0", "0", "H200", "7"]
