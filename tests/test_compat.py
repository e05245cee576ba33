"""Chainer on the packages that are installed here: every patch is needed, enough, and leaves others alone."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import compat
from bridge.compat import caffe_schema, requirements
from bridge.compat.hook import Finder, PatchedLoader
from bridge.compat.table import PATCHES, Patch
from bridge.errors import MissingExtraError, UsageError
from bridge.extras import pip
from tests import cuda_patches
from tests.conftest import ROOT, need

# What fails without each patch: code that raises then, and does not with it.
BROKEN = {
    **cuda_patches.BROKEN,
    "environment-check": """
sys.modules["pkg_resources"] = sys.modules["numpy.distutils"] = None  # as with today's setuptools and Python
import chainer._environment_check
chainer._environment_check.check()
""",
    "pkg-resources": """
sys.modules["pkg_resources"] = None
import chainer.testing.helper, chainer.testing.doctest_helper
assert not chainer.testing.doctest_helper.skipif_requires_satisfied("numpy<1")
""",
    "numpy-sctypes": """
import numpy, chainer
x = chainer.Variable(numpy.arange(4, dtype="f"))
chainer.functions.sum(chainer.functions.as_strided(x, (2, 2), (1, 1))).backward()
assert x.grad.tolist() == [1, 2, 1, 0]
""",
    "numpy-float": """
import numpy, chainer
x = numpy.arange(4, dtype="f").reshape(1, 1, 2, 2)
y = chainer.functions.resize_images(x, (3, 3)).array
assert y[0, 0].tolist() == [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]]
z = chainer.functions.resize_images(x, (4, 2), mode="nearest", align_corners=False).array
assert z[0, 0].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
""",
    "variable-initializer": """
import numpy, chainer
import chainer.links as L
first = L.Convolution2D(2, 3, 1, initial_bias=numpy.arange(3))
second = L.Convolution2D(2, 3, 1, initialW=first.W, initial_bias=chainer.Variable(numpy.arange(3, dtype="f")))
assert (second.W.array == first.W.array).all() and second.W.array is not first.W.array
assert (second.b.array == first.b.array).all()
try:
    L.Linear(2, 3, initialW=L.Linear(3).W)
except ValueError as error:
    assert "no values yet" in str(error)
else:
    raise SystemExit("an empty parameter was taken")
""",
    "unsigned-padding": """
import warnings
import numpy, chainer
warnings.simplefilter("error", DeprecationWarning)
xs = [numpy.array([1, 2], "u1"), numpy.array([3], "u1")]
y = chainer.functions.pad_sequence(xs, padding=-1).array
assert y.dtype == "u1" and y.tolist() == [[1, 2], [3, 255]]
y = chainer.functions.pad_sequence([x.astype("f2") for x in xs], padding=-1.5).array
assert y.dtype == "f2" and y.tolist() == [[1, 2], [3, -1.5]]
""",
    "float16-soft-loss": """
import numpy, chainer
x, t = numpy.zeros((70000, 2), "f2"), numpy.full((70000, 2), 0.5, "f2")
for kind, expected in (("cross-entropy", 0.6931), ("kl-divergence", 0.0)):
    loss = chainer.functions.softmax_cross_entropy(x, t, soft_target_loss=kind)
    assert loss.dtype == "f2" and abs(float(loss.array) - expected) < 1e-3, loss
""",
    "deconvolution-frozen-input": """
import numpy, chainer
x, w = numpy.ones((1, 1, 2, 2), "f"), chainer.Parameter(numpy.ones((1, 1, 2, 2), "f"))
chainer.functions.sum(chainer.functions.deconvolution_2d(x, w)).backward()
assert w.grad.tolist() == [[[[4, 4], [4, 4]]]]
""",
    "caffe-pb2": """
