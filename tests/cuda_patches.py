"""What fails without the patches of :mod:`bridge.compat` for CuPy, told without a GPU; see ``tests/test_compat.py``."""

from __future__ import annotations

BROKEN = {
    "cuda-parts": """
import warnings
from unittest import mock

class Cupy(mock.MagicMock):  # version 14, without cuDNN
    __version__, ndarray, __path__, __spec__ = "14.2.0", type("ndarray", (), {}), [], None
    memoize = staticmethod(lambda for_each_device=False: lambda function: function)
    PerformanceWarning = Warning

names = "", "._util", ".cuda", ".cuda.cublas", "x", "x.scipy", "x.scipy.linalg", "x.scipy.special"
sys.modules.update({f"cupy{name}": Cupy() for name in names})
sys.modules["cupy.cuda.cudnn"] = sys.modules["cupy.cudnn"] = None
warnings.filterwarnings("error", category=UserWarning)
import chainer
assert chainer.backends.cuda.available and not chainer.backends.cuda.cudnn_enabled
""",
    "cupy-scatter": """
from unittest import mock
import chainer, numpy
from chainer.functions.array import get_item, scatter_add, spatial_transformer_sampler

class Array:  # of a CuPy without scatter_add
    shape, dtype = (3,), numpy.dtype("f")
    copy = __getitem__ = lambda self, *args: self

cupy = mock.Mock(zeros=lambda *args: Array(), cuda=mock.Mock())
with mock.patch("chainer.backend.get_array_module", lambda *args: cupy):
    with mock.patch.multiple(chainer.backends.cuda, cupy=cupy, cupyx=mock.Mock(spec=[]), create=True):
        get_item.GetItemGrad((0,), (3,)).forward((Array(),))
        scatter_add.ScatterAdd((0,)).forward((Array(), Array()))
assert cupy.add.at.call_count == 2
""",
}
