"""Data that lie: each ends in one line, never in fewer entries, a crash, or memory that no file can fill."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import BridgeError, FormatError, MissingFileError, ModelError
from bridge.files.solver_state import read_solver_state
from bridge.sources.database import database
from bridge.sources.lmdb import LmdbFile
from bridge.sources.pictures import read_picture
from tests.conftest import need
from tests.nets import make
from tests.sources import WINDOWS, datum, png, prototxt, write_leveldb, write_lmdb
from tests.test_sources import opened


@pytest.mark.parametrize("count", [0, 1, 150, 3000])
def test_the_entries_of_an_lmdb_are_those_that_lmdb_gives(count: int, tmp_path: Path) -> None:
    need("lmdb")
    import lmdb

    rng = random.Random(count)
    with lmdb.open(str(tmp_path), map_size=1 << 26) as environment:
        for start in range(0, count, 500):  # several transactions; pages are freed and used again
            with environment.begin(write=True) as transaction:
                for index in range(start, min(start + 500, count)):
                    size = rng.choice([0, 1, 100, 2000, 9000] if index < 300 else [0, 1, 60])
                    transaction.put(b"%07d" % rng.randrange(10**6), rng.randbytes(size))
                    if rng.random() < 0.1:
                        transaction.delete(b"%07d" % rng.randrange(10**6))
        with environment.begin() as transaction:
            wanted = list(transaction.cursor())
    found = LmdbFile(tmp_path)
    assert list(found) == wanted
    assert list(found) == wanted, "a second pass starts anew"
    assert found.entries == len(wanted)


def test_an_lmdb_that_is_cut_short_or_has_a_wrong_page_is_named(tmp_path: Path) -> None:
    need("lmdb")
    write_lmdb(tmp_path, [datum(np.zeros((3, 40, 40), np.uint8), n) for n in range(40)])
    data = (tmp_path / "data.mdb").read_bytes()
    for damaged in (data[:-4096], data[:5000], data[:100], b"", data[: 2 * 4096] + bytes(len(data) - 2 * 4096)):
        (tmp_path / "x.mdb").write_bytes(damaged)
        with pytest.raises(FormatError):
            list(database(tmp_path / "x.mdb", "LMDB").entries())


def test_a_damaged_leveldb_is_not_read_in_part(tmp_path: Path) -> None:
    need("plyvel")
    write_leveldb(tmp_path / "db", [datum(np.zeros((1, 8, 8), np.uint8), n) for n in range(50)])
    write_leveldb(tmp_path / "db", [])
    (table,) = (tmp_path / "db").glob("*.ldb")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 255
    table.write_bytes(data)
    with pytest.raises(FormatError, match="is damaged: "):
        list(database(tmp_path / "db", "LEVELDB").entries())


def test_a_pipe_in_place_of_data_is_not_waited_for(tmp_path: Path) -> None:
    need("PIL", "h5py")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingFileError, match="is not a regular file"):
        read_picture(tmp_path / "pipe", 3)
    for case, file in (("hdf5", "h5.txt"), ("images", "list.txt"), ("windows", "windows.txt"), ("lmdb", "u8.lmdb")):
        with pytest.raises(MissingFileError, match="is not a regular file"):
            opened(prototxt(case).replace(file, "pipe"), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# 0\na.png\n1\n16\n18\n1\n1 0.8 2 3 11 9\n", "an image of 1 channels, expected 3"),
        ("# -1\na.png\n3\n16\n18\n1\n1 0.8 2 3 11 9\n", "in image -1"),
        ("# 0\na.png\n3\n16\n18\n2\n1 0.8 9 3 2 9\n0 0.1 0 0 5 5\n", "a window 9,3 to 2,9"),
        ("# 0\na.png\n3\n16\n18\n2\n1 0.8 90 90 99 99\n0 0.1 90 90 99 99\n", "is outside its image"),
        ("# 0\na.png\n3\n16\n18\n999999999999\n1 0.8 2 3 11 9\n", "expected an overlap"),
    ],
)
@pytest.mark.parametrize("mode", ["warp", "square"])
def test_windows_that_cannot_be(mode: str, text: str, message: str, tmp_path: Path) -> None:
    need("PIL")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(png(np.zeros((16, 18, 3), np.uint8)))
    (tmp_path / "windows.txt").write_text(text)
    layer = WINDOWS % f'context_pad: 1 crop_mode: "{mode}"'
    with pytest.raises(BridgeError, match=message):
        opened(f'layer {{ type: "WindowData" top: "x" top: "y" {layer} transform_param {{ crop_size: 8 }} }}',
               tmp_path).next_batch()  # fmt: skip


def test_a_window_needs_more_than_its_surroundings(tmp_path: Path) -> None:
    layer = WINDOWS % "context_pad: 4"
    with pytest.raises(ModelError, match="context_pad 4 leaves nothing of crop_size 8"):
        opened(f'layer {{ type: "WindowData" top: "x" {layer} transform_param {{ crop_size: 8 }} }}', tmp_path)


def test_a_batch_larger_than_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    need("lmdb")
    write_lmdb(tmp_path / "u8.lmdb", [datum(np.zeros((3, 8, 9), np.uint8), 0)])
    text = prototxt("lmdb").replace("mean_value: 7", "")
    with pytest.raises(BridgeError, match=r"needs .* of memory"):
        opened(text.replace("batch_size: 3", "batch_size: 2000000000"), tmp_path).next_batch()


@pytest.mark.parametrize("where", ["iter", "current_step", "history/0"])
def test_an_hdf5_solver_state_asks_for_no_more_than_it_holds(where: str, tmp_path: Path) -> None:
    need("h5py")
    import h5py

    path = tmp_path / "s.solverstate.h5"
    with h5py.File(path, "w") as file:
        for name in ("iter", "current_step", "history/0"):
            shape = (1 << 40,) if name == where else (1,)
            file.create_dataset(name, shape, "i4" if "/" not in name else "f4", chunks=(1,))
            file[name][0] = 1
    with pytest.raises(FormatError, match=rf"/{where}: \d+ bytes, of which the file has"):
        read_solver_state(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", "expected a whole number"), ("link", "which is not followed"), ("gap", "numbered from 0"),
        ("group", "expected a data set of numbers"), ("name", "is no text"),
    ],
)  # fmt: skip
def test_what_is_no_solver_state_in_hdf5(change: str, message: str, tmp_path: Path) -> None:
    need("h5py")
    import h5py

    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["current_step"] = [0]
        file["iter"] = [1.5] if change == "text" else [1]
        file["learned_net"] = [1, 2] if change == "name" else "net"
        if change == "link":
            file["history/0"] = h5py.ExternalLink("other.h5", "x")
        elif change == "group":
            file.create_group("history/0")
        else:
            file["history/1" if change == "gap" else "history/0"] = np.ones(3, np.float32)
    with pytest.raises(FormatError, match=message):
        read_solver_state(tmp_path / "s.h5")


@pytest.mark.parametrize(("key", "value"), [("offset", "-64"), ("offset", "99999999"), ("length", "-2")])
def test_external_data_that_begin_or_end_outside_their_file(key: str, value: str, tmp_path: Path) -> None:
    need("onnx")
    import onnx

    net = make("""
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
    layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 4000 } }
    """)
    path = tmp_path / "e.onnx"
    bridge.export_onnx(net, path, check=False, external_data="file")
    model = onnx.load(str(path), load_external_data=False)
    entries = next(tensor.external_data for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in entries if entry.key == key).value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match=r"its external data begin at byte -?\d+ of e.onnx.data, which has"):
        bridge.load(path)
