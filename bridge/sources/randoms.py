"""The random numbers that Caffe's data layers draw, number by number."""

from __future__ import annotations

from typing import Any

import numpy as np


class Mersenne:
    """The generator ``boost::mt19937``, as Caffe seeds it.

    Args:
        seed: 32 bits; none takes one from the operating system, as Caffe does without ``random_seed``.

    Source: common.cpp ``Caffe::RNG``, rng.hpp ``caffe_rng_rand``.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)

    def seed(self, seed: int) -> None:
        """Start anew."""
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed & 0xFFFFFFFF)

    def draw(self) -> int:
        """The next number, 0 to 2**32 - 1."""
        return int(self._bits.random_raw())

    def child(self) -> Mersenne:
        """A generator that is seeded with the next number."""
        return Mersenne(self.draw())

    def below(self, n: int) -> int:
        """A number from 0 to ``n`` - 1, as ``DataTransformer::Rand`` takes it."""
        return self.draw() % n

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle in place. Source: rng.hpp ``shuffle``, with ``boost::uniform_int``."""
        for last in range(len(items) - 1, 0, -1):
            other = self._uniform(last)
            items[last], items[other] = items[other], items[last]

    def _uniform(self, most: int) -> int:
        """A number from 0 to ``most``. Source: boost/random/uniform_int_distribution.hpp."""
        largest = 0xFFFFFFFF
        bucket = largest // (most + 1) + (largest % (most + 1) == most)
        while True:
            found = self.draw() // bucket
            if found <= most:
                return found


class CRandom:
    """glibc's ``rand()`` as it is without ``srand``: what ``std::random_shuffle`` draws from.

    Source: glibc stdlib/random_r.c, the additive feedback generator of degree 31.
    """

    def __init__(self, seed: int = 1) -> None:
        state = [seed]
        for _ in range(30):
            state.append(16807 * state[-1] % 2147483647)
        self._state, self._at = state, 3
        for _ in range(310):
            self._next()

    def _next(self) -> int:
        state, at = self._state, self._at
        state[at] = (state[at] + state[(at + 28) % 31]) & 0xFFFFFFFF
        self._at = (at + 1) % 31
        return state[at]

    def draw(self) -> int:
        """The next number, 0 to 2**31 - 1."""
        return self._next() >> 1

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle in place. Source: libstdc++ ``std::random_shuffle``."""
        for last in range(1, len(items)):
            other = self.draw() % (last + 1)
            items[last], items[other] = items[other], items[last]


C_RANDOM = CRandom()
"""The process's own, which all HDF5Data layers share."""
