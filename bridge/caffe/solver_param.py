"""A solver's parameters: what the solver.prototxt says, and the nets that it names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.caffe.net import Net
from bridge.caffe.proto import caffe_pb2
from bridge.caffe.state import STATE
from bridge.caffe_files import prototxt
from bridge.errors import FormatError, MissingFileError, UsageError
from bridge.finetuning.recipe import Recipe, read_solver
from bridge.schema.message import Message

_TRAIN = ("train_net_param", "train_net", "net_param", "net")


class SolverSettings:
    """A solver.prototxt.

    Args:
        message: The parsed file.
        where: The file, for messages.

    Attributes:
        message: The parsed file.
        param: The same as a ``SolverParameter``, which scripts read and change.

    Raises:
        FormatError: A field is unknown or of the wrong kind, or fields contradict each other.

    Source: caffe.proto ``SolverParameter``, upgrade_proto.cpp ``UpgradeSolverAsNeeded``.
    """

    def __init__(self, message: Message, where: str) -> None:
        from google.protobuf import text_format

        self.message, self.where = message, where
        recipe = read_solver(message)
        if recipe.lr_policy == "cosine":
            raise FormatError("Caffe has no lr_policy 'cosine'", where=where)
        self.param: Any = caffe_pb2.SolverParameter()
        plain = message.copy()
        for name in ("solver_type", "type", "net_param", "train_net_param", "test_net_param"):
            plain.set(name)
        try:
            text_format.Merge(prototxt.format(plain), self.param, allow_unknown_field=True)
        except text_format.ParseError as error:
            raise FormatError(str(error), where=where) from None
        self.param.type = recipe.type
        if self.param.average_loss < 1:
            raise FormatError(f"average_loss is {self.param.average_loss}", expected="at least 1", where=where)
        self._recipe = recipe

    @classmethod
    def read(cls, file: Any) -> SolverSettings:
        """The settings in a file.

        Raises:
            MissingFileError: It does not exist.
        """
        path = Path(os.fsdecode(file))
        if not path.is_file():
            raise MissingFileError("does not exist", where=str(path))
        return cls(prototxt.parse_file(path), str(path))

    def use_type(self, kind: str) -> None:
        """Have the solver's type be this one, whatever the file says.

        Raises:
            FormatError: The file's other fields do not go with it.
        """
        if kind != self._recipe.type:
            self.param.type = kind
            try:
                self._recipe = dataclasses.replace(self._recipe, type=kind)
            except UsageError as error:
                raise FormatError(str(error.args[0]), where=self.where) from None

    @property
    def recipe(self) -> Recipe:
        """What updates follow; ``base_lr`` and ``max_iter`` as they are in :attr:`param` now."""
        rate, most = float(self.param.base_lr), int(self.param.max_iter)
        if (rate, most) != (self._recipe.base_lr, self._recipe.max_iter):
            self._recipe = dataclasses.replace(self._recipe, base_lr=rate, max_iter=most)
        return self._recipe

    def definition(self) -> Message:
        """The ``NetParameter`` to train. Source: ``Solver::InitTrainNet``.

        Raises:
            FormatError: The file names no net, or several.
        """
        given = [name for name in _TRAIN if name in self.message]
        if len(given) != 1:
            found = " and ".join(given) or "no net"
            raise FormatError(f"names {found}", expected=f"one of {', '.join(_TRAIN)}", where=self.where)
        return self._definition(given[0], 0)

    def use_net(self, file: str) -> None:
        """Have this prototxt be the net to train and to test with, whatever the file says."""
        for name in (*_TRAIN, "test_net", "test_net_param"):
            self.message.set(name)
        self.message.set("net", file)

    def train_net(self) -> Net:
        """The net to train, with the weights that the file names. Source: ``Solver::InitTrainNet``.

        Raises:
            FormatError: The file names no net, or several.
        """
        return self._net(self.definition(), "TRAIN", self.param.train_state)

    def test_nets(self) -> list[Net]:
        """The nets to test with: one for each ``test_iter``. Source: ``Solver::InitTestNets``.

        Raises:
            FormatError: There are not as many nets as ``test_iter``.
        """
        own = [*self._all("test_net_param"), *self._all("test_net")]
        generic = [name for name in ("net_param", "net") if name in self.message]
        wanted = len(self.param.test_iter)
        if wanted < len(own) or (wanted > len(own) and not generic):
            raise FormatError(f"has {wanted} test_iter for {len(own)} test nets", expected="one each", where=self.where)
        sources = own + [(generic[0], 0) for _ in range(wanted - len(own))]
        states = list(self.param.test_state) or [self.param.train_state.__class__()] * wanted
        if len(states) != wanted:
            raise FormatError(f"has {len(states)} test_state for {wanted} test nets", where=self.where)
        if sources and self.param.test_interval < 1:
            raise FormatError("has test_iter without a positive test_interval", where=self.where)
        pairs = zip(sources, states, strict=True)
        return [self._net(self._definition(*source), "TEST", state) for source, state in pairs]

    def _all(self, name: str) -> Iterator[tuple[str, int]]:
        return ((name, index) for index, _ in enumerate(self.message.all(name)))

    def _definition(self, name: str, index: int) -> Message:
        value = self.message.all(name)[index]
        if isinstance(value, Message):
            return value
        path = STATE.resolve(str(value))
        if not path.is_file():
            hint = "paths in a solver.prototxt are relative to the working directory, as in Caffe"
            raise MissingFileError("does not exist", where=f"{self.where}: {name} '{path}'", hint=hint)
        return prototxt.parse_file(path)

    def _net(self, definition: Message, phase: str, state: Any) -> Net:
        net = Net.from_message(definition, phase, state.level, tuple(state.stage), definition.where)
        for file in self.param.weights:
            net.copy_from(",".join(part.strip() for part in file.split(",")))
        return net

    def check_snapshots(self) -> None:
        """Source: ``Solver::CheckSnapshotWritePermissions``.

        Raises:
            UsageError: Snapshots are to be written and have no place to go.
        """
        if not self.param.snapshot:
            return
        if not self.param.HasField("snapshot_prefix"):
            raise UsageError("snapshot is given without snapshot_prefix", where=self.where)
        folder = Path(f"{self.param.snapshot_prefix}_iter_0").parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"snapshot_prefix '{self.param.snapshot_prefix}': cannot write there", where=self.where)