import warnings, chainer
from chainer.links.caffe import CaffeFunction
from chainer.links.caffe.protobuf3 import caffe_pb2
assert caffe_pb2.Phase.Name(caffe_pb2.TEST) == "TEST" and caffe_pb2.V1LayerParameter.CONVOLUTION == 4
warnings.simplefilter("ignore")
CaffeFunction("fixtures/fashion/fashion_alexnet.caffemodel")
""",
    "one-element-int": """
import types, warnings
import numpy, chainer
warnings.simplefilter("error", DeprecationWarning)
from importlib.util import find_spec
package = sys.modules["chainermn"] = types.ModuleType("chainermn")  # its own __init__ needs mpi4py
package.__path__ = find_spec("chainer").submodule_search_locations[0].join(("", "mn")),
package = sys.modules["chainermn.iterators"] = types.ModuleType("chainermn.iterators")
package.__path__ = sys.modules["chainermn"].__path__[0] + "/iterators",
from chainermn.iterators.multi_node_iterator import _MultiNodeIteratorSlave
class Communicator:
    def bcast(self, value, root):
        return numpy.full(1, 7, "f")
assert _MultiNodeIteratorSlave(Communicator(), 0).dataset_size == 7
""",
    "thread-daemon": """
import warnings, chainer
warnings.simplefilter("error", DeprecationWarning)
from chainer.iterators import MultiprocessIterator
iterator = MultiprocessIterator(list(range(4)), 2, repeat=False, shuffle=False, n_processes=1)
assert list(iterator) == [[0, 1], [2, 3]]
iterator.finalize()
""",
    "maximum-into": """
import warnings, numpy, chainer
warnings.simplefilter("error", DeprecationWarning)
batch = chainer.dataset.concat_examples([numpy.ones((1, 3), "f"), numpy.ones((2, 1), "f")], padding=0)
assert batch.tolist() == [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]]
""",
    "assigned-shape": """
import warnings, numpy, chainer
warnings.simplefilter("error", DeprecationWarning)
def count(array):
    assert array.ndim == 3 or array.shape == (3, 2)
    array[...] = numpy.arange(array.size).reshape(array.shape)
link = chainer.links.Maxout(4, 3, 2, initialW=count, initial_bias=count)
assert link.linear.W.array.ravel().tolist() == list(range(24)) and link.linear.b.array.tolist() == list(range(6))
""",
    "numpy-fix": """
import warnings, numpy, chainer
warnings.simplefilter("error", DeprecationWarning)
assert chainer.functions.fix(numpy.float32([-1.5, 1.5])).array.tolist() == [-1, 1]
""",
    "scipy-float16": """
import numpy, chainer
left = chainer.utils.CooMatrix(numpy.float16([2, 3]), numpy.int32([0, 1]), numpy.int32([1, 0]), (2, 2))
product = chainer.functions.sparse_matmul(left, chainer.Variable(numpy.float16([[1, 2], [3, 4]])))
assert product.dtype == "f2" and product.array.tolist() == [[6, 8], [3, 6]]
""",
    "chainercv-version": """
sys.modules["pkg_resources"] = None
import chainercv
assert chainercv.__version__
""",
    "chainercv-strtobool": """
sys.modules["distutils"] = sys.modules["distutils.util"] = None
import chainercv.utils.download
""",
    "chainercv-aliases": """
import chainercv.links, chainercv.experimental.links, chainercv.datasets
from chainercv.utils import mask_iou, scale_mask
import numpy
assert scale_mask(numpy.ones((1, 2, 2), bool), numpy.float32([[0, 0, 2, 2]]), 4).shape[0] == 1
""",
    "onnx-mapping": """
import warnings, numpy, chainer
warnings.simplefilter("ignore")
import chainer.links as L, chainer.functions as F
class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv, self.norm = L.Convolution2D(3, 4, 3), L.BatchNormalization(4)
    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        y = F.cast(F.clipped_relu(y[:, :2], 3.0), "float32")
        return F.softmax(F.reshape(F.average_pooling_2d(y, 2), (1, -1)))
