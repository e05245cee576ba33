"""Caffe's preprocessing: crop, mirror, mean and scale."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bridge.errors import BridgeError, UsageError
from tests.conftest import need
from tests.finetuning import (
    MODEL,
    config,
    losses,
    small_pictures,
    trained,
)


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer", "PIL")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"))


def test_crop_mirror_mean_and_scale_in_caffes_order() -> None:
    from bridge.finetuning.preprocess import ImageTransform

    x = np.arange(2 * 3 * 4 * 6, dtype=np.uint8).reshape(2, 3, 4, 6)
    mean = np.float32([1, 2, 3])
    made = ImageTransform(scale=0.5, mean=mean, crop=(2, 3), mirror=True, swap=True)
    draws = np.array([[0.0, 0.99, 0.4], [0.99, 0.0, 0.6]])
    y = made.apply(x, draws)
    turned = x[:, ::-1].astype(np.float32)
    np.testing.assert_array_equal(y[0], (turned[0, :, 0:2, 3:6][:, :, ::-1] - mean.reshape(3, 1, 1)) / 2)
    np.testing.assert_array_equal(y[1], (turned[1, :, 2:4, 0:3] - mean.reshape(3, 1, 1)) / 2)
    middle = made.apply(x)
    np.testing.assert_array_equal(middle, (turned[:, :, 1:3, 1:4] - mean.reshape(3, 1, 1)) / 2)


def test_a_mean_image_is_cropped_with_the_image() -> None:
    from bridge.finetuning.preprocess import ImageTransform

    x = np.full((1, 1, 3, 3), 10, np.uint8)
    mean = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    y = ImageTransform(mean=mean, crop=(1, 1)).apply(x, np.array([[0.99, 0.0, 0.0]]))
    assert y.item() == 10 - 6


TRAIN_VAL = """
name: "Fashion"
layer { name: "data" type: "%s" top: "data" top: "label" include { phase: TRAIN }
  transform_param { mirror: true crop_size: 28 scale: 0.00390625 %s } %s }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } data_param { batch_size: 7 } }
"""


def train_val(
    tmp_path: Path, transform: str = "", kind: str = "Data", param: str = "data_param { batch_size: 24 }"
) -> str:
    body = Path(MODEL[0]).read_text().partition("\n")[2].partition("\n")[2].replace('name: "prob"', 'name: "unused"')
    text = TRAIN_VAL % (kind, transform, param)
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" }\n'
    kept = "\n".join(line for line in body.splitlines() if "Softmax" not in line)
    (tmp_path / "train_val.prototxt").write_text(text + kept + "\n" + loss)
    return str(tmp_path / "train_val.prototxt")


def test_preprocessing_is_the_train_prototxts(pictures: Path, tmp_path: Path) -> None:
    made = trained(
        config(
            tmp_path, files=(train_val(tmp_path, "mean_value: 33"), MODEL[1]), data=str(pictures), resize=(32, 32),
            heads=("fc8=3",), scale=None, batch_size=0, epochs=1,
        )
    )  # fmt: skip
    preprocess = made.plan.preprocess
    assert (preprocess.scale, preprocess.mean.tolist(), preprocess.mirror) == (1 / 256, [33], True)
    assert (made.plan.resize, preprocess.crop) == ((32, 32), (28, 28))
    assert made.plan.batches.size == 24
    flags = trained(
        config(
            tmp_path, files=(train_val(tmp_path, "mean_value: 33"), MODEL[1]), data=str(pictures), mirror=False,
            mean="5", scale=1.0, heads=("fc8=3",), epochs=1, output=str(tmp_path / "flags"), batch_size=8,
        )
    )  # fmt: skip
    preprocess = flags.plan.preprocess
    assert (preprocess.scale, preprocess.mean.tolist(), preprocess.mirror) == (1, [5], False)
    assert flags.plan.batches.size == 8


def test_image_data_tells_the_size_of_whole_images(pictures: Path, tmp_path: Path) -> None:
    param = "image_data_param { new_height: 36 new_width: 40 batch_size: 16 is_color: false }"
    files = train_val(tmp_path, kind="ImageData", param=param), MODEL[1]
    made = trained(config(tmp_path, files=files, data=str(pictures), heads=("fc8=3",), epochs=1))
    assert (made.plan.resize, made.plan.preprocess.crop) == ((36, 40), (28, 28))


def test_a_mean_file_beside_the_prototxt(pictures: Path, tmp_path: Path) -> None:
    from bridge.caffe_files.proto import caffe_pb2

    blob = caffe_pb2.BlobProto(num=1, channels=1, height=30, width=30, data=[7.0] * 900)
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    files = train_val(tmp_path, 'mean_file: "mean.binaryproto"'), MODEL[1]
    made = trained(config(tmp_path, files=files, data=str(pictures), heads=("fc8=3",), epochs=1))
    assert made.plan.preprocess.mean.shape == (1, 30, 30)
    assert made.plan.resize == (30, 30)
    outside = train_val(tmp_path, 'mean_file: "../mean.binaryproto"'), MODEL[1]
    with pytest.raises(UsageError, match=r"there is no mean_file .* or below"):
        trained(config(tmp_path, files=outside, data=str(pictures), output=str(tmp_path / "b")))


def test_images_of_another_size_than_the_nets(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((40, 32, 36), np.uint8), y=np.arange(40) % 4)
    with pytest.raises(UsageError, match=r"(?s)images are 1 x 32 x 36, the net's input is 1 x 28 x 28.*--crop 28,28"):
        trained(config(tmp_path, data=str(tmp_path / "large.npz")))
    made = trained(config(tmp_path, data=str(tmp_path / "large.npz"), crop=(28, 28), epochs=1))
    assert made.plan.preprocess.random


def test_a_mean_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--mean has 3 values"):
        trained(config(tmp_path, mean="1,2,3"))
    with pytest.raises(BridgeError, match="no-such-file"):
        trained(config(tmp_path, mean="no-such-file"))


def test_augmentation_follows_the_seed_and_moves_from_epoch_to_epoch(tmp_path: Path) -> None:
    from bridge.finetuning.batches import Images
    from bridge.finetuning.data import Data
    from bridge.finetuning.preprocess import ImageTransform

    x = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)
    images = Images(Data(x, np.zeros(12, int)), ImageTransform(crop=(6, 6), mirror=True), 3, train=True)
    all_of_them = images.get(np.arange(12), 1)
    np.testing.assert_array_equal(images.get(np.array([7, 2]), 1), all_of_them[[7, 2]])
    assert not np.array_equal(images.get(np.arange(12), 2), all_of_them)
    np.testing.assert_array_equal(images.get(np.arange(12), 1), all_of_them)
    assert losses is not None


def test_a_data_layer_without_a_size_names_crop(tmp_path: Path) -> None:
    from bridge.errors import ModelError

    data = 'layer { name: "pics" type: "ImageData" top: "data" top: "label" image_data_param { source: "list.txt" } }\n'
    text = data + Path(MODEL[0]).read_text().split("\n", 1)[1].partition('layer { name: "prob"')[0]
    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" top: "loss" }\n'
    (tmp_path / "train.prototxt").write_text(re.sub(r'layer { name: "data" type: "Input".*\n', "", text) + loss)
    files = (str(tmp_path / "train.prototxt"), MODEL[1])
    with pytest.raises(ModelError, match="size of the net's images is not known: data layer 'pics'") as caught:
        trained(config(tmp_path, files=files))
    assert "--crop" in caught.value.hint
