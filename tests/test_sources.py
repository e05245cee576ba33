"""Data layers read what Caffe reads, to the bit and in its order."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.prototxt import parse
from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError, UsageError
from bridge.layers.base import CaffeLayer
from bridge.sources import BatchSource, Surroundings, sink_of, source_of
from bridge.sources import hdf5 as hdf5_source
from bridge.sources.datum import parse_datum
from bridge.sources.pictures import picture_of_bytes, resize
from bridge.sources.randoms import CRandom, Mersenne
from tests.conftest import need
from tests.sources import BATCHES, CASES, RECORDED, SEED, TRAINING, datum, png, prototxt, recorded_by, write_inputs

PACKAGES = {"lmdb": "lmdb", "leveldb": "plyvel", "hdf5": "h5py"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("lmdb", "plyvel", "h5py", "PIL")
    made = tmp_path_factory.mktemp("sources")
    write_inputs(made)
    return made


def layer_of(text: str, phase: str = "TEST") -> CaffeLayer:
    layer = assemble(None, parse(text), phase=phase).layers[0]
    assert isinstance(layer, CaffeLayer), getattr(layer, "problem", "")
    return layer


def opened(text: str, folder: Path, phase: str = "TEST", seed: int = SEED) -> BatchSource:
    source = source_of(layer := layer_of(text, phase))
    assert source is not None
    source.setup(layer, phase, Surroundings(Mersenne(seed), lambda path: folder / path))
    return source


def read(name: str, folder: Path) -> dict[str, np.ndarray]:
    """What the source gives, by the names under which the real Caffe's blobs are recorded."""
    source = opened(prototxt(name), folder, "TRAIN" if name in TRAINING else "TEST")
    tops = layer_of(prototxt(name)).tops
    found = {}
    for batch in range(BATCHES):
        shapes = source.shapes()
        values = source.next_batch()
        assert [value.shape for value in values if value is not None] == list(shapes)
        found.update({f"{name}/{batch}/{top}": value for top, value in zip(tops, values, strict=True)})
    return found


@pytest.fixture
def _fresh_rand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library's random numbers as at the start of a process, for all cases in order."""
    monkeypatch.setattr(hdf5_source, "C_RANDOM", CRandom())


@pytest.mark.usefixtures("_fresh_rand")
def test_every_case_is_what_caffe_recorded(folder: Path) -> None:
    found = {name: value for case in CASES for name, value in read(case, folder).items()}
    with np.load(RECORDED) as recorded:
        assert sorted(found) == sorted(recorded)
        for name in found:
            np.testing.assert_array_equal(found[name], recorded[name], err_msg=name)


@pytest.mark.caffe
@pytest.mark.usefixtures("_fresh_rand")
def test_the_real_caffe_still_says_so(folder: Path) -> None:
    python = shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"])[0]
    recorded = recorded_by(python, folder)
    for case in CASES:
        for name, value in read(case, folder).items():
            np.testing.assert_array_equal(value, recorded[name], err_msg=name)


def test_another_seed_draws_others(folder: Path) -> None:
    first = [opened(prototxt("crop_train"), folder, "TRAIN", seed).next_batch()[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(first[0], first[1])
    assert np.any(first[0] != first[2])


def test_resolution_of_paths_is_the_callers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"u8\.lmdb"):
        opened(prototxt("lmdb"), tmp_path)


# -- memory ----------------------------------------------------------------------------------------

MEMORY = (
    'layer { name: "m" type: "MemoryData" top: "data" top: "label" '
    "memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 } }"
)


def test_memory_data_goes_round(tmp_path: Path) -> None:
    source = opened(MEMORY, tmp_path)
    with pytest.raises(UsageError, match=r"layer 'm' \(MemoryData\): has no data yet"):
        source.next_batch()
    data, labels = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3), np.arange(4, dtype=np.float32)
    source.reset(data, labels)  # type: ignore[attr-defined]
    seen = [source.next_batch() for _ in range(3)]
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in seen]), np.concatenate([data, data[:2]]))
    np.testing.assert_array_equal(np.ravel([batch[1] for batch in seen]), [0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((3, 1, 2, 3), 3, "3 samples are no multiple of the batch size 2"),
        ((2, 1, 3, 2), 2, "data is 2 x 1 x 3 x 2, expected N x 1 x 2 x 3"),
        ((2, 1, 2, 3), 3, "3 labels for 2 samples"),
    ],
)
def test_memory_data_refuses_what_does_not_fit(
    tmp_path: Path, shape: tuple[int, ...], count: int, message: str
) -> None:
    source = opened(MEMORY, tmp_path)
    with pytest.raises(UsageError, match=message):
        source.reset(np.zeros(shape, np.float32), np.zeros(count, np.float32))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="float64"):
        source.reset(np.zeros((2, 1, 2, 3)), np.zeros(2, np.float32))  # type: ignore[attr-defined]


# -- writing ---------------------------------------------------------------------------------------


