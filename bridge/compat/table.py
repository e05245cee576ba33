"""The patches: each says which module it rewrites, why, when, and what became of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass
class Patch:
    """A change to the source of one module of Chainer.

    Attributes:
        name: What ``install(without=...)`` knows it by; patches of one cause share it.
        module: The module whose source it rewrites.
        reason: What fails without it, and since when.
        needed: Whether it fails on the versions installed here.
        edits: Pairs of a regular expression and what replaces every match of it.
        status: ``waiting`` for the module's import, then ``applied``, ``not needed`` or
            ``not found`` (another Chainer, with other source); ``too late`` if the module
            was imported before; ``left out`` on request.
    """

    name: str
    module: str
    reason: str
    needed: Callable[[], bool] = field(repr=False)
    edits: tuple[tuple[str, str], ...] = field(repr=False)
    status: str = "waiting"

    def wanted(self) -> bool:
        """Whether the module, about to be imported, is to be rewritten."""
        if self.status != "left out":
            self.status = "waiting" if self.needed() else "not needed"
        return self.status == "waiting"

    def apply(self, source: str) -> str:
        """The module's source rewritten; unchanged unless every edit finds its text."""
        rewritten = source
        for pattern, replacement in self.edits:
            rewritten, count = re.subn(pattern, replacement, rewritten)
            if not count:
                self.status = "not found"
                return source
        self.status = "applied"
        return rewritten


def _always() -> bool:
    return True


def _numpy_refuses(attempt: Callable[[Any], object]) -> Callable[[], bool]:
    """Whether NumPy raises at what Chainer does, or warns that it will."""

    def refuses() -> bool:
        import numpy

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                attempt(numpy)
            except (AttributeError, OverflowError, TypeError, DeprecationWarning):
                return True
        return False

    return refuses


def _assign_a_shape(numpy: Any) -> None:
    numpy.zeros(2).shape = (1, 2)


def _scipy_refuses_float16() -> bool:
    if find_spec("scipy") is None:
        return False
    import numpy

    try:
        import_module("scipy.sparse").coo_matrix(numpy.zeros((1, 1), numpy.float16))
    except (TypeError, ValueError):
        return True
    return False


def _protobuf_4() -> bool:
    import google.protobuf

    return int(google.protobuf.__version__.partition(".")[0]) >= 4


def _onnx_lacks_mapping() -> bool:
    return find_spec("onnx") is not None and find_spec("onnx.mapping") is None


_IMPORT_OF_MAPPING = ((r"\bfrom onnx\.mapping import", "from bridge.compat.onnx_mapping import"),)
_USE_OF_MAPPING = (
    (r"(?m)^import onnx$", "import onnx; from bridge.compat import onnx_mapping"),
    (r"\bonnx\.mapping\.", "onnx_mapping."),
)