import onnx_chainer
with chainer.using_config("train", False):
    model = onnx_chainer.export(Net(), numpy.zeros((1, 3, 6, 6), "f"), opset_version=11)
assert {"Conv", "BatchNormalization", "Softmax"} <= {node.op_type for node in model.graph.node}
import onnx_chainer.context as context
assert list(context._tensor_from_array_for_constant(numpy.arange(3), "n").int64_data) == [0, 1, 2]
""",
}


def run(code: str, *, without: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    names = [without] if without else []
    prologue = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom bridge import compat\ncompat.install(without={names})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prologue + code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def passes(code: str, **options: Any) -> str:
    done = run(code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


installed = pytest.mark.usefixtures("chainer_installed")


def needs_of(name: str) -> None:
    """Skip where what the patch repairs is not installed, or not broken."""
    need(*{patch.module.partition(".")[0] for patch in PATCHES if patch.name == name} - {"chainermn", "onnx_chainer"})
    need("chainer", *(["onnx"] if name == "onnx-mapping" else ["scipy"] if name == "scipy-float16" else []))


# -- each patch ------------------------------------------------------------------------------


def test_every_patch_has_a_test() -> None:
    assert {patch.name for patch in PATCHES} == set(BROKEN)


def test_truth_values_are_read_as_distutils_read_them() -> None:
    assert [requirements.strtobool(text) for text in ("yes", "ON", "1", "False", "n", "0")] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="invalid truth value 'perhaps'"):
        requirements.strtobool("perhaps")
    assert requirements.get_distribution("numpy").version == np.__version__
    assert requirements.get_distribution("no-such-package").version == "unknown"


@pytest.mark.parametrize("name", BROKEN)
def test_works_with_the_patch(name: str) -> None:
    needs_of(name)
    modules = [patch.module for patch in PATCHES if patch.name == name]
    report = "\nprint({p.module: p.status for p in compat.patches()})"
    statuses = passes(BROKEN[name] + report).splitlines()[-1]
    status = "applied" if any(patch.needed() for patch in PATCHES if patch.name == name) else "not needed"
    for module in modules:
        assert f"'{module}': '{status}'" in statuses


@pytest.mark.parametrize("name", BROKEN)
def test_fails_without_the_patch(name: str) -> None:
    needs_of(name)
    if not any(patch.needed() for patch in PATCHES if patch.name == name):
        pytest.skip(f"the packages installed here do not need the patch '{name}'")
    done = run(BROKEN[name], without=name)
    assert done.returncode == 1, "it works without the patch, so that it should not say it is needed"
    assert "Traceback" in done.stderr


def test_names_its_module_its_reason_and_whether_it_is_needed() -> None:
    assert len({patch.module for patch in PATCHES}) == len(PATCHES)
    for patch in compat.patches():
        assert patch.module.split(".")[0] in compat.PACKAGES
        assert len(patch.reason) > 30
        assert patch.needed() in (True, False)


# -- the hook --------------------------------------------------------------------------------


@cache
def everything() -> dict[str, Any]:
    """What a process sees that imports all of Chainer that is patched."""
    code = """
import json, os, warnings
import numpy, onnx
from google.protobuf import descriptor_pool
before = {"numpy": set(dir(numpy)), "onnx": set(dir(onnx))}
compat.install(); compat.install()
import chainer, chainer.links.caffe, chainer.testing.doctest_helper, onnx_chainer
finders = [f for f in sys.meta_path if type(f).__module__.startswith("bridge")]
def known(name):
    try: return bool(descriptor_pool.Default().FindFileByName(name))
    except KeyError: return False