def test_hdf5_output_writes_data_and_label_once(tmp_path: Path) -> None:
    need("h5py")
    import h5py

    text = 'layer { name: "out" type: "HDF5Output" bottom: "a" bottom: "b" hdf5_output_param { file_name: "o.h5" } }'
    sink = sink_of(layer := layer_of(text))
    assert sink is not None
    sink.setup(layer, "TEST", Surroundings(resolve=lambda path: tmp_path / path))
    data, label = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32), np.arange(3, dtype=np.float32)
    with pytest.raises(ModelError, match="data has 3 samples, label has 2"):
        sink.write([data, label[:2]])
    sink.write([data, label])
    with h5py.File(tmp_path / "o.h5") as file:
        np.testing.assert_array_equal(file["data"], data.reshape(3, 2, 1, 1))
        np.testing.assert_array_equal(file["label"], label.reshape(3, 1, 1, 1))
    with pytest.raises(UsageError, match="is written already"):
        sink.write([data, label])


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (16, 20), (31, 40), (64, 33), (15, 40)])
def test_resize_is_opencvs(size: tuple[int, int]) -> None:
    need("cv2")
    import cv2

    image = np.random.default_rng(1).integers(0, 256, (32, 40, 3), np.uint8)
    wanted = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = resize(image.transpose(2, 0, 1), *size).transpose(1, 2, 0)
    assert np.abs(found.astype(int) - wanted).max() <= 1, "OpenCV's own builds differ by one"
    assert np.mean(found == wanted) > 0.9


def test_decoding_gives_blue_first_and_opencvs_grey() -> None:
    need("PIL")
    image = np.zeros((2, 3, 3), np.uint8)
    image[..., 0], image[..., 1] = 200, 10
    np.testing.assert_array_equal(picture_of_bytes(png(image), 3, "x")[:, 0, 0], [0, 10, 200])
    np.testing.assert_array_equal(picture_of_bytes(png(image), None, "x")[:, 0, 0], [0, 10, 200])
    assert picture_of_bytes(png(image), 1, "x")[0, 0, 0] == (200 * 9797 + 10 * 19234) >> 15
    assert picture_of_bytes(png(image[..., 0]), None, "x").shape == (1, 2, 3)
    assert picture_of_bytes(png(image[..., 0]), 3, "x").shape == (3, 2, 3)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (prototxt("lmdb").replace("batch_size: 3", ""), "parameter 'batch_size' is 0"),
        (prototxt("lmdb").replace("mean_value: 7", "mean_value: 7 mean_value: 8"), "has 2 mean_value"),
        (prototxt("crop_test").replace("crop_size: 5", "crop_size: 9"), "crop_size 9 does not fit an image"),
        (prototxt("lmdb").replace("u8.lmdb", "list.txt"), "is no LMDB"),
        (prototxt("leveldb").replace("u8.leveldb", "pics"), "is no LevelDB"),
        (prototxt("images").replace("new_height: 11", ""), "new_height is 0 and new_width is 7"),
        (prototxt("images").replace("new_height: 11 new_width: 7", "").replace("list.txt", "h5.txt"), "path label"),
        (prototxt("images").replace("pics/", "absent/"), "cannot be read"),
        (prototxt("hdf5").replace('top: "y"', 'top: "z"'), "has no data set 'z'"),
        (prototxt("hdf5").replace("h5.txt", "list.txt"), "cannot be read: No such file"),
        (prototxt("windows").replace("windows.txt", "list.txt"), "expected a whole number"),
        (prototxt("windows").replace("crop_size: 10", ""), "crop_size and batch_size must be positive"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        opened(text, folder).next_batch()
    assert "\n" not in str(caught.value.args[0])


def test_images_of_other_sizes_in_a_batch_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for index, size in enumerate([(4, 4), (5, 5)]):
        (tmp_path / "pics" / f"{index}.png").write_bytes(png(np.zeros(size, np.uint8)))
    (tmp_path / "list.txt").write_text("0.png 1\n1.png 2\n")
    text = prototxt("images").replace("new_height: 11 new_width: 7", "")
    with pytest.raises(ModelError, match="image 1 of a batch is 3 x 5 x 5, the first one is 3 x 4 x 4"):
        opened(text, tmp_path).next_batch()
    one = opened(text.replace("batch_size: 3", "batch_size: 1"), tmp_path)
    assert [one.next_batch()[0].shape for _ in range(3)] == [(1, 3, 4, 4), (1, 3, 5, 5), (1, 3, 4, 4)]  # type: ignore[union-attr]


@pytest.mark.parametrize("cut", range(1, 52, 6))
def test_a_datum_cut_off_is_refused_or_short_of_values(cut: int) -> None:
    whole = datum(np.arange(48, dtype=np.uint8).reshape(3, 4, 4), 300)
    with pytest.raises(FormatError):
        parse_datum(whole[:-cut], "entry").image(None)


def test_a_datum_is_read_whole() -> None:
    found = parse_datum(datum(np.arange(48, dtype=np.uint8).reshape(3, 4, 4), 300), "entry")
    assert (found.shape, found.label, found.encoded) == ((3, 4, 4), 300, False)
    np.testing.assert_array_equal(found.image(None).reshape(-1), np.arange(48))
    negative = datum(np.zeros((1, 1, 1), np.uint8), 0)[:-1] + b"\xff" * 9 + b"\x01"
    assert parse_datum(negative, "entry").label == -1


def test_the_random_numbers_are_those_of_the_c_libraries() -> None:
    numbers = CRandom()
    assert [numbers.draw() for _ in range(3)] == [1804289383, 846930886, 1681692777]
    twister = Mersenne(5489)
    assert [twister.draw() for _ in range(2)] == [3499211612, 581869302]
