"""Which layers a pattern freezes: what it names, and the normalisations that belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import UsageError
from bridge.finetuning.selection import Selection, frozen_layers, some
from tests.conftest import need
from tests.finetuning import config, trained

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "data_bn" type: "BatchNorm" bottom: "data" top: "d" }
layer { name: "data_scale" type: "Scale" bottom: "d" top: "d" scale_param { bias_term: true } }
layer { name: "conv1" type: "Convolution" bottom: "d" top: "a" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "norm1" type: "BatchNorm" bottom: "a" top: "a" }
layer { name: "affine1" type: "Scale" bottom: "a" top: "a" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "a" top: "a" }
layer { name: "conv2" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "norm2" type: "BN" bottom: "b" top: "b" }
layer { name: "shift2" type: "Bias" bottom: "b" top: "c" }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "c" top: "s" }
layer { name: "norm3" type: "BatchNorm" bottom: "s" top: "n" }
layer { name: "pool" type: "Pooling" bottom: "n" top: "p" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "p" top: "fc" inner_product_param { num_output: 5 } }
"""
FIRST = ("data_bn", "data_scale", "conv1", "norm1", "affine1")
SECOND = ("conv2", "norm2", "shift2")
ALL = (*FIRST, *SECOND, "norm3", "fc")


def chosen(new: tuple[str, ...] = (), **wish: Any) -> tuple[str, ...]:
    return frozen_layers(assemble(None, prototxt.parse(NET)), Selection(**wish), new).names


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (("conv1",), FIRST),
        (("conv2",), SECOND),
        (("conv*",), (*FIRST, *SECOND, "norm3")),
        (("norm2",), ("norm2", "shift2")),
        (("fc",), ("fc",)),
    ],
)
def test_a_normalisation_is_frozen_with_the_layers_that_it_reads(
    patterns: tuple[str, ...], frozen: tuple[str, ...]
) -> None:
    assert chosen(freeze=patterns) == frozen


def test_exactly_freezes_what_the_patterns_name() -> None:
    assert chosen(freeze=("conv*",), exactly=True) == ("conv1", "conv2")
    assert chosen(("fc",), freeze=("*",), exactly=True) == ALL
    assert chosen(train=("conv2",), exactly=True) == (*FIRST, "norm2", "shift2", "norm3", "fc")


def test_what_is_trained_takes_its_normalisations_along() -> None:
    assert chosen(train=("conv2",)) == (*FIRST, "fc")
    assert chosen(train=("conv1",)) == ("conv2", "norm2", "shift2", "fc")
    assert chosen(train=("norm3",)) == (*FIRST, *SECOND, "fc")
    assert chosen(("fc",), train_head=True) == ALL[:-1]
    assert chosen(("fc",), train_head=True, train=("conv2",)) == FIRST


def test_a_pattern_leaves_a_new_layer_trained_and_its_name_freezes_it() -> None:
    net = assemble(None, prototxt.parse(NET))
    assert chosen(("fc",), freeze=("*",)) == ALL[:-1]
    assert chosen(("fc",), freeze=("fc",)) == ("fc",)
    assert chosen(("fc",), freeze=("f*",)) == ("fc",)  # it names nothing else
    notes = frozen_layers(net, Selection(freeze=("*",)), ("fc",)).notes
    assert any("'*' leaves the new layer 'fc' trained; --freeze fc freezes it" in note for note in notes)
    assert any("stay as their fillers" in note for note in frozen_layers(net, Selection(freeze=("fc",)), ("fc",)).notes)


def test_a_note_names_the_layers_that_follow() -> None:
    notes = frozen_layers(assemble(None, prototxt.parse(NET)), Selection(freeze=("conv*",)), ()).notes
    assert notes == (
        "frozen with what they normalise: data_bn, data_scale, norm1 ... norm3 (7 layers); --freeze-exactly leaves "
        "them trained",
    )
    assert some("abc") == "a, b, c"


def test_wishes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="--freeze with --train"):
        chosen(freeze=("conv1",), train=("fc",))
    with pytest.raises(UsageError, match="no new layer"):
        chosen(train_head=True)
    with pytest.raises(UsageError, match="no layer with parameters is called 'cnv1'"):
        chosen(freeze=("cnv1",))


def test_a_run_with_all_layers_frozen_says_what_to_do(tmp_path: Path) -> None:
    need("chainer")
    with pytest.raises(UsageError, match="nothing to train") as caught:
        trained(config(tmp_path, heads=(), freeze=("*",), data=str(tmp_path / "data.npz")))
    assert "--head" in caught.value.hint


def test_the_head_alone_is_trained(tmp_path: Path) -> None:
    need("chainer")
    for name, wish in (("head", {"freeze": (), "train_head": True}), ("star", {"freeze": ("*",)})):
        loop = trained(config(tmp_path, output=str(tmp_path / name), epochs=1, **wish))
        assert loop.plan.stages[0].trained == ("fc8",)
