"""The door that Chainer had: CaffeFunction, against Caffe's recorded numbers and Chainer's own class."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.errors import MissingFileError, NotFoundError
from tests.conftest import FIXTURES, GOLDEN, ROOT, need
from tests.nets import make

need_chainer = pytest.mark.usefixtures("_chainer")
GOLD = FIXTURES / "golden"

NET = """
input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 6 }
layer { name: "conv/1" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.5 } }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up" convolution_param { num_output: 2 kernel_size: 2 stride: 2 bias_term: false } }
layer { name: "fc" type: "InnerProduct" bottom: "up" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""  # noqa: E501
X = np.random.default_rng(5).standard_normal((2, 4, 6, 6)).astype(np.float32)


@pytest.fixture
def _chainer() -> None:
    need("chainer")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bridge.save(make(NET), tmp_path / "net.caffemodel")
    return tmp_path / "net.caffemodel"


def function(path: Path):
    from bridge.chain import CaffeFunction

    return CaffeFunction(path)


@need_chainer
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_computes_what_caffe_recorded(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        func = function(folder / "weights.caffemodel")
    assert len(caught) == len(func.skipped) + len(bridge.load(folder / "weights.caffemodel").notes)
    with np.load(folder / "io.npz") as io:
        values = dict(io)
    inputs = {name[3:]: value for name, value in values.items() if name.startswith("in:")}
    for name, wanted in values.items():
        if not name.startswith("out:"):
            continue
        if func.skipped:
            with pytest.raises(NotFoundError, match=r"neither given nor computed\n  hint: layer 'l' was skipped"):
                func(inputs=inputs, outputs=[name[4:]], train=False)
            continue
        (y,) = func(inputs=inputs, outputs=[name[4:]], train=False)
        np.testing.assert_allclose(y.array, wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted, dtype=float).max(initial=0))


@need_chainer
def test_children_are_chainers_own_links_and_groups_stay_groups(path: Path) -> None:
    from bridge.chain.functions import chainer

    func, L = function(path), chainer.links
    classes = {name: type(func[name]) for name in ("conv/1", "bn", "scale", "up", "fc")}
    assert classes == {"conv/1": L.Convolution2D, "bn": L.BatchNormalization, "scale": L.Scale,
                       "up": L.Deconvolution2D, "fc": L.Linear}  # fmt: skip
    assert (func["conv/1"].W.shape, func["conv/1"].groups) == ((6, 2, 3, 3), 2)
    assert func.fc.W.shape == (5, 2 * 8 * 8)
    assert func.scale.bias.b.shape == (6,)
    assert [name for name, _, _ in func.layers] == list(func.forwards)


@need_chainer
def test_each_link_alone_gives_the_layers_numbers(path: Path) -> None:
    """What Chainer's users do with a child: call it."""
    from bridge.chain.functions import chainer

    func = function(path)
    with chainer.using_config("train", False):
        h = func["conv/1"](X)
        for name in ("bn", "scale"):
            h = func[name](h)
        (prob,) = func(inputs={"data": X}, outputs=["prob"])
        alone = chainer.functions.softmax(func.fc(func.up(chainer.functions.relu(h))))
    np.testing.assert_allclose(alone.array, prob.array, rtol=1e-5, atol=1e-6)


@need_chainer
def test_a_link_put_in_the_place_of_another_is_used(path: Path) -> None:
    from bridge.chain.functions import chainer

    func = function(path)
    del func.fc
    with func.init_scope():
        func.fc = chainer.links.Linear(128, 3)
    (y,) = func(inputs={"data": X}, outputs=["fc"], train=False)
    assert y.shape == (2, 3)


@need_chainer
def test_disable_passes_a_layer_over_and_train_drops(path: Path) -> None:
    func = function(path)
    (dropped,) = func(inputs={"data": X}, outputs=["conv"], train=True)
    (kept,) = func(inputs={"data": X}, outputs=["conv"], train=True, disable=["drop"])
    (test,) = func(inputs={"data": X}, outputs=["conv"], train=False)
    (plain,) = func(inputs={"data": X}, outputs=["conv"], train=False, disable=["drop"])
    assert np.count_nonzero(dropped.array) < np.count_nonzero(kept.array)
    np.testing.assert_array_equal(test.array, plain.array)
    with pytest.raises(NotFoundError, match=r"no layer 'drpo'\n  hint: did you mean 'drop'"):
        func(inputs={"data": X}, outputs=["conv"], disable=["drpo"])


@need_chainer
def test_starts_at_any_blob_and_names_what_is_missing(path: Path) -> None:
    func = function(path)
    features = np.ones((1, 2, 8, 8), np.float32)
    (y,) = func(inputs={"up": features}, outputs=["prob"], train=False)
    assert y.shape == (1, 5)
    with pytest.raises(NotFoundError, match="blob 'conv' was neither given nor computed"):
        func(inputs={"up": features}, outputs=["conv"])


@need_chainer
def test_writing_an_array_changes_the_result_and_not_the_file(path: Path) -> None:
    before = path.read_bytes()
    func = function(path)
    func.fc.W.array[...] = 0
    func.fc.b.data[...] = [1, 2, 3, 4, 5]
    (y,) = func(inputs={"data": X}, outputs=["fc"], train=False)
    np.testing.assert_array_equal(y.array, [[1, 2, 3, 4, 5]] * 2)
    del func
    assert path.read_bytes() == before


@need_chainer
def test_gradients_reach_every_parameter_and_a_copy_has_its_own(path: Path) -> None:
    from bridge.chain.functions import chainer

    func = function(path)
    twin = func.copy(mode="copy")
    twin.fc.W.array[...] = 0
    twin.fc.b.array[...] = 7
    optimizer = chainer.optimizers.SGD(0.1).setup(func)
    (y,) = twin(inputs={"data": X}, outputs=["fc"], train=False)
    np.testing.assert_array_equal(y.array, np.full((2, 5), 7, np.float32))
    func.cleargrads()
    (y,) = func(inputs={"data": X}, outputs=["prob"], train=False)
    chainer.functions.sum(y[:, 0]).backward()
    assert all(np.abs(param.grad).max() > 0 for param in func.params())
    old = func.fc.W.array.copy()
    optimizer.update()
    assert np.abs(func.fc.W.array - old).max() > 0


@need_chainer
def test_arrays_are_aligned_when_they_are_used(path: Path) -> None:
    func = function(path)
    assert all(param.array.flags.aligned and param.array.flags.writeable for param in func.params())


@need_chainer
def test_splits_are_passed_through_unless_something_is_written_between(tmp_path: Path) -> None:
    text = """
    input: "x" input_shape { dim: 1 dim: 3 }
    layer { name: "s" type: "Split" bottom: "x" top: "a" top: "b" }
    layer { name: "p" type: "Power" bottom: "a" top: "a" power_param { scale: 2 } }
    layer { name: "q" type: "Power" bottom: "b" top: "y" power_param { scale: 10 } }
    layer { name: "r" type: "Eltwise" bottom: "a" bottom: "y" top: "z" }
    """
    bridge.save(make(text), tmp_path / "split.caffemodel")
    with pytest.warns(UserWarning, match="in Caffe layer 'p' .Power. wrote over it"):
        func = function(tmp_path / "split.caffemodel")
    assert func.split_map == {}
    (z, b) = func(inputs={"x": np.ones((1, 3), np.float32)}, outputs=["z", "b"])
    np.testing.assert_array_equal(z.array, np.full((1, 3), 12, np.float32))
    plain = text.replace('top: "a" power_param', 'top: "c" power_param')
    bridge.save(make(plain), tmp_path / "plain.caffemodel")
    func = function(tmp_path / "plain.caffemodel")
    assert func.split_map == {"a": "x", "b": "x"}
    (z, b) = func(inputs={"x": np.ones((1, 3), np.float32)}, outputs=["z", "b"])
    np.testing.assert_array_equal(z.array, np.full((1, 3), 11, np.float32))
    np.testing.assert_array_equal(b.array, np.ones((1, 3), np.float32))


@need_chainer
def test_a_blob_that_a_skipped_layer_changes_in_place_is_not_computed(tmp_path: Path) -> None:
    text = """
    input: "x" input_shape { dim: 1 dim: 3 }
    layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }
    layer { name: "odd" type: "MyOwn" bottom: "y" top: "y" }
    """
    from bridge.caffe_files.assemble import assemble
    from bridge.caffe_files.prototxt import parse

    bridge.save(assemble(None, parse(text)), tmp_path / "net.caffemodel")
    with pytest.warns(UserWarning, match='Skip the layer "odd".*unknown layer type'):
        func = function(tmp_path / "net.caffemodel")
    with pytest.raises(NotFoundError, match="layer 'odd' was skipped"):
        func(inputs={"x": np.ones((1, 3), np.float32)}, outputs=["y"])
    (y,) = func(inputs={"x": np.ones((1, 3), np.float32)}, outputs=["y"], disable=["odd"])
    np.testing.assert_array_equal(y.array, np.full((1, 3), 2, np.float32))


@need_chainer
def test_layers_named_like_an_attribute_or_like_each_other_are_reached(tmp_path: Path) -> None:
    fc = 'layer {{ name: "{}" type: "InnerProduct" bottom: "{}" top: "{}" inner_product_param {{ num_output: 3 }} }}'
    text = 'input: "x" input_shape { dim: 1 dim: 3 }' + fc.format("params", "x", "y") + fc.format("params", "y", "z")
    net = make(text)
    bridge.save(net, tmp_path / "net.caffemodel")
    func = function(tmp_path / "net.caffemodel")
    (z,) = func(inputs={"x": np.ones((1, 3), np.float32)}, outputs=["z"])
    first, second = (func[name] for name in ("params", "params%~2"))
    y = np.ones((1, 3), np.float32) @ first.W.array.T + first.b.array
    np.testing.assert_allclose(z.array, y @ second.W.array.T + second.b.array, rtol=1e-6)


@need_chainer
def test_a_missing_file_and_weights_without_a_net_are_one_line(tmp_path: Path, path: Path) -> None:
    with pytest.raises(MissingFileError, match="absent"):
        function(tmp_path / "absent.caffemodel")
    np.savez(tmp_path / "arrays.npz", **{"fc/W": np.ones((5, 3), np.float32)})
    with pytest.raises(bridge.BridgeError, match=r"arrays\.npz: .*\n  hint: "):
        function(tmp_path / "arrays.npz")


def python(code: str, cwd: Path) -> str:
    prologue = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport bridge.compat\n"
    done = subprocess.run([sys.executable, "-c", prologue + code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@need_chainer
@pytest.mark.parametrize("early", [True, False], ids=["before the import", "after the import"])
def test_chainers_own_name_stands_for_it_on_request(path: Path, early: bool) -> None:
    imports = "import chainer\nfrom chainer.links.caffe import CaffeFunction\n"
    install = "bridge.compat.install(caffe_function=True)\n"
    code = (
        "bridge.compat.install()\n"
        + (install if early else imports)
        + (imports if early else install)
        + f"""
from chainer.links.caffe import CaffeFunction
from chainer.links.caffe.caffe_function import CaffeFunction as same
assert CaffeFunction is same
print(CaffeFunction.__module__, CaffeFunction({str(path)!r}).fc.W.shape)
from chainer.links.caffe.caffe_function import ChainersCaffeFunction
print(ChainersCaffeFunction.__module__)
import bridge
print(bridge.load({str(path)!r}, reader="caffefunction").reader)
"""
    )
    lines = python(code, path.parent).splitlines()
    assert lines == ["bridge.chain.caffe_function (5, 128)", "chainer.links.caffe.caffe_function", "caffefunction"]


@need_chainer
def test_without_the_request_chainers_own_stays(path: Path) -> None:
    code = "bridge.compat.install()\nfrom chainer.links.caffe import CaffeFunction\nprint(CaffeFunction.__module__)"
    assert python(code, path.parent) == "chainer.links.caffe.caffe_function\n"


@need_chainer
def test_children_processes_have_the_request_too(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(f"""
import sys
if __name__ == "__main__":
    sys.path.insert(0, {str(ROOT)!r})
    import bridge.compat
    bridge.compat.install(caffe_function=True)
import multiprocessing
from chainer.links.caffe import CaffeFunction

def work():
    print(CaffeFunction.__module__, flush=True)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
""")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "bridge.chain.caffe_function\n", done.stderr


@need_chainer
def test_chainers_own_gives_the_same_where_it_can(tmp_path: Path) -> None:
    text = """
    input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
    layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
    layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: "f1" type: "InnerProduct" bottom: "p1" top: "f1" inner_product_param { num_output: 5 } }
    """
    bridge.save(make(text), tmp_path / "net.caffemodel")
    from bridge import compat

    compat.import_chainer()
    from chainer.links.caffe import caffe_function

    own = getattr(caffe_function, "ChainersCaffeFunction", caffe_function.CaffeFunction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it skips the Input
        theirs = own(str(tmp_path / "net.caffemodel"))
    ours = function(tmp_path / "net.caffemodel")
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for a, b in zip(
        ours(inputs={"data": x}, outputs=["c1", "p1", "f1"]),
        theirs(inputs={"data": x}, outputs=["c1", "p1", "f1"]),
        strict=True,
    ):
        np.testing.assert_allclose(a.array, b.array, rtol=1e-5, atol=1e-6)
    assert ours.layers == theirs.layers
    assert sorted(name for name, _ in ours.namedparams()) == sorted(name for name, _ in theirs.namedparams())
