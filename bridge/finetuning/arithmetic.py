"""The arithmetic of update rules: NumPy's or CuPy's, or that of Caffe on a processor, to the bit.

Source: caffe/util/mkl_alternate.hpp, math_functions.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.chain.libm import powf


class Arithmetic:
    """Arithmetic on arrays of NumPy or CuPy; every operation rounds.

    Args:
        xp: The array module.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def plus(self, a: Any, x: Any, y: Any, out: Any = None) -> Any:
        """``a x + y``."""
        return self.xp.add(a * x, y, out=out)

    def blend(self, a: Any, x: Any, b: Any, y: Any) -> None:
        """``y = a x + b y``."""
        y *= b
        self.plus(a, x, y, out=y)

    def square(self, x: Any) -> Any:
        """``x ** 2``."""
        return x * x

    def root(self, x: Any) -> Any:
        """``x ** 0.5``."""
        return self.xp.sqrt(x)

    def norm(self, arrays: list[Any]) -> Any:
        """The L2 norm of all arrays together."""
        sums = [(array * array).sum() for array in arrays]
        if self.xp is not np:
            return self.xp.sqrt(self.xp.stack(sums).sum())
        return np.sqrt(np.float32(sum(map(float, sums))))


class CaffesArithmetic(Arithmetic):
    """Caffe's arithmetic on float32 arrays of NumPy.

    A multiply-add rounds once, as OpenBLAS's does; powers are those of the C library.
    """

    def __init__(self) -> None:
        super().__init__(np)

    def plus(self, a: Any, x: Any, y: Any, out: Any = None) -> Any:
        """``a x + y``, rounded once. Source: ``caffe_axpy``."""
        product = np.multiply(x, a, dtype=np.float64)  # exact
        return np.add(product, y, out=np.empty_like(x) if out is None else out, casting="same_kind")

    def square(self, x: Any) -> Any:
        """``x ** 2``. Source: ``caffe_powx``."""
        return powf(x, 2)

    def root(self, x: Any) -> Any:
        """``x ** 0.5``. Source: ``caffe_powx``."""
        return powf(x, 0.5)

    def norm(self, arrays: list[Any]) -> Any:
        """The L2 norm of all arrays together, array after array. Source: ``Blob::sumsq_diff``."""
        total = np.float32(0)
        for array in arrays:
            flat = array.reshape(-1)
            total += flat.dot(flat)
        return np.sqrt(total)
