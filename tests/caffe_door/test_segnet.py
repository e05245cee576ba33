"""What SegNet's compute_bn_statistics.py needs: its data layer, the batch's statistics, classes with weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bridge import caffe
from bridge.errors import FormatError, ModelError
from tests.caffe_door.nets import TRAINED, close, feed, make, write
from tests.conftest import need

BATCH = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 4 dim: 5 dim: 6 } } }
layer { name: "bn" type: "BN" bottom: "data" top: "bn" top: "mean" top: "var"
  bn_param { %s scale_filler { type: "constant" value: 2 } shift_filler { type: "constant" value: 0.5 } } }
"""
DENSE = """
layer { name: "data" type: "DenseImageData" top: "data" top: "label"
  dense_image_data_param { source: "%s" batch_size: 2 %s } transform_param { mean_value: 3 scale: 0.5 } }
"""


@pytest.mark.parametrize("phase", [caffe.TEST, caffe.TRAIN])
def test_statistics_of_the_batch(tmp_path: Path, phase: int) -> None:
    need("chainer" if phase == caffe.TRAIN else "onnxruntime")
    net = make(tmp_path, BATCH % "", phase)
    x = feed(net)
    assert [blob.shape for blob in net.params["bn"]] == [[1, 4, 1, 1]] * 2
    found = net.forward()
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    assert found["mean"].shape == found["var"].shape == (1, 4, 1, 1)
    close(found["mean"], mean)
    close(found["var"], var)
    close(found["bn"], (x - mean) / np.sqrt(var + 1e-9) * 2 + 0.5)


def test_inference_takes_no_statistics(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layer 'bn' \(BN\): has 3 tops, but takes no statistics of the batch"):
        make(tmp_path, BATCH % "bn_mode: INFERENCE")


def test_classes_with_weights(tmp_path: Path) -> None:
    need("chainer")
    weights = [0.5, 2.0, 3.0]
    param = "weight_by_label_freqs: true ignore_label: 2 " + " ".join(f"class_weighting: {w}" for w in weights)
    net = make(tmp_path, TRAINED.replace("loss_weight: 2", f"loss_param {{ {param} }}"), caffe.TRAIN)
    found = net.forward()["loss"]
    ip, label = net.blobs["ip"].data.copy(), net.blobs["label"].data.astype(int)
    kept = label != 2
    logs = ip - np.log(np.exp(ip).sum(1, keepdims=True))
    factor = np.array(weights)[label] * kept
    close(found, -(factor * logs[np.arange(6), label]).sum() / kept.sum())
    net.backward()
    close(net.blobs["ip"].diff, (np.exp(logs) - np.eye(3)[label]) * factor[:, None] / kept.sum())
    with pytest.raises(ModelError, match=r"layer 'loss' .*has 1 class_weighting, expected 3"):
        make(
            tmp_path, TRAINED.replace("loss_weight: 2", "loss_param { weight_by_label_freqs: true class_weighting: 1 }")
        )


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Three pictures and their labels in files, listed in list.txt: (3, H, W, RGB) and (3, H, W)."""
    need("PIL")
    from PIL import Image

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (3, 6, 8, 3), np.uint8), rng.integers(0, 11, (3, 6, 8), np.uint8)
    for number in range(3):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
        Image.fromarray(labels[number]).save(tmp_path / f"{number}_label.png")
    write(tmp_path, "".join(f"{tmp_path}/{n}.png {tmp_path}/{n}_label.png\n" for n in range(3)), "list.txt")
    return images, labels


def test_images_and_their_labels(tmp_path: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = pictures
    net = make(tmp_path, DENSE % (tmp_path / "list.txt", ""), caffe.TRAIN)
    assert (net.blobs["data"].shape, net.blobs["label"].shape) == ([2, 3, 6, 8], [2, 1, 6, 8])
    for batch in ([0, 1], [2, 0]):
        net.forward()
        expected = (images[batch].transpose(0, 3, 1, 2)[:, ::-1].astype(np.float32) - 3) / 2
        np.testing.assert_array_equal(net.blobs["data"].data, expected)
        np.testing.assert_array_equal(net.blobs["label"].data[:, 0], labels[batch])


def test_labels_move_with_their_images(tmp_path: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = pictures
    param = "crop_height: 3 crop_width: 4 mirror: true shuffle: true"
    net = make(tmp_path, DENSE % (tmp_path / "list.txt", param), caffe.TRAIN)
    wide = [image.transpose(2, 0, 1)[::-1] for image in images]
    seen = set()
    for _ in range(20):
        net.forward()
        for data, label in zip(net.blobs["data"].data * 2 + 3, net.blobs["label"].data, strict=True):
            places = [
                (number, top, left, step)
                for number in range(3)
                for top in range(4)
                for left in range(5)
                for step in (1, -1)
                if (wide[number][:, top : top + 3, left : left + 4][:, :, ::step] == data).all()
            ]
            assert len(places) == 1
            number, top, left, step = places[0]
            np.testing.assert_array_equal(label[0], labels[number, top : top + 3, left : left + 4][:, ::step])
            seen.add(places[0])
    assert len({place[0] for place in seen}) == 3
    assert {place[3] for place in seen} == {1, -1}


def test_labels_are_resized_to_the_nearest(tmp_path: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    _, labels = pictures
    net = make(tmp_path, DENSE % (tmp_path / "list.txt", "new_height: 12 new_width: 4"), caffe.TEST)
    net.forward()
    np.testing.assert_array_equal(net.blobs["label"].data[:, 0], labels[:2].repeat(2, axis=1)[:, :, ::2])


def test_what_a_list_must_be(tmp_path: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    source = tmp_path / "list.txt"
    with pytest.raises(ModelError, match="a crop of 7x4 does not fit an image of 3 x 6 x 8"):
        make(tmp_path, DENSE % (source, "crop_height: 7 crop_width: 4"))
    with pytest.raises(ModelError, match="new_height is 7 and new_width is 0, expected both or neither"):
        make(tmp_path, DENSE % (source, "new_height: 7"))
    with pytest.raises(ModelError, match="would move images but not their labels"):
        make(tmp_path, (DENSE % (source, "")).replace("scale: 0.5", "mirror: true"))
    source.write_text("0.png 0_label.png 1.png")
    with pytest.raises(FormatError, match="holds 3 names, expected pairs of image and labels"):
        make(tmp_path, DENSE % (source, ""))
