"""The runner's data: folders, lists, archives and callables; splits; Caffe's preprocessing."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import BridgeError, FormatError, MissingFileError, UsageError
from tests.conftest import FASHION, need
from tests.finetuning import MODEL, call, config, environment, log_of, losses, trained

NAMES = ("bag", "boot", "coat")


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer", "PIL")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with small grey pictures in five formats, 3 classes of 24."""
    need("PIL")
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    with np.load(FASHION / "fashion_mini.npz") as data:
        x, y = data["x_train"], data["y_train"]
    for label, name in enumerate(NAMES):
        (root / name).mkdir()
        for place, index in enumerate(np.flatnonzero(y == label)[:24]):
            suffix = ("png", "jpg", "bmp", "tif", "webp")[place % 5]
            Image.fromarray(x[index]).save(root / name / f"{index}.{suffix}")
    return root


def loaded(source: str, **changes: Any) -> Any:
    from bridge.finetuning.data import Loading, load_data

    settings: dict[str, Any] = {"shape": (1, 28, 28), "resize": (28, 28), "workers": 0}
    return load_data(source, Loading(**{**settings, **changes}))


# ---- pictures -------------------------------------------------------------------------------


def test_a_folder_per_class(pictures: Path) -> None:
    data = loaded(str(pictures))
    assert data.classes == NAMES
    assert data.x.shape == (72, 1, 28, 28)
    assert data.y.tolist() == [0] * 24 + [1] * 24 + [2] * 24
    assert all(Path(name).parent.name == NAMES[label] for name, label in zip(data.names, data.y, strict=True))


def test_worker_processes_decode_the_same(pictures: Path) -> None:
    here, there = loaded(str(pictures)), loaded(str(pictures), workers=2)
    assert here.x.tobytes() == there.x.tobytes()
    assert here.names == there.names


def test_colours_are_blue_first_and_pictures_are_resized(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "red").mkdir()
    Image.new("RGB", (6, 4), (255, 20, 0)).save(tmp_path / "red" / "a.png")
    data = loaded(str(tmp_path), shape=(3, 8, 8), resize=(8, 10))
    assert data.x.shape == (1, 3, 8, 10)
    assert data.x[0, :, 0, 0].tolist() == [0, 20, 255]


def test_sixteen_bits_and_the_cameras_orientation(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((28, 28), 0x8000, np.uint16)).save(tmp_path / "a" / "deep.png")
    upright = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 14, axis=0).repeat(28, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.save(tmp_path / "a" / "turned.png", exif=exif)
    deep, turned = loaded(str(tmp_path)).x
    assert np.all(deep == 128)
    assert turned[0, 0, 0] == 255
    assert turned[0, -1, 0] == 0


def test_what_is_no_picture_by_its_ending_is_counted(pictures: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "bag" / "notes.txt").write_text("hello")
    (copy / "bag" / ".hidden.png").write_text("hello")
    (copy / "empty").mkdir()
    data = loaded(str(copy))
    assert len(data) == 72
    assert any("1 .txt" in note and "notes.txt" in note for note in data.notes)
    assert any("classes without pictures: empty" in note for note in data.notes)


def test_broken_pictures_are_named_counted_and_skipped_up_to_a_number(pictures: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "coat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (copy / "coat" / "empty.jpg").write_bytes(b"")
    (copy / "bag" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    words = r"(?s)3 unreadable pictures: \S*gone\.png: No such file.*; \S*broken\.png: .*; \S*empty\.jpg.*--max-bad 3"
    for bad in range(3):
        with pytest.raises(FormatError, match=words):
            loaded(str(copy), max_bad=bad)
    for place in range(4):
        shutil.copy(copy / "coat" / "empty.jpg", copy / "coat" / f"empty{place}.jpg")
    with pytest.raises(FormatError, match=r"7 unreadable pictures: .*; and 2 more"):
        loaded(str(copy))
    for place in range(4):
        (copy / "coat" / f"empty{place}.jpg").unlink()
    data = loaded(str(copy), max_bad=3)
    assert len(data) == 72
    assert [note for note in data.notes if "broken.png" in note]


def test_a_list_file_and_its_root(pictures: Path, tmp_path: Path) -> None:
    paths = [path for name in NAMES[:2] for path in sorted((pictures / name).iterdir())]
    lines = [f"{path.relative_to(pictures)} {NAMES.index(path.parent.name)}" for path in paths]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "", ""]))
    data = loaded(str(tmp_path / "list.txt"), root=str(pictures))
    assert data.y.tolist() == [0] * 24 + [1] * 24
    assert data.names[0] == str(paths[0])
    (pictures / "list.txt").write_text("\n".join(lines))
    assert loaded(str(pictures / "list.txt")).x.tobytes() == data.x.tobytes()
    (pictures / "list.txt").unlink()
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(line.replace(" ", "\t") for line in lines), newline="")
    assert loaded(str(tmp_path / "list.txt"), root=str(pictures)).y.tolist() == data.y.tolist()


