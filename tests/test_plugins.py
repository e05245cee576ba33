"""A user's own layer types: the example in the documentation, and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import MissingFileError, UnsupportedLayerError, UsageError
from bridge.layers import base
from bridge.layers.base import REGISTRY
from bridge.layers.plugins import load_plugin
from bridge.schema import Blob, Net, Opaque, RawLayer, RawNet
from bridge.testing import LayerContract
from tests.conftest import ROOT, need
from tests.example import blocks
from tests.processes import ends

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 dim: 3 dim: 4 } } }
layer { name: "norm" type: "GroupNorm" bottom: "x" top: "y" group_norm_param { group_num: 3 eps: 0.01 } }
"""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    known = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(known)


def example() -> str:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return str(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])


def contract() -> str:
    """The lines of the documentation that test the example."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return str(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1])


def written(folder: Path, text: str) -> Path:
    path = folder / "my_layers.py"
    path.write_text(text, encoding="utf-8")
    return path


def net() -> Net:
    rng = np.random.default_rng(0)
    blobs = tuple(Blob.of(rng.standard_normal(6).astype(np.float32)) for _ in range(2))
    definition = prototxt.parse(NET)
    return assemble(RawNet("n", (RawLayer("norm", "GroupNorm", definition.messages("layer")[1], blobs),)), definition)


def test_the_example_of_the_docs_is_short_and_computes_in_both_engines(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    assert example().count("\n") < 40
    assert isinstance(net().layers[1], Opaque)
    assert load_plugin(written(tmp_path, example())) == ["GroupNorm"]
    made = net()
    x = np.random.default_rng(1).standard_normal((2, 6, 3, 4)).astype(np.float32)
    groups = x.reshape(2, 3, -1)
    expected = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 0.01)
    gamma, beta = (made["norm"].blobs[role].reshape(-1, 1, 1) for role in ("gamma", "beta"))
    expected = expected.reshape(x.shape) * gamma + beta
    for engine in ("onnxruntime", "chainer"):
        np.testing.assert_allclose(engines.make(engine, made).outputs({"x": x})["y"], expected, 1e-4, 1e-5)


TESTS = [name for name in dir(LayerContract) if name.startswith("test_")]


def hold(text: str, folder: Path, test: str) -> None:
    """Run a test of the contract on a plug-in."""
    load_plugin(written(folder, text))
    names: dict[str, Any] = {"__name__": "test_my_layers"}
    exec(contract(), names)
    getattr(names["TestGroupNorm"](), test)()


def test_the_contract_is_inherited_in_three_lines() -> None:
    assert len([line for line in contract().splitlines() if line]) == 3


@pytest.mark.parametrize("test", TESTS)
def test_the_example_keeps_the_contract(test: str, tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    hold(example(), tmp_path, test)


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        ("link.beta, self.eps", "link.beta, self.eps + 0.01", "test_engines_agree_and_give_the_inferred_shapes"),
        ("return (bottoms[0],)", "return (bottoms[0][:2],)", "test_engines_agree_and_give_the_inferred_shapes"),
        ('return ("gamma", "beta")', 'return ("beta", "gamma")', "test_its_blobs_have_the_shapes_that_it_demands"),
        ("F.group_normalization(x[0]", "F.group_normalization(x[0] + id(x) % 7",
         "test_its_chain_keeps_nothing_between_two_inputs"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("first_failure")
def test_the_contract_finds_what_is_wrong(right: str, wrong: str, test: str, tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    assert example().count(right) == 1
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        hold(example().replace(right, wrong), tmp_path, test)


def test_a_file_is_run_once(tmp_path: Path) -> None:
    path = written(tmp_path, example())
    assert load_plugin(path) == ["GroupNorm"]
    assert load_plugin(path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = undefined\n", "line 2: NameError: name 'undefined' is not defined"),
        ("def f(:\n", "line 1: SyntaxError: "),
        ("import a_module_that_is_not_there\n", "line 1: ModuleNotFoundError: "),
        ("x = 1\n", "registers no layer type"),
        (example() + example(), "layer type 'GroupNorm' is defined twice"),
    ],
)
def test_a_file_that_fails_says_where_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    known = dict(REGISTRY)
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        load_plugin(path)
    assert str(error.value).startswith(f"plugin {path}: ")
    assert known == REGISTRY


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (", gamma), beta", ", gamma), betta", ", in to_onnx: NameError: name 'betta' is not defined"),
        ("return (bottoms[0],)", "return bottoms[0]", "its 'infer' gives (2, 6, 3, 4), expected a tuple with a shape"),
    ],
)
def test_a_fault_in_a_method_names_the_plugin_and_not_this_program(
    right: str, wrong: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert example().count(right) == 1
    bridge.save(net(), tmp_path / "net.npz")
    (tmp_path / "net.prototxt").write_text(NET)
    plugin = written(tmp_path, example().replace(right, wrong))
    files = (str(tmp_path / "net.prototxt"), str(tmp_path / "net.npz"))
    status, _, err = ends(capfd, "export", *files, "--plugin", str(plugin), "-o", str(tmp_path / "out.onnx"))
    assert status == 2
    assert message in err
    assert "a defect" not in err


def test_the_command_of_the_docs_exports_with_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime", "chainer")
    monkeypatch.chdir(tmp_path)
    bridge.save(net(), "net.npz")
    Path("model.caffemodel").write_bytes(Path("net.npz").read_bytes())  # a file is known by its content
    Path("deploy.prototxt").write_text(NET)
    written(tmp_path, example())
    (command,) = (block.text for block in blocks(ROOT / "docs" / "plugins.md") if block.language == "sh")
    status, out, err = ends(capfd, *command.split()[1:])
    assert status == 0, err
    assert out.startswith("model.onnx: 6 nodes")


def test_types_that_a_failing_file_registered_are_gone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        load_plugin(written(tmp_path, example() + "\n1 / 0\n"))
    assert "GroupNorm" not in REGISTRY


def test_a_plugin_may_replace_a_built_in_type_and_a_note_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, example().replace('"GroupNorm"', '"ReLU"'))
    known = dict(REGISTRY)
    with pytest.warns(UserWarning, match=r"layer type 'ReLU': .*GroupNorm replaces the built-in one"):
        assert load_plugin(path) == ["ReLU"]
    try:
        assert REGISTRY["ReLU"].__name__ == "GroupNorm"
        assert {name: kind for name, kind in REGISTRY.items() if name != "ReLU"} == {
            name: kind for name, kind in known.items() if name != "ReLU"
        }
    finally:
        REGISTRY.update(known)


def saved(folder: Path, shape: tuple[int, ...], layer: str, roles: int) -> tuple[Path, Path]:
    """A prototxt and weights of one layer of a plug-in on an input of the shape."""
    dims = " ".join(f"dim: {extent}" for extent in shape)
    text = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}\n{layer}\n'
    (folder / "net.prototxt").write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    blobs = tuple(Blob.of(rng.standard_normal(shape[1]).astype(np.float32)) for _ in range(roles))
    definition = prototxt.parse(text)
    own = definition.messages("layer")[1]
    raw = RawNet("n", (RawLayer(own.text("name"), own.text("type"), own, blobs),))
    bridge.save(assemble(raw, definition), folder / "net.npz")
    return folder / "net.prototxt", folder / "net.npz"


@pytest.mark.parametrize("shape", [(1, 64, 112, 112), pytest.param((1, 32, 224, 224), marks=pytest.mark.slow)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_groupnorm_of_the_docs_is_verified_and_exported_at_any_size(
    tmp_path: Path, shape: tuple[int, ...], groups: int
) -> None:
    need("onnxruntime", "chainer")
    load_plugin(written(tmp_path, example()))
    layer = (
        f'layer {{ name: "norm" type: "GroupNorm" bottom: "x" top: "y" group_norm_param {{ group_num: {groups} }} }}'
    )
    files = saved(tmp_path, shape, layer, 2)
    for seed in range(3):
        report = bridge.verify(*files, seed=seed)
        assert report.passed, str(report)
    bridge.export_onnx(bridge.load(*files), tmp_path / "net.onnx")


GELU = """
from typing import Any

