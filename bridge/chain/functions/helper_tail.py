"""Helper: what follows a convolution per channel and is computed with it.

A frozen BatchNorm and a Scale multiply and shift each channel, which the convolution's weight and bias can do as well;
a ReLU cuts what the convolution has just made, while it is in the cache.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from bridge.chain.functions import chainer

F = chainer.functions


class Tail(NamedTuple):
    """``max(0, x * factor + shift)`` per channel, or a part of it.

    Attributes:
        factor: C values, an array or a variable; ``None`` is 1.
        shift: Likewise; ``None`` is 0.
        positive: Whether negative values become 0.
    """

    factor: Any = None
    shift: Any = None
    positive: bool = False

    def then(self, other: Tail) -> Tail:
        """This and then ``other``; this must not end in a cut."""
        shift = _product(self.shift, other.factor) if self.shift is not None else None
        return Tail(_product(self.factor, other.factor), _sum(shift, other.shift), other.positive)

    @property
    def only_cuts(self) -> bool:
        """Whether it is no more than the cut at 0."""
        return self.factor is None and self.shift is None

    @property
    def fixed(self) -> bool:
        """Whether the factor, if there is one, is an array, which no gradient is asked for."""
        return not isinstance(self.factor, chainer.Variable)

    def folded(self, W: Any, b: Any) -> tuple[Any, Any]:
        """Weight and bias, as variables, of a convolution that multiplies and shifts as well."""
        if self.factor is not None:
            factor = F.reshape(chainer.as_variable(self.factor), (-1, *[1] * (W.ndim - 1)))
            W = W * F.broadcast_to(factor, W.shape)
        return W, self.shifted(b)

    def shifted(self, b: Any) -> Any:
        """The bias, as a variable, where the weight is multiplied elsewhere."""
        if b is not None and self.factor is not None:
            b = b * self.factor
        shift = _sum(b, self.shift)
        return None if shift is None else chainer.as_variable(shift)


NO_TAIL = Tail()


def tail(factor: Any = None, shift: Any = None, positive: bool = False) -> Tail:
    """What may be computed with the layer before; frozen parameters become arrays, which the graph does not hold."""
    return Tail(_plain(factor), _plain(shift), positive)


def with_tail(functions: Any, own: Tail) -> Any:
    """The functions ``F``, with a ``caffe_convolution`` and a ``caffe_eltwise_sum`` that end in a tail."""
    return _WithTail(functions, own)


class _WithTail:
    def __init__(self, functions: Any, own: Tail) -> None:
        self._functions = functions
        self.caffe_convolution = functools.partial(functions.caffe_convolution, tail=own)
        self.caffe_eltwise_sum = functools.partial(functions.caffe_eltwise_sum, tail=own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, chainer.Variable) and not value.requires_grad else value


def _product(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a * b


def _sum(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
