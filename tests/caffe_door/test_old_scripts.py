"""What old scripts rely on beside pycaffe's own interface: names of forks, of old versions, and of old NumPy."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from bridge import caffe
from bridge.errors import MissingExtraError, ModelError, UsageError
from tests.caffe_door.nets import SMALL, TRAINED, close, feed, make, plain, write
from tests.caffe_door.test_running import run
from tests.conftest import need

LAYERS = """
import caffe

class Told(caffe.Layer):
    def setup(self, bottom, top):
        self.old, self.text = self.param_str_, str(self.phase)
    def reshape(self, bottom, top):
        top[0].reshape(1)
    def forward(self, bottom, top):
        if self.old == "wrong":
            raise ValueError("wrong, as asked for")
        top[0].data[...] = self.phase

def helper(definition):
    return None
"""


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with layers; ``import caffe`` in it means this package."""
    (tmp_path / "told_layers.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    return "told_layers"


def python_net(folder: Path, module: str, name: str = "Told", text: str = "3") -> Any:
    param = f'python_param {{ module: "{module}" layer: "{name}" param_str: "{text}" }}'
    return make(folder, f'layer {{ name: "told" type: "Python" top: "told" {param} }}')


def test_names_in_layers_of_faster_rcnn(tmp_path: Path, layers: str) -> None:
    net = python_net(tmp_path, layers)
    told: Any = net.layers[0]
    assert (told.old, told.text, told.phase) == ("3", "TEST", 1)
    assert net.forward()["told"] == [1]
    net.name = "vgg"
    assert net.name == "vgg"


def test_a_layer_that_raises_is_named(tmp_path: Path, layers: str) -> None:
    net = python_net(tmp_path, layers, text="wrong")
    with pytest.raises(ValueError, match="wrong, as asked for") as caught:
        net.forward()
    if sys.version_info >= (3, 11):
        assert "in forward of layer 'told' (Python), Told" in "".join(traceback.format_exception(caught.value))
    net.layers[0].old = "right"
    assert net.forward()["told"] == [1]
    with pytest.raises(ModelError, match=r"layer 'told' \(Python\): 'told_layers.helper' is no layer"):
        python_net(tmp_path, layers, "helper")


def test_modules_that_a_fork_adds(tmp_path: Path) -> None:
    """SSD's caffe.model_libs, from the folder that the script itself puts on the path."""
    fork = tmp_path / "ssd" / "python" / "caffe"
    (fork / "custom").mkdir(parents=True)
    (fork / "__init__.py").write_text("raise ImportError('the real Caffe')")
    (fork / "io.py").write_text("raise ImportError('the real Caffe')")
    (fork / "model_libs.py").write_text(
        "from caffe import layers as L\nfrom caffe.proto import caffe_pb2\nanswer = 42\n"
    )
    (fork / "custom" / "__init__.py").write_text("")
    (fork / "custom" / "deep.py").write_text("depth = 2\n")
    (tmp_path / "script.py").write_text(
        "import sys\nsys.path.insert(0, 'ssd/python')\nfrom caffe.model_libs import *\nimport caffe.io\n"
        "from caffe.custom.deep import depth\nprint(answer, depth, L is caffe.layers)\n"
        "try:\n    import caffe.nothing\nexcept ImportError as error:\n    print(error)\n"
    )
    done = run("-m", "bridge.caffe", "script.py", folder=tmp_path)
    assert done.stdout == "42 2 True\nNo module named 'caffe.nothing'\n", done.stderr


def test_a_copy_of_the_messages_that_protobuf_refuses(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("")
    old = "# NetParameter\n_x = _descriptor.FileDescriptor(package='caffe')\n_y = _descriptor.FieldDescriptor()\n"
    (tmp_path / "lib" / "caffe_pb2.py").write_text(old)
    (tmp_path / "lib" / "other_pb2.py").write_text("mine = True\n")
    (tmp_path / "script.py").write_text(
        "from lib import caffe_pb2, other_pb2\nimport caffe\n"
        "print(caffe_pb2 is caffe.proto.caffe_pb2, other_pb2.mine, caffe_pb2.NetParameter().name == '')\n"
    )
    done = run("-m", "bridge.caffe", "script.py", folder=tmp_path)
    assert done.stdout == "True True True\n", done.stderr


def test_names_that_numpy_took_away(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import numpy as np\nprint(np.zeros(2, np.float).dtype, np.int(3.7), np.object is object, np.bool(1))\n"
    )
    done = run("-m", "bridge.caffe", "script.py", folder=tmp_path)
    assert done.stdout == "float64 3 True True\n", done.stderr


def test_a_solver_alone_needs_no_nccl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TRAINED)
    solver = caffe.get_solver(
        write(tmp_path, 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2', "solver.prototxt")
    )
    nccl = caffe.NCCL(solver, caffe.NCCL.new_uid())
    nccl.bcast()
    seen: list[str] = []
    solver.add_callback(nccl)
    solver.add_callback(lambda: seen.append("start"), lambda: seen.append("ready"))
    solver.net.after_backward(nccl)
    solver.step(2)
    assert (solver.iter, seen) == (2, ["start", "ready"] * 2)
    caffe.set_solver_count(2)
    try:
        with pytest.raises(MissingExtraError, match="NCCL is not available for 2 solvers"):
            caffe.NCCL(solver, b"")
    finally:
        caffe.set_solver_count(1)


def test_a_parameter_of_another_shape(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    blob = net.params["conv"][0]
    before = plain(net, x)
    blob.reshape(4, 3, 5, 5)
    with pytest.raises(ModelError, match=r"layer 'conv' \(Convolution\): blob 'weight' has 300 values"):
        net.forward()
    close(net.blobs["conv"].data, before["conv"])  # still what the last whole pass gave
    blob.reshape(4, 3, 3, 3)
    blob.data[...] = 0.1
    close(net.forward()["prob"], plain(net, x)["prob"])


def test_share_with_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected another caffe\.Net"):
        make(tmp_path, SMALL).share_with("net.caffemodel")


def test_what_ssds_scripts_do_with_a_spec(tmp_path: Path) -> None:
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": [1, 3, 8, 8]})
    n.conv = caffe.layers.Convolution(n.data, num_output=2, kernel_size=[3.0], pad=[(3 - 1) / 2])  # Python 3's division
    n.pool = caffe.layers.Pooling(n.conv, kernel_size=4 / 2, stride=2)
    n.update("conv", {"num_output": 5})
    n.extra = caffe.layers.ReLU(n.pool)
    assert (n.keys(), n.vals()[1]) == (["data", "conv", "pool", "extra"], n.conv)
    del n["extra"]
    proto = n.to_proto()
    param = proto.layer[1].convolution_param
    assert ([layer.name for layer in proto.layer], param.num_output, list(param.pad)) == (
        ["data", "conv", "pool"],
        5,
        [1],
    )
    assert make(tmp_path, str(proto)).blobs["pool"].data.shape == (1, 5, 4, 4)
    with pytest.raises(TypeError):
        caffe.layers.Pooling(n.conv, kernel_size=2.5).to_proto()


def test_a_script_of_python_2_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import caffe\nprint 'a'\n")
    done = run("-m", "bridge.caffe", "script.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("error: script.py: line 2: Missing parentheses in call to 'print'")
    assert "fissix -w" in hint