import numpy as np

from bridge.layers import ElementwiseLayer, layer_type


@layer_type("GELU")
class GELU(ElementwiseLayer):
    def to_onnx(self, g: Any, *x: str) -> str:
        half, root = g.const(np.float32(0.5)), g.const(np.float32(0.5**0.5))
        return str(g.Mul(g.Mul(x[0], half), g.Add(g.Erf(g.Mul(x[0], root)), g.const(np.float32(1)))))

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return x[0] * 0.5 * (F.erf(x[0] * 0.5**0.5) + 1)
"""


def test_a_gelu_of_one_class_and_nothing_declared_raises_no_false_alarm(tmp_path: Path) -> None:
    need("onnxruntime", "chainer", "scipy")
    load_plugin(written(tmp_path, GELU))
    files = saved(tmp_path, (2, 8, 30, 30), 'layer { name: "gelu" type: "GELU" bottom: "x" top: "y" }', 0)
    for seed in range(10):
        for value_range in (None, (-8, 8), (-8, -4)):
            report = bridge.verify(*files, seed=seed, value_range=value_range)
            assert report.passed, str(report)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load_plugin(tmp_path / "absent.py")


class Point:
    """Stands for an installed package's entry point."""

    name, value = "GroupNorm", "my_package.layers:GroupNorm"

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> None:
        exec(self.path.read_text(encoding="utf-8"), {"__name__": "builtins"})


