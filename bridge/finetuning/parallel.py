"""Several processes that train one net together.

The processes (the ranks of MPI) compute what one process would: every step has the batch that one process
would take, each rank computes its part of the batch, and the gradients are added. So the number of ranks
decides about the last places of values and about nothing else. Only rank 0 writes files of the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge.errors import MissingExtraError, UsageError
from bridge.extras import pip

COMMUNICATORS = ("naive", "flat", "pure_nccl", "non_cuda_aware")
"""The communicators of ChainerMN 7.8.1 that train; only the first works on a CPU."""

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which MPICH's, Open MPI's and MVAPICH's ``mpiexec`` tell a process the number of processes."""


class BatchPart(NamedTuple):
    """A rank's part of a batch.

    Attributes:
        rows: Its rows of the batch, at least one.
        weight: Factor on the mean over these rows, with which the mean over ranks is the mean over the batch; 0 where
            the batch has no row for this rank.
    """

    rows: slice
    weight: float


class Ranks:
    """One process on its own, and the interface of several.

    Attributes:
        rank: This process's number.
        size: The number of processes.
        local_rank: Its number among those on the same machine.
        local_size: The number of processes on this machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def part(self, rows: int) -> BatchPart:
        """This rank's part of a batch of so many rows.

        For example, two ranks take rows 0 to 3 and 4 to 8 of a batch of 9, with the weights 8/9 and 10/9.
        """
        span = self.span(rows)
        if not span.stop - span.start:
            return BatchPart(slice(0, 1), 0.0)
        return BatchPart(span, (span.stop - span.start) * self.size / rows)

    def span(self, rows: int) -> slice:
        """The rows of this rank where each takes an equal share of them; perhaps none."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def summed(self, *values: float) -> Sequence[float]:
        """Each value summed over all ranks."""
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, for every rank."""
        return value

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for rank 0; empty for the others."""
        return [value]

    def exchanged(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for every rank."""
        return [value]

    def share_parameters(self, chain: Any) -> None:
        """Give all ranks the parameters of rank 0."""

    def sum_gradients(self, chain: Any) -> None:
        """Give all ranks the sum of the gradients."""

    def average_statistics(self, chain: Any) -> None:
        """Give all ranks the mean of the running statistics."""


class ChainerMN(Ranks):
    """The ranks that ``mpiexec`` started, through ChainerMN.

    Args:
        name: A communicator of ChainerMN.

    Raises:
        UsageError: ChainerMN has no communicator of that name, or ``mpiexec`` is not that of mpi4py's MPI.
        MissingExtraError: mpi4py or MPI is not installed.
    """

    def __init__(self, name: str) -> None:
        if name not in COMMUNICATORS:
            raise UsageError(f"no communicator '{name}'", hint=f"communicators: {', '.join(COMMUNICATORS)}")
        size = world().Get_size()
        if size != (wanted := max(started(), 1)) and size == 1:
            raise UsageError(
                f"mpiexec started {wanted} processes, and mpi4py finds 1",
                hint="mpiexec and mpi4py belong to two installations of MPI; take the mpiexec of mpi4py's own",
            )
        from bridge.compat import import_chainer

        import_chainer()
        import chainermn

        try:
            self._comm = chainermn.create_communicator(name)
        except (ImportError, RuntimeError, ValueError) as error:
            raise MissingExtraError(f"communicator '{name}': {str(error).splitlines()[0]}") from None
        self.rank, self.size = self._comm.rank, self._comm.size
        self.local_rank, self.local_size = self._comm.intra_rank, self._comm.intra_size

    def summed(self, *values: float) -> Sequence[float]:
        """Each value summed over all ranks."""
        return self._summed(np.array(values, np.float64)).tolist()  # type: ignore[no-any-return]

    def _summed(self, values: np.ndarray) -> np.ndarray:
        total = np.empty_like(values)
        self._comm.mpi_comm.Allreduce(values, total)
        return total

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, for every rank."""
        return self._comm.mpi_comm.bcast(value if self.first else None)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for rank 0; empty for the others."""
        return self._comm.mpi_comm.gather(value) or []

    def exchanged(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, for every rank."""
        found: list[Any] = self._comm.mpi_comm.allgather(value)
        return found

    def share_parameters(self, chain: Any) -> None:
        """Give all ranks the parameters of rank 0."""
        self._comm.bcast_data(chain)

    def sum_gradients(self, chain: Any) -> None:
        """Give all ranks the sum of the gradients."""
        self._comm.multi_node_mean_grad(chain)
        for param in chain.params():
            if param.grad is not None:
                param.grad *= self.size

    def average_statistics(self, chain: Any) -> None:
        """Give all ranks the mean of the running statistics."""
        from bridge.chain.devices import to_host

        places = [
            (link, name)
            for _, link in sorted(chain.namedlinks())
            for name in sorted(link._persistent)
            if isinstance(getattr(link, name), chain.xp.ndarray)
        ]
        if not places:
            return
        arrays = [getattr(link, name) for link, name in places]
        means = (
            self._summed(np.concatenate([to_host(array).astype(np.float64).ravel() for array in arrays])) / self.size
        )
        parts = np.split(means, np.cumsum([array.size for array in arrays])[:-1])
        for (link, name), array, mean in zip(places, arrays, parts, strict=True):
            setattr(link, name, chain.xp.asarray(mean.reshape(array.shape), dtype=array.dtype))


def features_of_all(ranks: Ranks, parts: Sequence[Any], compute: Any) -> Iterator[Mapping[str, np.ndarray]]:
    """The results for all parts, in order, each computed by one rank and given to all.

    Args:
        ranks: The processes.
        parts: What ``compute`` takes; the same in each rank.
        compute: Computes the result for one part.
    """
    for start in range(0, len(parts), ranks.size):
        mine = start + ranks.rank
        yield from filter(None, ranks.exchanged(compute(parts[mine]) if mine < len(parts) else None))


def started() -> int:
    """The number of processes that ``mpiexec`` or ``srun`` says it started; 0 where neither started this process."""
    sizes = [name for name in _SIZES if os.environ.get(name, "").isdecimal()]
    if not sizes and "PMIX_RANK" in os.environ:  # a step of Slurm, whose variables a batch script has as well
        sizes = [name for name in ("SLURM_STEP_NUM_TASKS",) if os.environ.get(name, "").isdecimal()]
    return int(os.environ[sizes[0]]) if sizes else 0


def communicator_for(device: str) -> str:
    """The communicator of this process; empty where ``mpiexec`` started no others.

    Args:
        device: What ``--device`` says: a GPU takes ``pure_nccl``, the CPU ``naive``.
    """
    if started() < 2:
        return ""
    return "naive" if device in ("", "-1", "cpu", "@numpy") else "pure_nccl"


def ranks_of(communicator: str) -> Ranks:
    """The ranks of a communicator; an empty name is this process on its own."""
    return ChainerMN(communicator) if communicator else Ranks()


def place_on_machine() -> tuple[int, int]:
    """The number of this process among those on its machine, and their number.

    Raises:
        MissingExtraError: mpi4py or MPI is not installed.
    """
    every = world()
    from mpi4py import MPI

    local = every.Split_type(MPI.COMM_TYPE_SHARED)
    return local.Get_rank(), local.Get_size()


def world() -> Any:
    """All processes that ``mpiexec`` started, as MPI's own communicator.

    Raises:
        MissingExtraError: mpi4py or MPI is not installed.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(f"several processes need mpi4py: {error}", hint=pip("mpi")) from None
    return MPI.COMM_WORLD
