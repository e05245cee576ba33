"""Nothing that is read is written over, nothing changes unnoticed, and every byte comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files.prototxt import parse
from bridge.errors import ChangedError, UsageError
from bridge.files.atomic import refuse_sources
from bridge.schema import Blob, Blobs, Net
from bridge.schema.message import Message
from tests import encode
from tests.conftest import need
from tests.processes import DEPLOY, GOLDEN, ROOT, WEIGHTS, run

# -- outputs ---------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        "convert {p} {w} -o {w}",
        "convert {p} {w} -o {p} --format npz",
        "convert {p} {w} -o {hard}",
        "convert {p} {w} -o {soft}",
        "convert {onnx} -o {onnx}.data --format npz",
        "export {p} {w} -o {w} --no-check",
        "export {p} {w} -o {io} --recorded {io} --no-check",
        "export {p} {w} -o {mean} --mean {mean} --no-check",
        "export {p} {w} -o {folder}/x --mean {folder}/x.data --external-data --no-check",
        "verify {p} {w} --json {w}",
        "verify {p} {w} --against {onnx} --html {onnx}.data --engines none",
        "verify {p} {w} --html {folder}/f --json {folder}/f",
        "verify {p} {w} --html {folder}/f --json {folder}/../{name}/f",
        "verify {p} {w} --recorded {io} --save-inputs {io} --engines none",
    ],
)
def test_no_output_is_an_input_or_another_output(arguments: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    if "--recorded" in arguments:
        need("onnxruntime")
    prototxt, weights = model
    os.link(weights, tmp_path / "hard.npz")
    os.symlink(weights, tmp_path / "soft.npz")
    bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    (tmp_path / "io.npz").write_bytes((GOLDEN / "io.npz").read_bytes())
    for name in ("mean.binaryproto", "x.data"):
        (tmp_path / name).write_bytes(encode.blob(np.zeros((1, 3, 1, 1)), "packed"))
    before = snapshot(tmp_path)
    found = run(
        *arguments.format(
            p=prototxt, w=weights, hard=tmp_path / "hard.npz", soft=tmp_path / "soft.npz", onnx=tmp_path / "e.onnx",
            io=tmp_path / "io.npz", mean=tmp_path / "mean.binaryproto", folder=tmp_path, name=tmp_path.name,
        ).split()
    )  # fmt: skip
    assert found.returncode == 2, found
    assert b"would be written over" in found.stderr or b"is named for two outputs" in found.stderr
    assert snapshot(tmp_path) == before


def test_a_library_call_writes_over_no_other_part_of_a_model(model: tuple[Path, Path], tmp_path: Path) -> None:
    bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    with pytest.raises(UsageError, match="would be written over"):
        bridge.save(bridge.load(*model), model[0], "npz")
    with pytest.raises(UsageError, match="would be written over"):
        bridge.save(bridge.load(tmp_path / "e.onnx"), tmp_path / "e.onnx.data", "npz")


def test_targets_that_do_not_exist_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    refuse_sources([tmp_path / "gone"], [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="two outputs"):
        refuse_sources([], [tmp_path / "a", tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize("replaced", [0, 1, 2, 3])
def test_a_model_has_its_own_data_beside_it_at_every_moment(
    replaced: int, model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    import onnxruntime

    net = bridge.load(*model)
    other = Net(net.name, tuple(_doubled(layer) for layer in net.layers), net.definition, sources=net.sources)
    target = tmp_path / "e.onnx"
    bridge.export_onnx(net, target, external_data="file", check=False)
    inputs = {name: np.ones(shape, np.float32) for name, shape in net.inputs.items() if shape}

    def outputs() -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        return list(session.run(None, inputs))

    old = outputs()
    rename, calls = os.replace, iter(range(100))

    def killed(*paths: Any) -> None:
        if next(calls) == replaced:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        bridge.export_onnx(other, target, external_data="file", check=False)
    monkeypatch.undo()
    found = outputs()
    bridge.export_onnx(other, target, external_data="file", check=False)
    new = outputs()
    assert not np.array_equal(old[0], new[0])
    assert np.array_equal(found[0], old[0] if replaced < 2 else new[0])
    assert {"e.onnx", "e.onnx.data"} <= {path.name for path in tmp_path.iterdir()}


def test_an_interrupt_behind_the_model_leaves_its_data(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    import onnxruntime

    rename, calls = os.replace, iter(range(100))

    def interrupted(*paths: Any) -> None:
        rename(*paths)
        if next(calls) == 1:  # the data have their name, and now the model
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    onnxruntime.InferenceSession(str(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])


def _doubled(layer: Any) -> Any:
    import dataclasses

    blobs = {role: Blob.of(blob.numpy() * 2) for role, blob in layer.blobs.entries()}
    return dataclasses.replace(layer, blobs=Blobs(blobs))


def test_an_export_in_place_of_another_leaves_two_files(model: tuple[Path, Path], tmp_path: Path) -> None:
    for _ in range(2):
        bridge.export_onnx(bridge.load(*model), tmp_path / "e.onnx", external_data="file", check=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"e.onnx", "e.onnx.data", "net.prototxt", "net.caffemodel"}
    assert bridge.load(tmp_path / "e.onnx").layers


# -- standard streams ------------------------------------------------------------------------------

COMMANDS = ["--help", "info {w}", "info {w} --json", "verify {w} --engines none", "verify --list-checks", "doctor",
            "convert {w} -o {folder}/o.npz"]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_pipe_is_no_difference(command: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = run(*command.format(w=WEIGHTS, folder=tmp_path).split(), stdout=writing)
    os.close(writing)
    assert found.returncode in (0, 141)
    assert b"Traceback" not in found.stderr
    assert b"Exception" not in found.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("command", "status"), [("info {w}", 0), ("info gone", 2), ("convert {w} -o {folder}/o.npz", 0)]
)
def test_closed_streams(closed: tuple[int, ...], command: str, status: int, tmp_path: Path) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    found = run(*command.format(w=WEIGHTS, folder=tmp_path).split(), preexec_fn=close)
    assert found.returncode == status
    if command.startswith("convert"):
        assert bridge.load(tmp_path / "o.npz").layers


@pytest.mark.parametrize("unbuffered", ["", "1"])  # each write fails, or only the last one
def test_a_full_device_is_one_line(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        found = run("info", WEIGHTS, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert found.returncode == 2
    assert found.stderr.count(b"\n") == 1
    assert b"No space left" in found.stderr


# -- sources that change ---------------------------------------------------------------------------


def containers(tmp_path: Path) -> dict[str, Path]:
    net = bridge.load(DEPLOY, WEIGHTS)
    found = {}
    for suffix in (".caffemodel", ".npz", ".safetensors"):
        found[suffix] = tmp_path / f"a{suffix}"
        bridge.save(net, found[suffix])
    return found


@pytest.mark.parametrize("suffix", [".caffemodel", ".npz", ".safetensors"])
@pytest.mark.parametrize("change", ["cut", "written"])
def test_a_source_that_changed_is_noticed(suffix: str, change: str, tmp_path: Path) -> None:
    path = containers(tmp_path)[suffix]
    net = bridge.load(path)
    if change == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = path.read_bytes()
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError, match=r"when it was opened|since it was opened"):
        [array.sum() for layer in net for array in layer.blobs.values()]


def test_hdf5_that_was_written_over_is_noticed(tmp_path: Path) -> None:
    need("h5py")
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data/a/0", data=np.zeros((4, 4), "f4"), chunks=(2, 2), compression=1)
    net = bridge.load(path)
    path.write_bytes(WEIGHTS.read_bytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        net["a"].blobs["blob0"].sum()


def test_a_source_that_was_replaced_lives_on(tmp_path: Path) -> None:
    path = containers(tmp_path)[".caffemodel"]
    net, same = bridge.load(path), bridge.load(WEIGHTS)
    path.unlink()
    path.write_bytes(b"another file")
    for layer, other in zip(net, same, strict=True):
        for role, array in layer.blobs.items():
            assert np.array_equal(array, other.blobs[role])
    bridge.save(net, tmp_path / "b.npz")


def test_a_source_that_changes_while_it_is_written_leaves_the_target(tmp_path: Path) -> None:
    path = containers(tmp_path)[".caffemodel"]
    (tmp_path / "b.npz").write_bytes(b"old")
    net = bridge.load(path)
    [array.sum() for layer in net for array in layer.blobs.values()]
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        bridge.save(net, tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == b"old"


@pytest.mark.parametrize("option", ["source", "digest"])
def test_a_source_that_was_replaced_is_not_referred_to(option: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    net = bridge.load(*model)
    model[1].unlink()
    model[1].write_bytes(WEIGHTS.read_bytes()[::-1])
    given: dict[str, Any] = {"external_data": "source"} if option == "source" else {"digest": True}
    with pytest.raises(ChangedError, match="was replaced by another file"):
        bridge.export_onnx(net, tmp_path / "e.onnx", check=False, **given)
    assert not (tmp_path / "e.onnx").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no SIGBUS")
def test_a_mapped_file_that_is_cut_short_ends_in_one_line(tmp_path: Path) -> None:
    values = np.ones((500, 1000))
    layer = parse('name: "l" type: "InnerProduct"')
    (tmp_path / "a.caffemodel").write_bytes(encode.net([(layer, [encode.blob(values, "packed")])], "V2", Message()))
    code = (
        "import os, sys, bridge; from bridge.cli import streams; streams.prepare()\n"
        "arrays = [a for layer in bridge.load(sys.argv[1]) for a in layer.blobs.values()]\n"
        "os.truncate(sys.argv[1], 100); print(sum(a.sum() for a in arrays))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.caffemodel")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert (found.returncode, found.stdout) == (2, b"")
    first, second = found.stderr.decode().splitlines()
    assert first.endswith(f"a.caffemodel: has 100 bytes, and had {2_000_000 + 26} when it was opened") or "had" in first
    assert second.startswith("  hint: ")
