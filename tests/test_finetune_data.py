"""Data of a run: archives and callables, splits, labels."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import FormatError, MissingFileError, UsageError
from tests.conftest import need
from tests.finetuning import (
    MODEL,
    call,
    config,
    environment,
    loaded,
    run,
    small_pictures,
    trained,
)


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer", "PIL")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"))


# ---- arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((4, 28, 28)), np.zeros(3, int), "x is 4 x 28 x 28 and y is 3"),
        (np.zeros((4, 3, 28, 28)), np.zeros(4, int), "images are 3 x 28 x 28, expected 1 x 28 x 28"),
        (np.zeros((4, 28, 28), "S3"), np.zeros(4, int), "expected numbers"),
        (np.zeros((4, 28, 28)), np.zeros(4, "U3"), "expected labels for each image"),
        (np.zeros((2, 2, 28, 28)), np.zeros((2, 2), int), "images are 2 x 28 x 28"),
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
    assert done.returncode == 1, done.stderr  # noise: no better than guessing


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
    from bridge.cli.run_settings import _class_names

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
    with pytest.raises(UsageError, match=r"large\.npz: preprocessed images are 1 x 32 x 32"):
        trained(config(tmp_path, validation=str(tmp_path / "large.npz")))