print(json.dumps({
    "numpy": sorted(n for n in set(dir(numpy)) - before["numpy"] if "numpy." + n not in sys.modules),
    "onnx": sorted(n for n in set(dir(onnx)) - before["onnx"] if "onnx." + n not in sys.modules),
    "made up": [m for m in ("pkg_resources", "numpy.distutils", "onnx.mapping")
                if not getattr(sys.modules.get(m, chainer), "__file__", None)],
    "caffe": known("caffe.proto"),
    "finders": len(finders),
    "file": sys.modules["chainer.functions.connection.deconvolution_2d"].__file__,
    "statuses": sorted({p.status for p in compat.patches()}),
}))
"""
    result: dict[str, Any] = json.loads(passes(code).splitlines()[-1])
    return result


@installed
def test_puts_no_name_where_others_would_see_it() -> None:
    need("onnx")
    seen = everything()
    assert seen["numpy"] == seen["onnx"] == seen["made up"] == []
    assert not seen["caffe"]


@installed
def test_installing_twice_is_installing_once() -> None:
    need("onnx")
    assert everything()["finders"] == 1


def test_compiled_code_is_neither_read_nor_written(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    patch = Patch("n", "module", "r", lambda: True, (("x = 1", "x = 2"),))
    for compile_first in (False, True):
        compiled = Path(str(py_compile.compile(str(source)))) if compile_first else None
        before = compiled and compiled.read_bytes()
        seen: dict[str, Any] = {}
        exec(PatchedLoader("module", str(source), [patch]).get_code("module"), seen)
        assert seen["x"] == 2
        assert compiled is None or compiled.read_bytes() == before
        assert len(list(tmp_path.rglob("*.pyc"))) == (compiled is not None)


@installed
def test_tracebacks_and_sources_are_those_of_the_file() -> None:
    passes("""
import inspect
from chainer.functions.connection.deconvolution_2d import Deconvolution2DFunction
assert inspect.getsource(Deconvolution2DFunction._set_cover_all).lstrip().startswith("def _set_cover_all")
""")


def fresh(code: str) -> str:
    """What a new process prints that has this repository on its path and nothing installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@installed
@pytest.mark.parametrize("module", ["chainer", "chainer.links.caffe", "chainer.functions.array.as_strided"])
def test_import_bridge_is_all_that_is_needed(module: str) -> None:
    assert fresh(f"import bridge, {module}; print({module}.__name__)") == module


@installed
@pytest.mark.parametrize("first", ["bridge.compat.install()", ""])
def test_an_import_that_failed_before_leaves_nothing_behind(first: str) -> None:
    code = """
sys.modules["chainer.training"] = None  # so that the first import fails half-way on every NumPy
try:
    import chainer
except Exception:
    pass
else:
    raise SystemExit("it did not fail")
assert any(name.startswith("chainer.") for name in sys.modules)
import bridge
import bridge.compat
"""
    assert fresh(f"{code}\n{first}\nimport chainer; print(chainer.training.Trainer.__name__)") == "Trainer"


def test_import_bridge_imports_nothing_of_weight() -> None:
    heavy = ("chainer", "numpy", "multiprocessing", "dataclasses", "bridge.compat")
    assert fresh(f"import bridge; print([m for m in {heavy} if m in sys.modules])") == "[]"


@installed
def test_what_waits_for_chainer_leaves_when_it_came() -> None:
    code = """
import bridge, importlib
waiting = lambda: sum(type(finder).__name__ == "BeforeImport" for finder in sys.meta_path)
print(waiting())
importlib.reload(bridge)
print(waiting())
import chainer
print(waiting(), sum(type(finder).__module__ == "bridge.compat.hook" for finder in sys.meta_path))
"""
    assert fresh(code).split() == ["1", "1", "0", "1"]


def test_importing_compat_is_light() -> None:
    heavy = "print([m for m in ('chainer', 'numpy', 'onnx', 'google.protobuf') if m in sys.modules])"
    assert passes(heavy).strip() == "[]"


