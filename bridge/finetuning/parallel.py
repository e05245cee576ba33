"""Several processes that train one net together.

Each process (a rank of MPI) has a part of the images. Gradients are averaged in every step, so
all processes have the same parameters. Only rank 0 writes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.errors import MissingExtraError, UsageError

COMMUNICATORS = ("naive", "flat", "pure_nccl", "hierarchical", "two_dimensional", "single_node", "non_cuda_aware")

_HINT = "pip install 'weight-bridge[mpi]'"


class Ranks:
    """One process on its own, and the interface of several.

    Attributes:
        rank: This process's number.
        size: The number of processes.
        local_rank: Its number among those on the same machine.
    """

    rank = 0
    size = 1
    local_rank = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def summed(self, *values: float) -> Sequence[float]:
        """Each value summed over all ranks."""
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        return value

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, for every rank."""
        return value

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for rank 0; empty for the others."""
        return [value]

    def share_parameters(self, chain: Any) -> None:
        """Give all ranks the parameters of rank 0."""

    def average_gradients(self, chain: Any) -> None:
        """Give all ranks the mean of the gradients."""

    def average_statistics(self, chain: Any) -> None:
        """Give all ranks the mean of the running statistics."""


class ChainerMN(Ranks):
    """The ranks that ``mpiexec`` started, through ChainerMN.

    Args:
        name: A communicator of ChainerMN.

    Raises:
        UsageError: ChainerMN has no communicator of that name.
        MissingExtraError: mpi4py or MPI is not installed.
    """

    def __init__(self, name: str) -> None:
        if name not in COMMUNICATORS:
            raise UsageError(f"no communicator '{name}'", hint=f"communicators: {', '.join(COMMUNICATORS)}")
        world()
        from bridge.compat import import_chainer

        import_chainer()
        import chainermn

        try:
            self._comm = chainermn.create_communicator(name)
        except (ImportError, RuntimeError, ValueError) as error:
            raise MissingExtraError(f"communicator '{name}': {str(error).splitlines()[0]}") from None
        self.rank, self.size, self.local_rank = self._comm.rank, self._comm.size, self._comm.intra_rank

    def summed(self, *values: float) -> Sequence[float]:
        """Each value summed over all ranks."""
        summed: Sequence[float] = self._comm.allreduce_obj(np.array(values, np.float64)).tolist()
        return summed

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        return int(max(self._comm.mpi_comm.allgather(value)))

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, for every rank."""
        return self._comm.bcast_obj((value,) if self.first else None)[0]  # the others must pass None

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for rank 0; empty for the others."""
        return self._comm.gather_obj(value) or []

    def share_parameters(self, chain: Any) -> None:
        """Give all ranks the parameters of rank 0."""
        self._comm.bcast_data(chain)

    def average_gradients(self, chain: Any) -> None:
        """Give all ranks the mean of the gradients."""
        self._comm.multi_node_mean_grad(chain)

    def average_statistics(self, chain: Any) -> None:
        """Give all ranks the mean of the running statistics."""
        for link in chain.links():
            for name in sorted(link._persistent):
                array = getattr(link, name)
                if isinstance(array, chain.xp.ndarray):
                    host = np.asarray(array if chain.xp is np else array.get(), np.float64)
                    mean = self._comm.allreduce_obj(host) / self.size
                    setattr(link, name, chain.xp.asarray(mean, dtype=array.dtype))


def ranks_of(communicator: str) -> Ranks:
    """The ranks of a communicator; an empty name is this process on its own."""
    return ChainerMN(communicator) if communicator else Ranks()


def world() -> Any:
    """All processes that ``mpiexec`` started, as MPI's own communicator.

    Raises:
        MissingExtraError: mpi4py or MPI is not installed.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(f"several processes need mpi4py: {error}", hint=_HINT) from None
    return MPI.COMM_WORLD
