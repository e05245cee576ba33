"""``import caffe`` that means bridge.caffe, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.caffe_door.nets import SMALL, write
from tests.conftest import ROOT, need

SCRIPT = """
import sys
import caffe
import caffe.io, caffe.draw, caffe.proto.caffe_pb2
from caffe import layers as L, params as P, to_proto
from caffe.proto import caffe_pb2
from caffe.coord_map import crop
from helper import double
import bridge.caffe.io
assert caffe.io is bridge.caffe.io and caffe.io.__spec__.name == "bridge.caffe.io"
assert caffe is bridge.caffe and caffe_pb2 is caffe.proto.caffe_pb2
assert __name__ == "__main__" and sys.argv[0] == __file__
net = caffe.Net(sys.argv[1], caffe.TEST)
print(double(len(net.layers)), sys.argv[2:])
"""


def run(*arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Python with some arguments, in a folder."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def test_a_script(tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "helper.py").write_text("def double(n):\n    return 2 * n\n")
    (folder / "script.py").write_text(SCRIPT)
    net = write(tmp_path, SMALL)
    done = run("-m", "bridge.caffe", "scripts/script.py", net, "--more", "5", folder=tmp_path)
    assert done.stderr == ""
    assert done.stdout == "12 ['--more', '5']\n"


def test_install_from_code(tmp_path: Path) -> None:
    code = "import bridge.caffe as b; b.install(); import caffe.net_spec; print(caffe.net_spec.layers is b.layers)"
    assert run("-c", code, folder=tmp_path).stdout == "True\n"


def test_another_caffe_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "caffe.py").write_text("")
    done = run("-c", "import caffe, bridge.caffe; bridge.caffe.install()", folder=tmp_path)
    assert "another caffe was imported before" in done.stderr


def test_the_script_exits_as_it_wants(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; sys.exit(7)")
    assert run("-m", "bridge.caffe", "script.py", folder=tmp_path).returncode == 7


def test_a_missing_script(tmp_path: Path) -> None:
    done = run("-m", "bridge.caffe", "nothing.py", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: nothing.py: does not exist, expected a script in Python\n"


def test_an_error_in_the_script_shows_where(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import caffe\ncaffe.Net('nothing.prototxt', caffe.TEST)\n")
    done = run("-m", "bridge.caffe", "script.py", folder=tmp_path)
    assert done.returncode == 1
    assert 'script.py", line 2' in done.stderr
    assert done.stderr.endswith("MissingFileError: nothing.prototxt: does not exist\n")


def test_cpu_whatever_the_script_says(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import caffe\ncaffe.set_device(0)\ncaffe.set_mode_gpu()\nprint('went on')\n")
    done = run("-m", "bridge.caffe", "--cpu", "script.py", folder=tmp_path)
    assert done.stdout == "went on\n"
    assert done.stderr.count("has no effect, as --cpu was given") == 2


@pytest.mark.parametrize("blocked", ["chainer", "onnxruntime", "skimage", "scipy", "PIL", "h5py", "onnx"])
def test_it_imports_without(tmp_path: Path, blocked: str) -> None:
    code = f"""
import sys
sys.modules[{blocked!r}] = None
from bridge import caffe
net = caffe.Net({write(tmp_path, SMALL)!r}, caffe.TEST)
net.save("net.caffemodel"); net.copy_from("net.caffemodel")
from bridge.caffe import classifier, coord_map, detector, draw, io
heavy = ("chainer", "onnxruntime", "skimage", "scipy", "PIL", "h5py", "onnx", "pydot")
print([name for name in heavy if sys.modules.get(name)])
"""
    done = run("-c", code, folder=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_is_there() -> None:
    from bridge import caffe

    for name in sorted(
        set(caffe.__all__) - {name for name in caffe.__all__ if name.endswith("Solver")} - {"get_solver"}
    ):
        assert getattr(caffe, name) is not None
    assert caffe.layer_type_list() == sorted(caffe.layer_type_list())
    assert {"Python", "Convolution", "SoftmaxWithLoss"} <= set(caffe.layer_type_list())
    with pytest.raises(AttributeError, match="no attribute 'Nett'"):
        caffe.Nett  # noqa: B018


def test_importing_is_cheap(tmp_path: Path) -> None:
    code = "import sys, bridge.caffe as b; b.TEST; print(len({'onnx', 'google', 'bridge.layers'} & set(sys.modules)))"
    assert run("-c", code, folder=tmp_path).stdout == "0\n"


def test_timer() -> None:
    from bridge import caffe

    timer = caffe.Timer()
    timer.start()
    timer.stop()
    assert 0 <= timer.ms < 1000


def test_runs_with_onnxruntime_alone(tmp_path: Path) -> None:
    need("onnxruntime")
    code = f"""
import sys
sys.modules["chainer"] = None
from bridge import caffe
net = caffe.Net({write(tmp_path, SMALL)!r}, caffe.TEST)
print(net.forward()["prob"].shape, net.blobs["conv"].data.shape)
"""
    assert run("-c", code, folder=tmp_path).stdout == "(2, 5) (2, 4, 6, 6)\n"