@pytest.mark.parametrize(
    "line", ["b.png", "b.png 1 2", "b.png -1", "b.png\u00b2 \u00b2", "b.png 1.5", f"b.png {2**70}"]
)
def test_a_line_of_a_list_that_is_none(line: str, pictures: Path, tmp_path: Path) -> None:
    picture = next((pictures / "bag").iterdir())
    (tmp_path / "bad.txt").write_text(f"{picture} 1\n{line}\n", encoding="utf-8")
    with pytest.raises(FormatError, match=r"bad\.txt:2: expected 'path label' with one label, a number from 0 on"):
        loaded(str(tmp_path / "bad.txt"))


def test_a_name_in_a_list_may_end_in_a_number(pictures: Path, tmp_path: Path) -> None:
    shutil.copy(next((pictures / "bag").glob("*.png")), tmp_path / "b 1")
    (tmp_path / "list.txt").write_text("b 1 2\n")
    assert loaded(str(tmp_path / "list.txt")).y.tolist() == [2]


def test_pictures_beyond_the_memory_lie_in_a_file_that_a_resumed_run_finds(pictures: Path, tmp_path: Path) -> None:
    memory = loaded(str(pictures))
    first = loaded(str(pictures), memory=0, folder=tmp_path / "run")
    assert isinstance(first.x, np.memmap)
    assert first.x.tobytes() == memory.x.tobytes()
    assert first.digest() == loaded(str(pictures), memory=0, folder=tmp_path / "run").digest()
    (rows,) = (tmp_path / "run").glob("*.rows")
    before = rows.stat().st_mtime_ns
    loaded(str(pictures), memory=0, folder=tmp_path / "run")
    assert rows.stat().st_mtime_ns == before
    taken = first.take(np.array([5, 3]))
    assert taken.images(np.array([1])).tobytes() == memory.x[3:4].tobytes()


def test_the_same_run_from_memory_and_from_a_file(pictures: Path, tmp_path: Path) -> None:
    same: dict[str, Any] = {"data": str(pictures), "heads": ("fc8=3",), "trunk_engine": "chainer", "epochs": 1}
    trained(config(tmp_path, output=str(tmp_path / "memory"), **same))
    trained(config(tmp_path, output=str(tmp_path / "file"), cache_dir=str(tmp_path / "c"), cache_memory=0, **same))
    assert log_of(tmp_path / "memory") == log_of(tmp_path / "file")


# ---- arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((4, 28, 28)), np.zeros(3, int), "x is 4 x 28 x 28 and y is 3"),
        (np.zeros((4, 3, 28, 28)), np.zeros(4, int), "images are 3 x 28 x 28, expected 1 x 28 x 28"),
        (np.zeros((4, 28, 28), "S3"), np.zeros(4, int), "expected numbers"),
        (np.zeros((4, 28, 28)), np.zeros(4, "U3"), "expected a label per image"),
        (np.zeros((2, 2, 28, 28)), np.zeros((2, 2), int), "expected a label per image"),
        (np.full((4, 28, 28), np.inf), np.zeros(4, int), r"data\.npz: x has inf at \[0, 0, 0, 0\]"),
        (np.zeros((4, 28, 28)), np.float32([0, 1, np.nan, 1]), r"y has nan at \[2\]"),
    ],
)
def test_arrays_that_do_not_fit(x: np.ndarray, y: np.ndarray, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(FormatError, match=words):
        loaded(str(tmp_path / "data.npz"))


@pytest.mark.parametrize(
    ("image", "fixed"), [((1, 28, 28), False), ((28, 28), False), ((28, 28, 1), False), ((3, 1, 28, 28), True)]
)
def test_only_one_axis_more_than_the_nets_input_makes_batches(
    image: tuple[int, ...], fixed: bool, tmp_path: Path
) -> None:
    """Labels of (N, 1) are a label per image, as Keras has them."""
    labels = np.arange(4 * (3 if fixed else 1)).reshape(4, *([3] if fixed else []), 1)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, *image), np.uint8), y=labels)
    data = loaded(str(tmp_path / "data.npz"))
    assert data.fixed is fixed
    assert data.y.shape == ((4, 3) if fixed else (4,))
    assert data.x.shape == ((4, 3, 1, 28, 28) if fixed else (4, 1, 28, 28))


def test_archives_with_other_things_or_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros(3))
    with pytest.raises(FormatError, match="has images, expected x and y"):
        loaded(str(tmp_path / "data.npz"))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(FormatError, match="no NumPy archive"):
        loaded(str(tmp_path / "broken.npz"))
    with pytest.raises(MissingFileError, match="does not exist"):
        loaded(str(tmp_path / "nothing"))


