"""What layers get as ``F``: Chainer's functions, and Caffe's own where Chainer has none with the same result.

One module per layer type, with the name of the layer's file in :mod:`bridge.layers`: the code of
``layers/pooling.py`` that needs Chainer is in ``functions/pooling.py``. Modules with the name
``helper_...`` hold what several of them share. :class:`~bridge.layers.builders.ChainerFunctions`
lists the functions with their arguments. Their names follow two rules:

* ``F.caffe_pooling``: Caffe's function of the layer type in ``layers/pooling.py``; ``F.caffe_batch_norm_tail``, a
  second one of ``layers/batch_norm.py``.
* ``F.softmax``: a function of ``chainer.functions``, by its name there and with the same arguments.
  Where this package has a module for it, the values have Caffe's bits on the CPU.

All functions take NumPy and CuPy arrays alike, and are differentiable where the layer is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from bridge.compat import import_chainer
from bridge.errors import nearest

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions

chainer: Any = import_chainer()

HOMES = {
    # Chainer's functions with Caffe's bits
    "dropout": "dropout",
    "elu": "elu",
    "linear": "inner_product",
    "local_response_normalization": "lrn",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    # Caffe's functions
    "caffe_accuracy": "accuracy",
    "caffe_arg_max": "arg_max",
    "caffe_batch_norm": "batch_norm",
    "caffe_batch_norm_tail": "batch_norm",
    "caffe_bn": "bn",
    "caffe_contrastive_loss": "contrastive_loss",
    "caffe_convolution": "convolution",
    "caffe_deconvolution": "deconvolution",
    "caffe_hinge_loss": "hinge_loss",
    "caffe_infogain_loss": "infogain_loss",
    "caffe_interp": "interp",
    "caffe_multinomial_logistic_loss": "multinomial_logistic_loss",
    "caffe_pooling": "pooling",
    "caffe_psroi_pooling": "psroi_pooling",
    "caffe_roi_pooling": "roi_pooling",
    "caffe_sigmoid_cross_entropy_loss": "sigmoid_cross_entropy_loss",
    "caffe_softmax_with_loss": "softmax_with_loss",
    "caffe_eltwise_sum": "eltwise",
    "caffe_upsample": "upsample",
    # for any layer
    "fold_batch_axes": "helper_axes",
    "tail": "helper_tail",
}
"""The module of each of our own functions, which is imported at its first use."""


class _Functions:
    """Looks a function up by name: ours if there is one, otherwise Chainer's."""

    chainer = chainer
    as_variable = staticmethod(chainer.as_variable)

    def __getattr__(self, name: str) -> Any:
        if name in HOMES:
            function = vars(self)[name] = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
            return function
        function = getattr(chainer.functions, name, None)
        if not callable(function):  # chainer.functions.pooling, for one, is a package
            ours = f"caffe_{name}"
            hint = nearest(name, [ours] if ours in HOMES else [*HOMES, *dir(chainer.functions)])
            raise AttributeError(f"F has no function '{name}'" + (f"; {hint}" if hint else ""))
        return function


F = cast("ChainerFunctions", _Functions())
"""The argument ``F`` of :meth:`bridge.schema.Layer.to_chainer`."""