def test_a_package_offers_a_type_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point(written(tmp_path, example()))
    monkeypatch.setattr(base, "_entry_points", lambda: {point.name: point})
    assert not isinstance(net().layers[1], Opaque)


def test_a_package_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point(written(tmp_path, "1 / 0"))
    monkeypatch.setattr(base, "_entry_points", lambda: {point.name: point})
    with pytest.raises(UsageError, match=r"'GroupNorm' from my_package\.layers:GroupNorm: ZeroDivisionError"):
        net()


def test_what_onnx_cannot_say_is_a_custom_node_only_when_allowed(tmp_path: Path) -> None:
    import onnx

    from bridge.exporting import export_onnx

    lowering = re.search(r"    def to_onnx.*?\n\n", example(), re.DOTALL)
    assert lowering
    load_plugin(written(tmp_path, example().replace(lowering[0], "")))
    target = tmp_path / "model.onnx"
    with pytest.raises(UnsupportedLayerError, match=r"layer 'norm' \(GroupNorm\)"):
        export_onnx(net(), target)
    assert not target.exists()
    graph = export_onnx(net(), target, allow_custom=True)
    assert any("org.weightbridge" in note for note in graph.notes)
    model = onnx.load(target)
    (node,) = model.graph.node
    assert (node.domain, node.op_type, len(node.input)) == ("org.weightbridge", "GroupNorm", 3)
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "group_num": 3,
        "eps": pytest.approx(0.01),
    }
    assert {(o.domain, o.version) for o in model.opset_import} >= {("org.weightbridge", 1)}


def test_all_layers_that_onnx_cannot_say_are_listed_at_once(tmp_path: Path) -> None:
    from bridge.exporting import export_onnx

    inputs = [("loc", (1, 8)), ("conf", (1, 4)), ("prior", (1, 2, 8))]
    lines = [
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {n}" for n in shape)
        + " } } }"
        for name, shape in inputs
    ]
    for name in ("first", "second"):
        wiring = " ".join(f'bottom: "{bottom}"' for bottom, _ in inputs)
        body = "detection_output_param { num_classes: 2 nms_param { nms_threshold: 0.7 eta: 0.9 } }"
        lines.append(f'layer {{ name: "{name}" type: "DetectionOutput" {wiring} top: "{name}" {body} }}')
    made = assemble(None, prototxt.parse("\n".join(lines)))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'first'.*layer 'second'.*--allow-custom"):
        export_onnx(made, tmp_path / "model.onnx")
    assert len(export_onnx(made, tmp_path / "model.onnx", allow_custom=True).builder.nodes) == 2
