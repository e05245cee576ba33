"""``expf`` and ``powf`` with the bits of the C library that Caffe is linked with.

A few of NumPy's results in a thousand differ in the last bit. That matters where two values nearly tie
in a comparison, and where an adaptive update divides by a sum that is nearly 0. The functions here
compute as glibc (since 2.28) and musl do: in float64, as a power of 2 whose fraction is split into one of
32 steps, looked up in a table, and a rest, for which there is a cubic polynomial.

Source: glibc ``e_expf.c``, ``e_powf.c`` and their tables, which are Arm's optimized routines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _numbers(text: str) -> np.ndarray:
    return np.array([float.fromhex(digits) for digits in text.split()])


_STEPS = 32
_CUBIC = _numbers("0x1.c6af84b912394p-5 0x1.ebfce50fac4f3p-3 0x1.62e42ff0c52d6p-1") / _STEPS ** np.array([3, 2, 1])
_PER_E = float.fromhex("0x1.71547652b82fep+0") * _STEPS
_WHOLE = 1.5 * 2**52
"""Added to a number, it rounds the number to an integer, which is then in the lowest bits."""
_STEP_BITS = (2.0 ** (np.arange(_STEPS) / _STEPS)).view(np.int64) - (np.arange(_STEPS) << 47)
"""The bits of 2 to the power of each step, minus what the step's number adds to the exponent when it is shifted."""
_AT_ONCE = 1 << 16
"""So many values are computed at a time: what float64 takes in between then is small, and stays in the cache."""
_LEAST = -200.0 * _STEPS
"""An exponent below that of every float32 number, whose power of 2 a float64 can still hold."""

_OCTAVE = 0x3FE6600000000000
"""The bits of about 0.7, where the octave of the table begins."""
_INVERSES, _LOGS = (
    _numbers("""
    0x1.661ec79f8f3bep+0 -0x1.efec65b963019p-2 0x1.571ed4aaf883dp+0 -0x1.b0b6832d4fca4p-2
    0x1.49539f0f010bp+0 -0x1.7418b0a1fb77bp-2 0x1.3c995b0b80385p+0 -0x1.39de91a6dcf7bp-2
    0x1.30d190c8864a5p+0 -0x1.01d9bf3f2b631p-2 0x1.25e227b0b8eap+0 -0x1.97c1d1b3b7afp-3
    0x1.1bb4a4a1a343fp+0 -0x1.2f9e393af3c9fp-3 0x1.12358f08ae5bap+0 -0x1.960cbbf788d5cp-4
    0x1.0953f419900a7p+0 -0x1.a6f9db6475fcep-5 0x1p+0 0x0p+0
    0x1.e608cfd9a47acp-1 0x1.338ca9f24f53dp-4 0x1.ca4b31f026aap-1 0x1.476a9543891bap-3
    0x1.b2036576afce6p-1 0x1.e840b4ac4e4d2p-3 0x1.9c2d163a1aa2dp-1 0x1.40645f0c6651cp-2
    0x1.886e6037841edp-1 0x1.88e9c2c1b9ff8p-2 0x1.767dcf5534862p-1 0x1.ce0a44eb17bccp-2
""")
    .reshape(16, 2)
    .T
)
"""For each 16th of the octave: the inverse of a number in it, and the binary logarithm of that number."""
_LOG_POLYNOMIAL = _numbers("""
    0x1.27616c9496e0bp-2 -0x1.71969a075c67ap-2 0x1.ec70a6ca7baddp-2 -0x1.7154748bef6c8p-1 0x1.71547652ab82bp0
""")


def expf(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``e ** x``.

    Args:
        x: float32 array of any shape, with values up to 88.
        out: Contiguous float32 array of the same shape to fill, which may be ``x`` itself; by default a new one.

    Returns:
        float32 array of the same shape.

    Source: glibc ``e_expf.c``.
    """
    return _in_parts(x, lambda part: _powers_of_2(np.multiply(part, _PER_E, dtype=np.float64)), out)


def powf(x: np.ndarray, y: float) -> np.ndarray:
    """``|x| ** y``; 0 for 0.

    Args:
        x: float32 array of any shape.
        y: The exponent, such that results are finite.

    Returns:
        float32 array of the same shape.

    Source: glibc ``e_powf.c``.
    """
    return _in_parts(x, lambda part: _powers(part, y))


def _in_parts(x: np.ndarray, compute: Callable[[np.ndarray], np.ndarray], out: np.ndarray | None = None) -> np.ndarray:
    """What a function of single values makes of an array."""
    flat = np.ravel(x)
    result = np.empty(flat.shape, np.float32) if out is None else out.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        result[start : start + _AT_ONCE] = compute(flat[start : start + _AT_ONCE])
    return result.reshape(np.shape(x))


def _powers(x: np.ndarray, y: float) -> np.ndarray:
    wide = np.abs(np.array(x, np.float64))
    zero = wide == 0
    wide[zero] = 1
    bits = wide.view(np.int64) - _OCTAVE
    octave = (bits >> 52).astype(np.int32)
    part = (bits >> 48) & 15
    r = np.ldexp(wide, -octave) * _INVERSES[part]
    r -= 1
    a, b, c, d, e = _LOG_POLYNOMIAL
    square = r * r
    logs = (a * r + b) * (square * square) + ((c * r + d) * square + (e * r + (_LOGS[part] + octave)))
    logs *= y * _STEPS
    result = _powers_of_2(logs)
    result[zero] = 0
    return result


def _powers_of_2(exponents: np.ndarray) -> np.ndarray:
    """2 to the power of ``exponents / 32``, from float64 to float32; NaN for NaN."""
    exponents = np.maximum(exponents, _LEAST)
    shifted = exponents + _WHOLE
    steps = shifted.view(np.int64)
    exponents -= shifted - _WHOLE
    a, b, c = _CUBIC
    result = a * exponents
    result += b
    result *= exponents
    result += c
    result *= exponents
    result += 1
    result *= (_STEP_BITS[steps & (_STEPS - 1)] + (steps << 47)).view(np.float64)
    return np.asarray(result, np.float32)
