"""What LSTM and RNN share: time steps one after the other, over sequences that begin anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bridge.layers.base import CaffeLayer
from bridge.schema import Shape, count, times
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@dataclass(frozen=True, eq=False, kw_only=True)
class Recurrent(CaffeLayer):
    """A layer that carries a state from step to step.

    Bottoms: ``x`` (T, N, ...); ``cont`` (T, N), 0 where a sequence begins and 1 within it; perhaps a static
    input (N, ...) that every step sees; with ``expose_hidden`` the states before the first step, (1, N, H) each.
    Tops: the outputs (T, N, H); with ``expose_hidden`` the states after the last step.
    Without ``expose_hidden`` the first step starts from states of 0. (Caffe starts from where its last
    forward pass ended, which is the same where ``cont`` begins with 0.)

    In training no gradient goes through exposed states, in or out, as in Caffe.

    The steps are unrolled: T is fixed, N can stay open, and no runtime needs control flow.

    Source: caffe.proto ``RecurrentParameter``, recurrent_layer.cpp.
    """

    message = "recurrent_param"
    filler_fields = {
        "static_weight": "weight_filler", "hidden_weight": "weight_filler",
        "output_weight": "weight_filler", "output_bias": "bias_filler",
    }  # fmt: skip
    states: ClassVar[int] = 1
    """How many states there are: the output, and for LSTM the cell."""

    num_output: int
    expose_hidden: bool = False

    @property
    def static(self) -> bool:
        """Whether there is an input that every step sees."""
        return len(self.bottoms) > 2 + self.expose_hidden * self.states

    def check_wiring(self) -> None:
        exposed = self.states * self.expose_hidden
        least = 2 + exposed
        if not least <= len(self.bottoms) <= least + 1:
            raise self.fail(f"has {len(self.bottoms)} bottoms", expected=f"{least} or {least + 1}")
        if len(self.tops) != 1 + exposed:
            raise self.fail(f"has {len(self.tops)} tops", expected=f"{1 + exposed}")

    def batch_axis(self, bottom: int) -> int:
        return 0 if self.static and bottom == 2 else 1

    def _input_shapes(self, gates: int, bottoms: tuple[Shape, ...]) -> dict[str, Shape]:
        """The shapes of the blobs that meet the inputs."""
        shapes: dict[str, Shape] = {"weight": (gates, count(bottoms[0][2:])), "bias": (gates,)}
        return {**shapes, "static_weight": (gates, count(bottoms[2][1:]))} if self.static else shapes

    def fill(self, bottom: int) -> Fill | None:
        return _continues if bottom == 1 else None

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 3:
            raise self.fail(f"bottom 0 is {times(bottoms[0])}", expected="steps x samples x inputs")
        steps, samples = bottoms[0][:2]
        if self.static and (len(bottoms[2]) < 2 or bottoms[2][0] != samples):
            raise self.fail(f"bottom 2 is {times(bottoms[2])}", expected=f"{samples} samples x inputs")
        state = (1, samples, self.num_output)
        wanted = {1: (steps, samples), **dict.fromkeys(range(2 + self.static, len(bottoms)), state)}
        for index, shape in wanted.items():
            if bottoms[index] != shape:
                raise self.fail(f"bottom {index} is {times(bottoms[index])}", expected=f"{times(shape)}")
        exposed = (state,) * self.states if self.expose_hidden else ()
        return ((steps, samples, self.num_output), *exposed)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> list[str]:
        """Multiply all inputs at once, then go step by step."""
        steps = g.shape(x[0])[0]
        flat = x[0] if len(g.shape(x[0])) == 3 else g.Reshape(x[0], g.ints([0, 0, -1]))
        fed = g.Add(g.MatMul(flat, self._turned(g, "weight")), g.blob(self, "bias"))
        if self.static:
            fed = g.Add(fed, g.MatMul(g.reshape(x[2], [0, -1], len(g.shape(x[2]))), self._turned(g, "static_weight")))
        cont = g.Unsqueeze(x[1], g.ints([2]))
        state = list(x[2 + self.static :])
        outputs = []
        for step, (now, go) in enumerate(zip(_steps(g, fed, steps), _steps(g, cont, steps), strict=True)):
            output, state = self.onnx_step(g, now, go, state if step or self.expose_hidden else [])
            outputs.append(output)
        sequence = outputs[0] if steps == 1 else g.Concat(*outputs, axis=0)
        return [sequence, *(state if self.expose_hidden else [])]

    def _turned(self, g: OnnxBuilder, role: str) -> str:
        return g.Transpose(g.blob(self, role), perm=[1, 0])

    def onnx_step(self, g: OnnxBuilder, fed: str, cont: str, state: list[str]) -> tuple[str, list[str]]:
        """One step: the output and the states, from what the inputs gave and the states before, none for 0."""
        raise NotImplementedError

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        fed = F.linear(x[0], link.W, link.b, n_batch_axes=2)
        if self.static:
            fed = fed + F.broadcast_to(F.linear(x[2], link.static_weight)[None], fed.shape)
        state = [F.as_variable(value.array[0]) for value in x[2 + self.static :]]  # Caffe gives them no gradient
        outputs = []
        for step in range(len(fed)):
            go = x[1].array[step][:, None]
            output, state = self.chainer_step(F, link, fed[step], go, state if step or self.expose_hidden else [])
            outputs.append(output)
        exposed = state if self.expose_hidden else []
        return (F.stack(outputs), *(F.as_variable(value.array[None]) for value in exposed))

    def chainer_step(
        self, F: ChainerFunctions, link: LayerArrays, fed: Any, cont: Any, state: list[Any]
    ) -> tuple[Any, list[Any]]:
        """As :meth:`onnx_step`, on variables (N, ...), but ``cont`` an array (N, 1)."""
        raise NotImplementedError


def _continues(rng: np.random.Generator, shape: Shape, shapes: Sequence[Shape | None]) -> Any:
    """Whether a sequence goes on, (T, N): 0 where one begins."""
    flags = rng.integers(0, 2, shape)
    flags[:1] = 0
    return flags


def _steps(g: OnnxBuilder, value: str, steps: int) -> list[str]:
    """A value cut into its time steps, one of extent 1 each."""
    return [value] if steps == 1 else list(g.op("Split", value, g.ints([1] * steps), outputs=steps, axis=0))
