"""The contract of a layer type, as tests that a subclass inherits.

Three lines test a layer type of one's own::

    from bridge.testing import LayerCase, LayerContract

    class TestGroupNorm(LayerContract):
        case = LayerCase("GroupNorm", "group_norm_param { group_num: 3 }", ((2, 6, 3, 4),))

pytest finds the class and runs every test of :class:`LayerContract` on it. The engines ONNX Runtime and
Chainer have to be installed (the extras ``runtime`` and ``chainer``); a test that needs a missing
engine is skipped, and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bridge import engines
from bridge.layers.base import REGISTRY, CaffeLayer, registered_name
from bridge.schema import Layer
from bridge.testing import checks, hooks, numbers, weights
from bridge.testing.cases import LayerCase

ContractCheck = Callable[[LayerCase], None]


class LayerContract:
    """What every layer type owes, whatever it computes.

    Attributes:
        case: What is tested: a :class:`LayerCase`, which is tested with several seeds, or a Hypothesis
            strategy that draws one, so that all parameters of the layer are tried.
        examples: How many cases each test draws; by default a fifth of Hypothesis's own number, and 5 at least.
    """

    case: ClassVar[Any]
    examples: ClassVar[int | None] = None
    pytestmark = pytest.mark.hypothesis

    def test_its_definition_builds_the_same_layer(self) -> None:
        """The layer's definition and its stored blobs build a layer with the same attributes."""
        self._hold(checks.definition_builds_the_same)

    def test_its_blobs_have_the_shapes_that_it_demands(self) -> None:
        """``blob_shapes`` and ``roles`` agree; blobs in Caffe's old 4-D form fit, blobs of a wrong size do not."""
        self._hold(checks.blobs_fit)

    def test_engines_agree_and_give_the_inferred_shapes(self) -> None:
        """What each engine computes has the shapes of ``infer``, and the engines differ by less than the bound."""
        self._need_onnx()
        self._hold(checks.engines_agree)

    def test_a_small_fault_is_found(self) -> None:
        """One output that is moved by four times its bound is a difference; few bounds are wider than 0.2 %."""
        self._need_onnx()
        widths: list[float] = []
        self._hold(lambda case: widths.append(checks.faults_are_found(case)))
        assert np.median(widths) <= numbers.WIDEST, f"half of the bounds are wider than {np.median(widths):.2g}"

    def test_a_small_fault_in_its_weights_is_found(self) -> None:
        """One value of each blob, moved so far that a result passes four times its bound, is a difference."""
        self._need_onnx()
        faults: list[float] = []
        self._hold(lambda case: faults.extend(weights.weight_faults_are_found(case)), part=2)
        if faults:
            smallest = np.median(faults)
            assert smallest <= weights.LEAST, f"half of the faults that are found are larger than {smallest:.2g}"

    def test_its_float16_export_stays_within_its_bound(self) -> None:
        """The layer exported with ``half=True`` computes what it computes in float32, as far as float16 can."""
        self._need_onnx()
        self._hold(checks.half_agrees)

    def test_it_takes_the_inputs_that_verify_draws(self) -> None:
        """``bridge verify`` fills the layer's inputs with numbers that it can take."""
        self._need_onnx()
        self._hold(checks.drawn_inputs_fit)

    def test_its_chain_keeps_nothing_between_two_inputs(self) -> None:
        """The chain gives the same bits on its second use, in a copy, and after its arrays were saved and loaded."""
        self._need_chainer()
        self._hold(checks.chain_is_stateless)

    def test_its_changes_go_into_its_definition(self) -> None:
        """``layer.changed(...)`` changes the fields and the definition alike."""
        self._hold(hooks.changes_go_into_the_definition)

    def test_what_it_declares_exists(self) -> None:
        """Roles, axes, counts and fillers that the layer declares are there, and in range."""
        self._hold(hooks.names_and_numbers_fit)
        self._hold(hooks.drawn_inputs_have_their_shapes)

    def test_its_magnitudes_bound_its_sums(self) -> None:
        """Fed magnitudes, ``magnitudes()`` gives at least the magnitude of what the layer gives."""
        self._need_onnx()
        self._hold(hooks.magnitudes_are_no_smaller)

    def test_its_copies_are_copies(self) -> None:
        """Tops of a layer that ``copies`` or ``shares_memory`` have the bits of its bottom."""
        self._need_onnx()
        self._hold(hooks.copies_are_copies)

    def test_it_trains_as_it_declares(self) -> None:
        """Without ``draws_random`` and ``uses_batch`` the layer computes the same in training as in a test."""
        self._need_chainer()
        self._hold(hooks.training_differs_as_declared)

    def test_its_sums_run_over_the_axes_that_it_declares(self) -> None:
        """``summed_axes``, ``adds_many``: one input changes outputs along the declared axes only, else a few."""
        self._need_onnx()
        self._hold(numbers.sums_run_over_the_declared_axes, part=2)

    def test_its_rounding_stays_within_its_bound(self) -> None:
        """``rounding_bound``, ``rounds_near_one``: the bound covers what the layer rounds, for small inputs, too."""
        self._need_onnx()
        self._hold(numbers.rounding_stays_within_its_bound, part=2)

    def test_it_chooses_as_it_declares(self) -> None:
        """``chooses``: where inputs tie, one rounding moves outputs by more than the bound, or else it never does."""
        self._need_onnx()
        found: list[bool] = []
        self._hold(lambda case: found.append(numbers.it_chooses_as_declared(case)), part=2)
        assert any(found), "chooses: no change of one rounding moved an output by more than its bound"

    def test_its_places_are_as_far_as_it_declares(self) -> None:
        """``position_extent``: no value is taken between pixels that are farther away than that."""
        self._need_onnx()
        self._hold(numbers.positions_fit, part=2)

    def test_its_blobs_mean_what_it_declares(self) -> None:
        """``flat_weight``, ``normalises``: the weight's rows and the stored statistics are used in that way."""
        self._need_onnx()
        self._hold(weights.flat_weight_is_the_same, part=2)
        self._hold(weights.statistics_are_used, part=2)

    def test_it_classifies_as_it_declares(self) -> None:
        """``classifies``: a higher score of the right class makes the loss no larger."""
        self._need_chainer()
        self._hold(weights.classes_are_told_apart, part=2)

    # -- for subclasses ------------------------------------------------------------------------------

    def need(self, engine: str) -> None:
        """Skip the test unless an engine works here. Override it where a skip is to be a failure."""
        if problem := engines.missing(engine):
            pytest.skip(str(problem))

    # -- how the tests are run -----------------------------------------------------------------------

    def _hold(self, check: ContractCheck, part: int = 1) -> None:
        """Run a check on every case that is drawn; ``part=2`` draws half as many, unless ``examples`` is set."""
        examples = self.examples or max(5, hypothesis.settings().max_examples // 5) // part

        @hypothesis.settings(max_examples=examples, deadline=None, report_multiple_bugs=False)
        @hypothesis.given(self._cases())
        def holds(case: LayerCase) -> None:
            hypothesis.note(case.prototxt)
            check(case)

        holds()

    def _cases(self) -> Any:
        if isinstance(self.case, LayerCase):
            fixed = self.case
            return st.integers(0, 2**16).map(lambda seed: dataclasses.replace(fixed, seed=seed))
        return self.case

    def _layer_type(self) -> type[CaffeLayer]:
        found: list[type[CaffeLayer]] = []

        @hypothesis.settings(max_examples=1, deadline=None, database=None)
        @hypothesis.given(self._cases())
        def look(case: LayerCase) -> None:
            found.append(REGISTRY[registered_name(case.definition)])

        look()
        return found[0]

    def _need_onnx(self) -> None:
        if self._layer_type().to_onnx is Layer.to_onnx:
            pytest.skip("the layer type has no to_onnx")
        self.need("onnxruntime")

    def _need_chainer(self) -> None:
        if self._layer_type().to_chainer is Layer.to_chainer:
            pytest.skip("the layer type has no to_chainer")
        self.need("chainer")
