"""Pictures as data: folders, lists, decoding, and pictures that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import FormatError
from tests.conftest import need
from tests.finetuning import (
    NAMES,
    config,
    loaded,
    log_of,
    small_pictures,
    trained,
)


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer", "PIL")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"))


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