PATCHES: tuple[Patch, ...] = (
    Patch(
        "environment-check",
        "chainer._environment_check",
        "imports numpy.distutils (gone with Python 3.12) and pkg_resources (gone with setuptools 82) to warn of "
        "Python 3.5.0, of an old Accelerate, and of every CuPy but version 7; where they are there, that takes 0.5 s",
        _always,
        ((r"(?s)\A.*\Z", "def check():\n    pass\n"),),
    ),
    *(
        Patch(
            "pkg-resources",
            module,
            "imports pkg_resources (gone with setuptools 82, and warns before) to skip tests by installed versions",
            _always,
            ((r"(?m)^import pkg_resources$", "from bridge.compat import requirements as pkg_resources"),),
        )
        for module in ("chainer.testing.helper", "chainer.testing.doctest_helper")
    ),
    Patch(
        "numpy-sctypes",
        "chainer.functions.array.as_strided",
        "numpy.sctypes is gone since NumPy 2.0; 'import chainer' fails",
        _numpy_refuses(lambda numpy: numpy.sctypes),
        (
            (r"np\.sctypes\['int'\]", "(np.int8, np.int16, np.int32, np.int64)"),
            (r"np\.sctypes\['float'\]", "(np.float16, np.float32, np.float64, np.longdouble)"),
        ),
    ),
    Patch(
        "numpy-float",
        "chainer.functions.array.resize_images",
        "numpy.float is gone since NumPy 1.24; resize_images fails",
        _numpy_refuses(lambda numpy: numpy.float),
        ((r"\bnumpy\.float\b", "float"),),
    ),
    Patch(
        "variable-initializer",
        "chainer.initializers",
        "a Variable or Parameter is no initializer: Chainer 1 took initialW=net.conv1.W, Chainer 7 raises TypeError",
        _always,
        (
            (
                r"(def _get_initializer\([^)]*\) -> types\.AbstractInitializer:\n)",
                r"\1    if isinstance(initializer, chainer.Variable): initializer = initial_values(initializer)\n",
            ),
            (r"(?m)^import numpy$", "import numpy; from bridge.compat.initial import initial_values"),
        ),
    ),
    Patch(
        "cuda-parts",
        "chainer.backends.cuda",
        "CuPy 13 does not find CUDA's libraries where pip installed them, and warns of the name cupy.cudnn; without "
        "cuDNN, which CuPy 14 has no longer, Chainer warns that CuPy is to be installed again: where warnings are "
        "errors, 'import chainer' fails",
        _always,
        (
            (
                r"(?m)^try:\n    import cupy$",
                "try:\n    from bridge.compat import cuda_parts; cuda_parts.preload(); import cupy",
            ),
            (
                r"( +)if 7 < _cupy_major:\n +import cupy\.cuda\.cudnn\n +import cupy\.cudnn\n",
                r"\1cuda_parts.load_cudnn()\n\n\n",
            ),
            (r"getattr\(check_cuda_available, '_already_warned', False\)", "True"),
        ),
    ),
    *(
        Patch(
            "cupy-scatter",
            f"chainer.functions.array.{module}",
            "CuPy 14 deprecates scatter_add for cupy.add.at; the gradient of F.get_item, F.scatter_add and "
            "F.spatial_transformer_sampler warn",
            _always,
            edits,
        )
        for module, edits in (
            ("get_item", ((r"gx\.scatter_add\(slices,", "chainer.backends.cuda.cupy.add.at(gx, slices,"),)),
            ("scatter_add", ((r"cuda\.cupyx\.scatter_add\(y,", "cuda.cupy.add.at(y,"),)),
            ("spatial_transformer_sampler", ((r"cuda\.cupyx\.scatter_add", "cuda.cupy.add.at"),)),
        )
    ),
    Patch(
        "unsigned-padding",
        "chainer.functions.array.pad_sequence",
        "NumPy 2.0 refuses a negative number for an unsigned array (1.24 warns); "
        "pad_sequence with padding -1, which used to wrap around, fails",
        _numpy_refuses(lambda numpy: numpy.zeros(1, numpy.uint8).fill(-1)),
        (
            (
                r"(y = xp\.empty\(shape, xs\[0\]\.dtype\))",
                r"\1; padding = numpy.array(self.padding).astype(y.dtype)[()]",
            ),
            (r"y\[i, l:\] = self\.padding", "y[i, l:] = padding"),
            (r"lengths, self\.padding,", "lengths, padding,"),
        ),
    ),
    Patch(
        "float16-soft-loss",
        "chainer.functions.loss.softmax_cross_entropy",
        "the loss over soft targets is summed in float16, and infinite beyond 65,504; that over labels is not",
        _always,
        (
            (
                r"ret = ret\.sum\(keepdims=True\) \* self\._coeff",
                "ret = ret.sum(keepdims=True, dtype=_reduction_dtype(x.dtype)) * self._coeff; "
                "ret = ret.astype(x.dtype, copy=False)",
            ),
        ),
    ),
    Patch(
        "deconvolution-frozen-input",
        "chainer.functions.connection.deconvolution_2d",
        "_set_cover_all gets arrays for shapes where W needs a gradient and x does not; "
        "training a deconvolution above a frozen trunk fails",
        _always,
        ((r"_set_cover_all\(x, W\)", "_set_cover_all(x.shape, W.shape)"),),
    ),
    Patch(
        "caffe-pb2",
        "chainer.links.caffe.protobuf3.caffe_pb2",
        "protobuf 4 and newer refuse the descriptors that this generated module builds; importing CaffeFunction fails",
        _protobuf_4,
        (
            (
                r"(?s)\A.*?serialized_pb=_b\((.*?)\)\n\)\n.*\Z",
                r"from bridge.compat import caffe_schema\n"
                r"globals().update(caffe_schema.namespace((\1).encode('latin1')))\n",
            ),
        ),
    ),
    Patch(
        "one-element-int",
        "chainermn.iterators.multi_node_iterator",
        "NumPy 2.4 refuses int() of an array with an axis (1.25 warns); the slave fails, and the master waits for ever",
        _numpy_refuses(lambda numpy: int(numpy.ones(1))),
        ((r"int\(_size\)", "int(_size.item())"),),
    ),
    Patch(
        "thread-daemon",
        "chainer.iterators.multiprocess_iterator",
        "Thread.setDaemon is deprecated since Python 3.10; MultiprocessIterator warns of it",
        _always,
        ((r"thread\.setDaemon\(True\)", "thread.daemon = True"),),
    ),
    Patch(
        "maximum-into",
        "chainer.dataset.convert",
        "NumPy 2.5 deprecates numpy.maximum with the result as third argument; concat_examples with padding warns",
        _numpy_refuses(lambda numpy: numpy.maximum(*[numpy.zeros(1)] * 3)),
        ((r"numpy\.maximum\(shape, array\.shape, shape\)", "numpy.maximum(shape, array.shape, out=shape)"),),
    ),
    Patch(
        "assigned-shape",
        "chainer.links.activation.maxout",
        "NumPy 2.5 deprecates assigning to the shape of an array; Maxout with an initializer warns",
        _numpy_refuses(_assign_a_shape),
        (
            (
                r"array\.shape = (\(out_size, pool_size(?:, in_size)?\))\n( +)(\w+)\(array\)\n +array\.shape = .*\n",
                r"\3(array.reshape(\1))\n\n\n",
            ),
        ),
    ),
    Patch(
        "numpy-fix",
        "chainer.functions.math.fix",
        "NumPy 2.5 deprecates numpy.fix; F.fix, and the gradient of F.fmod, warn",
        _numpy_refuses(lambda numpy: numpy.fix(0.5)),
        ((r"\bxp\.fix\(", "xp.trunc("),),
    ),
    Patch(
        "scipy-float16",
        "chainer.functions.math.sparse_matmul",
        "SciPy 1.15 and newer have no sparse matrices of float16; F.sparse_matmul of float16 fails",
        _scipy_refuses_float16,
        (
            (
                r"(def _coo_matmul_cpu\([^)]*\):\n)    # A_shape: [^\n]*",
                r"\1    A_data = A_data.astype(numpy.promote_types(A_data.dtype, numpy.float32), copy=False)",
            ),
        ),
    ),
    Patch(
        "chainercv-version",
        "chainercv",
        "imports pkg_resources (gone with setuptools 82, and warns before) to learn its own version",
        _always,
        ((r"(?m)^import pkg_resources$", "from bridge.compat import requirements as pkg_resources"),),
    ),
    Patch(
        "chainercv-strtobool",
        "chainercv.utils.download",
        "imports distutils (gone with Python 3.12, unless setuptools stands in); 'import chainercv' fails",
        _always,
        ((r"from distutils\.util import strtobool", "from bridge.compat.requirements import strtobool"),),
    ),
    *(
        Patch(
            "chainercv-aliases",
            f"chainercv.{module}",
            "numpy.float and numpy.int are gone since NumPy 1.24, and numpy.bool until 2.0; 'import chainercv' fails",
            _numpy_refuses(lambda numpy: numpy.float),
            ((r"\bnp\.(bool|int|float)\b", r"\1"),),
        )
        for module in (
            "datasets.coco.coco_instances_base_dataset",
            "datasets.cub.cub_keypoint_dataset",
            "datasets.voc.voc_bbox_dataset",
            "datasets.voc.voc_utils",
            "experimental.links.model.fcis.fcis",
            "experimental.links.model.fcis.fcis_train_chain",
            "experimental.links.model.fcis.utils.proposal_target_creator",
            "links.model.fpn.mask_head",
            "links.model.fpn.mask_utils",
            "links.model.mobilenet.mobilenet_v2",
            "utils.mask.scale_mask",
            "visualizations.vis_point",
        )
    ),
    *(
        Patch(
            "onnx-mapping",
            module,
            "onnx.mapping is gone since onnx 1.19; onnx_chainer exports nothing",
            _onnx_lacks_mapping,
            edits,
        )
        for module, edits in (
            ("onnx_chainer.context", _USE_OF_MAPPING),
            ("onnx_chainer.export", _IMPORT_OF_MAPPING),
            ("onnx_chainer.functions.array", _IMPORT_OF_MAPPING),
            ("onnx_chainer.functions.math", _IMPORT_OF_MAPPING),
        )
    ),
)
"""Every patch. Chainer's own names are left as they are; only what they stand for changes."""

REQUESTED: set[str] = set()
"""Names of the patches that apply on request only, and were requested."""

CAFFE_FUNCTION = Patch(
    "caffe-function",
    "chainer.links.caffe.caffe_function",
    "on request the name stands for bridge.chain.CaffeFunction; until then the module stays what it is",
    _always,
    (
        (r"super\(CaffeFunction, self\)", "super()"),  # the name may come to mean another class
        (
            r"\Z",
            "\nChainersCaffeFunction = CaffeFunction\n"
            "from bridge.compat.table import REQUESTED\n"
            "if 'caffe-function' in REQUESTED:\n"
            "    from bridge.chain.caffe_function import CaffeFunction  # NOQA\n",
        ),
    ),
)