def test_a_module_imported_before_is_told() -> None:
    code = f"""
import sys, types, warnings
sys.path.insert(0, {str(ROOT)!r})
from bridge import compat
name = "chainer.functions.connection.deconvolution_2d"
sys.modules["chainer"], sys.modules[name] = types.ModuleType("chainer"), types.ModuleType(name)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    compat.install()
print(caught[0].category.__name__, caught[0].message)
print([p.status for p in compat.patches() if p.module == name])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    told, status = done.stdout.splitlines()
    assert told.startswith("RuntimeWarning imported before bridge.compat.install() and therefore not patched: chainer.")
    assert status == "['too late']"


def test_another_chainer_whose_source_differs_is_left_alone() -> None:
    patch = next(patch for patch in PATCHES if patch.name == "unsigned-padding")
    twin = type(patch)(patch.name, patch.module, patch.reason, patch.needed, patch.edits)
    source = "y = xp.empty(shape, xs[0].dtype)\n"  # one of the three places
    assert twin.apply(source) == source
    assert twin.status == "not found"


def test_an_unknown_patch_is_refused() -> None:
    with pytest.raises(UsageError, match="no patch 'numpy-flaot'"):
        compat.install(without=["numpy-flaot"])


def test_without_chainer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chainer", None)
    with pytest.raises(MissingExtraError, match="Chainer is not installed") as caught:
        compat.import_chainer()
    assert caught.value.hint == pip("chainer")


@installed
def test_a_package_that_chainer_lacks_is_named() -> None:
    told = passes("""
sys.modules["six"] = None
try:
    compat.import_chainer()
except ImportError as error:
    print(type(error).__name__, error)
""")
    assert told.startswith("MissingExtraError Chainer does not import: import of six halted")


# -- stand-ins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("numpy", True),
        ("numpy>=1.24", True),
        ("numpy >= 1.24, < 99", True),
        ("numpy<1", False),
        ("numpy!=0.1,>=1", True),
        ("numpy~=1.0", np.__version__.startswith("1.")),
        (f"numpy=={np.__version__}", True),
        ("no-such-package", False),
        ("numpy @ somewhere", False),
    ],
)
def test_requirements_are_checked(requirement: str, met: bool) -> None:
    if met:
        requirements.WorkingSet().require(requirement)
    else:
        with pytest.raises(requirements.ResolutionError):
            requirements.WorkingSet().require(requirement)


def test_releases_compare_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements.metadata, "version", lambda name: "1.10.0rc1")
    packages = requirements.WorkingSet()
    packages.require("any>=1.9", "any==1.10", "any<=1.10.0", "any>1.9.9")
    for requirement in ("any<1.9", "any!=1.10", "any>1.10", "any~=1.9.0"):
        with pytest.raises(requirements.ResolutionError):
            packages.require(requirement)


def test_messages_are_made_from_a_serialized_descriptor() -> None:
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name="a.proto", package="a")
    message = file.message_type.add(name="M")
    message.field.add(name="n", number=1, type=5, label=1)
    enum = file.enum_type.add(name="E")
    enum.value.add(name="ZERO", number=0)
    names = caffe_schema.namespace(file.SerializeToString())
    assert names["M"](n=3).SerializeToString() == b"\x08\x03"
    assert names["ZERO"] == names["E"].Value("ZERO") == 0
    assert names["DESCRIPTOR"].name == "a.proto"


def test_tables_for_onnx_are_those_of_onnx() -> None:
    need("onnx")
    from onnx import TensorProto, helper

    from bridge.compat import onnx_mapping

    for dtype, number in onnx_mapping.NP_TYPE_TO_TENSOR_TYPE.items():
        assert helper.np_dtype_to_tensor_dtype(dtype) == number
    for number, field in onnx_mapping.STORAGE_TENSOR_TYPE_TO_FIELD.items():
        assert helper.tensor_dtype_to_field(number) == field
        assert number in TensorProto.DataType.values()


def test_the_hook_passes_on_what_is_not_chainers() -> None:
    assert Finder(PATCHES).find_spec("chainer.links", None) is None
    assert Finder(PATCHES).find_spec("json", None) is None