def test_arrays_with_channels_last_and_names_of_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.array([0, 1, 2, 0, 1, 2.0]), classes=np.array(["a", "b", "c"]))
    data = loaded(str(tmp_path / "data.npz"), shape=(3, 5, 4))
    assert data.classes == ("a", "b", "c")
    assert data.y.dtype == np.int64
    np.testing.assert_array_equal(data.images(np.array([2])), x[2:3].transpose(0, 3, 1, 2))


def test_a_python_callable(tmp_path: Path) -> None:
    code = """
        import numpy as np
        def digits():
            rng = np.random.default_rng(0)
            return rng.integers(0, 256, (64, 28, 28), np.uint8), np.arange(64) % 4
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    run = tmp_path / "run"
    arguments = ["finetune", *MODEL, "--head", "fc8=4", "--epochs", "1", "-o", run, "-q", "--data"]
    done = call(*arguments, "mine:digits", env=environment(PYTHONPATH=str(tmp_path)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mine:nothing", "returned NoneType, expected (x, y)"),
        ("mine:digit", "does not exist, expected a function\n  hint: did you mean 'digits'?"),
        ("mine:number", "is int, expected a function"),
        ("mine:raises", "failed: ValueError: no such file ("),
        ("mine:wants", "failed: TypeError: wants() missing 1 required positional argument: 'path'"),
        ("mine:leaves", "failed: SystemExit: 5"),
        ("mine:ragged", "returned no arrays: ValueError"),
        ("broken:digits", "is no file, and cannot be imported: SyntaxError"),
        ("missing:digits", "is no file, and cannot be imported: ModuleNotFoundError: No module named 'missing'"),
    ],
)
def test_a_callable_that_is_none_or_fails(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the callable; modules of the current folder are found, by whatever command."""
    code = """
        def nothing(): return None
        def digits(): return None
        def raises(): raise ValueError("no\\nsuch file")
        def wants(path): return path
        def leaves(): raise SystemExit(5)
        def ragged(): return [[1], [1, 2]], [0, 1]
        number = 3
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    (tmp_path / "broken.py").write_text("def digits(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(UsageError) as error:
        loaded(source)
    assert str(error.value).startswith(f"{source}: {words}")


# ---- splits ---------------------------------------------------------------------------------


def test_the_split_is_stratified_and_follows_the_seed() -> None:
    from bridge.finetuning.data import Data, split

    y = np.repeat([0, 1, 2], [100, 50, 10])
    data = Data(np.zeros((160, 1, 1, 1), np.uint8), y)
    train, held = split(data, 0.2, 5)
    assert np.bincount(y[held]).tolist() == [20, 10, 2]
    assert sorted([*train, *held]) == list(range(160))
    assert np.array_equal(held, split(data, 0.2, 5)[1])
    assert not np.array_equal(held, split(data, 0.2, 6)[1])


def test_validation_data_of_ones_own(pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(pictures / "coat", few / "coat")
    made = trained(config(tmp_path, data=str(pictures), validation=str(few), heads=("fc8=3",), epochs=1))
    assert len(made.plan.train) == 72
    assert made.plan.validation.y.tolist() == [2] * 24
    shutil.copytree(pictures / "coat", few / "cloak")
    with pytest.raises(FormatError, match="class 'cloak' is not among those"):
        trained(config(tmp_path, data=str(pictures), validation=str(few), heads=("fc8=3",), output=str(tmp_path / "b")))


def test_class_names_from_a_file(tmp_path: Path) -> None:
    made = run(config(tmp_path, classes=("shirt", "trousers", "pullover", "dress"), epochs=1))
    from bridge.finetuning.products import class_names

    assert class_names(made) == ["shirt", "trousers", "pullover", "dress"]
    with pytest.raises(UsageError, match="of 5 classes"):
        trained(config(tmp_path, classes=tuple("abcde"), output=str(tmp_path / "five")))
    with pytest.raises(UsageError, match="expected a name for each label, 0 to 3; found 2: a, b"):
        trained(config(tmp_path, classes=tuple("ab"), output=str(tmp_path / "two")))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "b"), "expected 3 names, the data's classes are bag, boot, coat; found 2: a, b"),
        (("a", "b", "c", "d"), "expected 3 names"),
        (("a", "b", "a"), "the same name"),
        (("bag", "coat", "boot"), "in another order"),
    ],
)
def test_class_names_that_are_not_the_folders(
    names: tuple[str, ...], words: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--class-names: .*{words}"):
        trained(config(tmp_path, data=str(pictures), classes=names, heads=("fc8=5",)))
    assert not (tmp_path / "run").exists()


def test_validation_folders_are_those_of_the_data_where_classes_are_renamed(pictures: Path, tmp_path: Path) -> None:
    made = trained(
        config(
            tmp_path, data=str(pictures), validation=str(pictures), classes=("a", "b", "c"), heads=("fc8=3",), epochs=1
        )
    )  # fmt: skip
    assert made.plan.train.classes == ("a", "b", "c")
    assert made.plan.validation.y.tolist() == made.plan.train.y.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xef\xbb\xbfshirt\r\n hat \n\n", ("shirt", "hat")),
        (b"shirt\n\nhat\n", "names.txt:2: is blank"),
        (b"shirt\nhat\nshirt\n", "names.txt:3: 'shirt' is on line 1 already"),
        (b"shirt\n\xff\n", "is no text in UTF-8"),
        (b"", "names.txt:1: is blank"),
    ],
)
def test_a_file_of_class_names(text: bytes, expected: Any, tmp_path: Path) -> None:
    from bridge.cli.finetune import _class_names

    (tmp_path / "names.txt").write_bytes(text)
    if isinstance(expected, tuple):
        assert _class_names(str(tmp_path / "names.txt")) == expected
        return
    with pytest.raises(FormatError, match=expected):
        _class_names(str(tmp_path / "names.txt"))


# ---- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words", "hint"),
    [
        ([-1, 0, 1, 2], "from -1 to 2, the net tells 4 classes apart, from 0 to 3", "if -1 means 'none'"),
        ([0, 1, 2, 255], "from 0 to 255", "if 255 means 'none'"),
        ([1, 2, 3, 4], "from 1 to 4", "count classes from 0"),
        ([0, 1, 2, 6], "from 0 to 6", "--head fc8=7 gives it a new head"),
    ],
)
@pytest.mark.parametrize("which", ["data", "validation"])
def test_labels_that_are_none_of_the_nets_classes(
    labels: list[int], words: str, hint: str, which: str, tmp_path: Path
) -> None:
    """Said before anything is trained, of the data that have them."""
    np.savez(tmp_path / "odd.npz", x=np.zeros((40, 28, 28), np.uint8), y=np.resize(labels, 40))
    with pytest.raises(UsageError, match=rf"(?s)odd\.npz: labels run {words}.*hint: {hint}"):
        trained(config(tmp_path, **{which: str(tmp_path / "odd.npz")}))
    assert not (tmp_path / "run").exists()


def test_validation_images_of_another_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((8, 32, 32), np.uint8), y=np.arange(8) % 4)
    with pytest.raises(UsageError, match=r"large\.npz: images come to 1 x 32 x 32"):
        trained(config(tmp_path, validation=str(tmp_path / "large.npz")))


# ---- preprocessing --------------------------------------------------------------------------


def test_crop_mirror_mean_and_scale_in_caffes_order() -> None:
    from bridge.finetuning.preprocess import Preprocess

    x = np.arange(2 * 3 * 4 * 6, dtype=np.uint8).reshape(2, 3, 4, 6)
    mean = np.float32([1, 2, 3])
    made = Preprocess(scale=0.5, mean=mean, crop=(2, 3), mirror=True, swap=True)
    draws = np.array([[0.0, 0.99, 0.4], [0.99, 0.0, 0.6]])
    y = made.apply(x, draws)
    turned = x[:, ::-1].astype(np.float32)
    np.testing.assert_array_equal(y[0], (turned[0, :, 0:2, 3:6][:, :, ::-1] - mean.reshape(3, 1, 1)) / 2)
    np.testing.assert_array_equal(y[1], (turned[1, :, 2:4, 0:3] - mean.reshape(3, 1, 1)) / 2)
    middle = made.apply(x)
    np.testing.assert_array_equal(middle, (turned[:, :, 1:3, 1:4] - mean.reshape(3, 1, 1)) / 2)


def test_a_mean_image_is_cropped_with_the_image() -> None:
    from bridge.finetuning.preprocess import Preprocess

    x = np.full((1, 1, 3, 3), 10, np.uint8)
    mean = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    y = Preprocess(mean=mean, crop=(1, 1)).apply(x, np.array([[0.99, 0.0, 0.0]]))
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
    with pytest.raises(UsageError, match=r"(?s)come to 1 x 32 x 36, the net's input is 1 x 28 x 28.*--crop 28,28"):
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
    from bridge.finetuning.preprocess import Preprocess

    x = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), np.uint8)
    images = Images(Data(x, np.zeros(12, int)), Preprocess(crop=(6, 6), mirror=True), 3, train=True)
    all_of_them = images.get(np.arange(12), 1)
    np.testing.assert_array_equal(images.get(np.array([7, 2]), 1), all_of_them[[7, 2]])
    assert not np.array_equal(images.get(np.arange(12), 2), all_of_them)
    np.testing.assert_array_equal(images.get(np.arange(12), 1), all_of_them)
    assert losses is not None
