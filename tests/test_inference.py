"""A net as it was trained becomes the net as it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.inference import inference_net, training_net
from bridge.errors import ModelError, UsageError
from bridge.layers.data_source import DataSource
from bridge.schema import Net, RawLayer, RawNet
from tests.conftest import GOLDEN, TRAINING, need
from tests.nets import Session, make

DATA = 'layer { name: "data" type: "Data" top: "data" top: "label" '
FC = "inner_product_param { num_output: 5 } }\n"
TRAIN_VAL = (
    DATA + "include { phase: TRAIN } transform_param { mirror: true crop_size: 9 } data_param { batch_size: 64 } }\n"
    + DATA + "include { phase: TEST } transform_param { crop_size: 9 } data_param { batch_size: 50 } }\n"
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
    "convolution_param { num_output: 4 kernel_size: 3 group: 2 } }\n"
    'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }\n'
    f'layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" {FC}'
    'layer { name: "top1" type: "Accuracy" bottom: "fc" bottom: "label" top: "top1" include { phase: TEST } }\n'
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }\n'
)  # fmt: skip
DEPLOY = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 50 dim: 6 dim: 9 dim: 9 } } }\n'
    + TRAIN_VAL[TRAIN_VAL.index('layer { name: "conv"') : TRAIN_VAL.index('layer { name: "top1"')]
    + 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n'
)


def parsed(text: str, phase: str = "TEST") -> Net:
    return assemble(None, prototxt.parse(text), phase=phase)


def trained(text: str = TRAIN_VAL, phase: str = "TEST") -> Net:
    """The net with the weights that the deploy form of it was made with."""
    blobs = make(DEPLOY)
    stored = tuple(
        RawLayer(layer.name, layer.type, layer.definition, tuple(blob for _, blob in layer.blobs.entries()))
        for layer in blobs.layers
        if layer.blobs
    )
    return assemble(RawNet("w", stored, source="w.caffemodel"), prototxt.parse(text), phase=phase)


def kinds(net: Net) -> list[tuple[str, str]]:
    return [(layer.name, layer.type) for layer in net.layers]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_train_val_net_becomes_its_deploy_net(phase: str) -> None:
    net = inference_net(trained(phase=phase))
    assert kinds(net) == kinds(parsed(DEPLOY))
    assert net.inputs == {"data": (64 if phase == "TRAIN" else 50, 6, 9, 9)}  # the channels are the weight's
    assert net.outputs == ("prob",)


def test_a_train_val_net_computes_what_its_deploy_net_does() -> None:
    need("onnxruntime", "chainer")
    x = np.random.default_rng(0).standard_normal((3, 6, 9, 9)).astype(np.float32)
    expected = engines.make("chainer", make(DEPLOY)).outputs({"data": x})["prob"]
    for engine in ("onnxruntime", "chainer"):
        outputs = engines.make(engine, trained()).outputs({"data": x, "label": np.zeros(3, np.float32)})
        assert list(outputs) == ["prob"]
        np.testing.assert_allclose(outputs["prob"], expected, 1e-5, 1e-6)
    session = Session(trained(phase="TRAIN"), inputs={"data": ["n", 6, 9, 9]})
    assert session.shapes() == {"data": ["n", 6, 9, 9], "prob": ["n", 5]}
    np.testing.assert_allclose(session({"data": x})["prob"], expected, 1e-5, 1e-6)


def test_every_thing_done_is_noted() -> None:
    need("onnxruntime")
    assert [note.partition(" of ")[0] for note in inference_net(trained()).notes] == [
        "layer 'loss' (SoftmaxWithLoss) became layer 'prob' (Softmax)",
        "layer 'data' (Data) became the input 'data'",
        "left out, as they serve training only: layer 'top1' (Accuracy)",
    ]
    assert Session(trained()).graph.notes[:3] == list(inference_net(trained()).notes)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda path: path.name)
def test_a_net_for_inference_stays_the_very_net(case: Path) -> None:
    net = bridge.load(case / "deploy.prototxt", next(case.glob("*.caffemodel")))
    served = inference_net(net)
    assert served.layers is net.layers
    assert inference_net(served) is served


def test_converting_twice_is_converting_once() -> None:
    once = inference_net(trained())
    assert inference_net(once) is once


def test_a_training_net_of_fixtures_exports() -> None:
    need("onnxruntime")
    recipe = TRAINING / "sgd_fixed"
    session = Session(bridge.load(recipe / "train.prototxt", recipe / "end.caffemodel"))
    assert session.shapes() == {"data": ["batch", 1, 28, 28], "prob": ["batch", 5]}


# ---- names and losses --------------------------------------------------------------------------


def heads(*layers: str) -> Net:
    """A net of one input and one feature, with these layers behind it."""
    text = 'input: "x" input_shape { dim: 2 dim: 4 }\n'
    return parsed(text + f'layer {{ name: "f" type: "InnerProduct" bottom: "x" top: "f" {FC}' + "\n".join(layers))


def loss(
    kind: str = "SoftmaxWithLoss", bottoms: str = "f label", tops: str = "", more: str = "", name: str = "l"
) -> str:
    wiring = "".join(f'bottom: "{blob}" ' for blob in bottoms.split()) + "".join(f'top: "{t}" ' for t in tops.split())
    return f'layer {{ name: "{name}" type: "{kind}" {wiring} {more} }}'


def fc(name: str, bottom: str = "f") -> str:
    return f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {FC}'


def test_a_second_top_names_the_softmax() -> None:
    assert inference_net(heads(loss(tops="l probabilities"))).outputs == ("probabilities",)


def test_a_softmax_that_is_there_is_not_doubled() -> None:
    softmax = 'layer { name: "s" type: "Softmax" bottom: "f" top: "s" }'
    assert kinds(inference_net(heads(loss(), softmax)))[1:] == [("f", "InnerProduct"), ("s", "Softmax")]
    assert inference_net(heads(softmax, loss(bottoms="s label"))).outputs == ("s",)


def test_a_taken_name_is_not_taken_again() -> None:
    named = 'layer { name: "prob" type: "TanH" bottom: "f" top: "prob" }'
    assert set(inference_net(heads(named, loss())).outputs) == {"prob", "f_prob"}
    more = 'layer { name: "f_prob" type: "TanH" bottom: "f" top: "f_prob" }'
    assert set(inference_net(heads(named, more, loss())).outputs) == {"prob", "f_prob", "f_prob_2"}


def test_the_axis_of_the_softmax_is_the_losss() -> None:
    net = inference_net(heads(loss(more="softmax_param { axis: -1 }")))
    assert net.layers[-1].axis == -1  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["EuclideanLoss", "HingeLoss", "CenterLoss", "SomebodysOwnLoss"])
def test_another_loss_leaves_what_it_judged(kind: str) -> None:
    net = inference_net(heads(loss(kind)))
    assert kinds(net)[1:] == [("f", "InnerProduct")]
    assert net.outputs == ("f",)


def test_a_loss_between_two_computed_blobs_leaves_both() -> None:
    net = inference_net(heads(fc("g", "x"), loss("ContrastiveLoss", "f g label")))
    assert net.outputs == ("f", "g")


def test_of_a_prediction_and_a_target_the_learned_one_stays_wherever_it_stands() -> None:
    flat = 'layer { name: "flat" type: "Flatten" bottom: "x" top: "flat" }'
    assert inference_net(heads(flat, fc("g"), loss("EuclideanLoss", "flat g"))).outputs == ("g",)


def test_auxiliary_heads_go_and_heads_of_other_tasks_stay() -> None:
    auxiliary = [fc("a"), loss(bottoms="a label", more="loss_weight: 0.3", name="la")]
    net = inference_net(heads(*auxiliary, loss("Accuracy", "a label", "acc"), fc("m"), loss(bottoms="m label")))
    assert kinds(net)[1:] == [("f", "InnerProduct"), ("m", "InnerProduct"), ("prob", "Softmax")]
    task = [fc("a"), loss(bottoms="a other", more="loss_weight: 0.3", name="la")]
    assert set(inference_net(heads(*task, fc("m"), loss(bottoms="m label"))).outputs) == {"prob", "m_prob"}


def test_a_python_layer_with_a_loss_weight_is_a_loss() -> None:
    python = 'layer { name: "py" type: "Python" bottom: "f" bottom: "label" top: "l" loss_weight: 1 }'
    assert inference_net(heads(python)).outputs == ("f",)


def test_the_loss_of_a_detector_leaves_places_classes_and_priors() -> None:
    prior = 'layer { name: "p" type: "PriorBox" bottom: "f" bottom: "x" top: "p" prior_box_param { min_size: 2 } }'
    net = inference_net(heads(fc("loc"), fc("conf"), prior, loss("MultiBoxLoss", "loc conf p label")))
    assert set(net.outputs) == {"loc", "conf", "p"}
    evaluated = inference_net(heads(fc("found"), loss("DetectionEvaluate", "found label", "e")))
    assert evaluated.outputs == ("found",)


def test_what_only_labels_feed_goes() -> None:
    split = 'layer { name: "s" type: "Slice" bottom: "label" top: "a" top: "b" slice_param { axis: 0 } }'
    side = 'layer { name: "t" type: "Power" bottom: "b" top: "t" }'
    silence = 'layer { name: "q" type: "Silence" bottom: "t" }'
    net = inference_net(heads(split, side, silence, loss("EuclideanLoss", "f a")))
    assert kinds(net) == [("input", "Input"), ("f", "InnerProduct")]
    assert net.outputs == ("f",)
    assert list(net.inputs) == ["x"]


def test_a_piece_that_only_a_loss_read_does_not_become_an_output() -> None:
    pieces = 'layer { name: "s" type: "Slice" bottom: "x" top: "a" top: "b" }'
    net = inference_net(heads(pieces, fc("g", "a"), loss("EuclideanLoss", "g b")))
    assert net.outputs == ("f", "g")


def test_a_split_keeps_the_tops_that_are_read() -> None:
    text = (
        'layer { name: "s" type: "Split" bottom: "f" top: "s0" top: "s1" top: "s2" }\n'
        'layer { name: "t" type: "TanH" bottom: "s2" top: "t" }\n'
    )
    net = inference_net(heads(text, loss(bottoms="s0 label"), loss("Accuracy", "s1 label", "acc")))
    assert net["s"].tops == ("s2",)
    assert net["prob"].bottoms == ("f",)


def test_an_input_that_nobody_reads_stays_unless_it_is_a_label() -> None:
    more = 'layer { name: "info" type: "Input" top: "info" input_param { shape { dim: 1 dim: 3 } } }'
    assert list(inference_net(heads(more, loss())).inputs) == ["x", "info"]


# ---- data layers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ('type: "Data" top: "d" top: "l" data_param { batch_size: 4 } '
         "transform_param { crop_size: 9 force_gray: true }", ((4, 1, 9, 9), (4,))),
        ('type: "Data" top: "d" data_param { batch_size: 4 } '
         "transform_param { crop_size: 9 mean_value: 1 mean_value: 2 mean_value: 3 }", ((4, 3, 9, 9),)),
        ('type: "Data" top: "d" data_param { batch_size: 4 } transform_param { crop_size: 9 }', (None,)),
        ('type: "Data" top: "d" data_param { batch_size: 4 }', (None,)),
        ('type: "ImageData" top: "d" top: "l" image_data_param { batch_size: 2 new_height: 5 new_width: 6 }',
         ((2, 3, 5, 6), (2,))),
        ('type: "ImageData" top: "d" image_data_param { is_color: false } transform_param { crop_size: 7 }',
         ((1, 1, 7, 7),)),
        ('type: "ImageData" top: "d" image_data_param { batch_size: 2 }', (None,)),
        ('type: "MemoryData" top: "d" top: "l" memory_data_param { batch_size: 2 channels: 1 height: 3 width: 4 }',
         ((2, 1, 3, 4), (2,))),
        ('type: "WindowData" top: "d" top: "l" window_data_param { batch_size: 8 crop_size: 9 }', ((8, 3, 9, 9), (8,))),
        ('type: "HDF5Data" top: "d" top: "l" hdf5_data_param { source: "list" batch_size: 8 }', (None, None)),
    ],
)  # fmt: skip
def test_parameters_tell_the_shape_of_a_batch(layer: str, shapes: tuple[object, ...]) -> None:
    (source,) = parsed(f'layer {{ name: "source" {layer} }}').layers
    assert isinstance(source, DataSource)
    assert source.input_shapes == shapes


def test_a_transformation_is_read() -> None:
    text = DATA + 'transform_param { scale: 0.00390625 mirror: true crop_size: 227 mean_file: "mean.binaryproto" } }'
    (source,) = parsed(text).layers
    transform = source.transform  # type: ignore[attr-defined]
    assert (transform.scale, transform.mirror, transform.crop_size) == (0.00390625, True, 227)
    assert transform.mean_file == "mean.binaryproto"


def test_an_old_data_layer_has_its_transformation_too() -> None:
    old = 'layers { name: "d" type: DATA top: "d" data_param { batch_size: 3 scale: 0.5 crop_size: 9 mirror: true } }'
    (source,) = parsed(old).layers
    assert source.transform.crop_size == 9  # type: ignore[attr-defined]
    assert source.transform.scale == 0.5  # type: ignore[attr-defined]


def test_a_shape_that_nothing_tells_must_be_given() -> None:
    text = (
        'layer { name: "d" type: "HDF5Data" top: "d" top: "label" hdf5_data_param { source: "list" batch_size: 8 } }\n'
        'layer { name: "p" type: "Power" bottom: "d" top: "p" power_param { scale: 2 } }\n'
        + loss("EuclideanLoss", "p label")
    )
    need("onnxruntime")
    with pytest.raises(ModelError, match="the shape of input 'd' is not known"):
        Session(parsed(text))
    assert Session(parsed(text), inputs={"d": ["n", 3]}).shapes() == {"d": ["n", 3], "p": ["n", 3]}


def test_an_input_that_only_training_has_cannot_be_given_a_shape() -> None:
    need("onnxruntime")
    with pytest.raises(UsageError, match="no input 'label'"):
        Session(trained(), inputs={"label": [1]})


def test_unknown_layers_without_bottoms_are_inputs() -> None:
    python = 'layer { name: "py" type: "Python" top: "d" top: "label" python_param { module: "m" layer: "L" } }\n'
    net = inference_net(parsed(python + fc("g", "d") + loss(bottoms="g label")), {"d": [2, 3]})
    assert net.inputs == {"d": (2, 3)}
    assert net.outputs == ("prob",)


DUMMY = 'layer {{ name: "d" type: "DummyData" top: "d" dummy_data_param {{ shape {{ dim: 2 dim: 3 }} {} }} }}\n'


def test_random_data_is_an_input_and_constant_data_is_a_constant() -> None:
    tanh = 'layer { name: "t" type: "TanH" bottom: "d" top: "t" }\n'
    gaussian = DUMMY.format('data_filler { type: "gaussian" }')
    assert inference_net(parsed(gaussian + tanh)).inputs == {"d": (2, 3)}
    constant = parsed(DUMMY.format("data_filler { value: 2 }") + tanh)
    assert inference_net(constant).layers is constant.layers
    assert inference_net(constant, {"d": [4, 3]}).inputs == {"d": (4, 3)}


def test_constant_data_is_an_input_where_a_net_in_training_has_no_other() -> None:
    net = parsed(DUMMY.format("") + fc("g", "d") + loss(bottoms="g label"))
    assert inference_net(net).inputs == {"d": (2, 3)}
    other = parsed(
        DUMMY.format("")
        + 'input: "x" input_shape { dim: 2 dim: 3 }\n'
        + fc("g", "x")
        + 'layer { name: "e" type: "Concat" bottom: "g" bottom: "d" top: "e" }\n'
        + loss(bottoms="e label")
    )
    assert list(inference_net(other).inputs) == ["x"]
    assert "d" in [layer.name for layer in inference_net(other).layers]


def test_a_training_net_is_fed_from_outside_and_keeps_its_losses() -> None:
    need("chainer")
    net = training_net(trained(phase="TRAIN"))
    assert net.inputs == {"data": (64, 6, 9, 9), "label": (64,)}
    x = np.zeros((2, 6, 9, 9), np.float32)
    assert float(bridge.build_chain(net).loss({"data": x, "label": np.zeros(2, np.float32)}).array) > 0
    assert training_net(net) == net or kinds(training_net(net)) == kinds(net)


def test_a_loss_in_python_is_a_loss() -> None:
    python = loss("Python", more='python_param { module: "losses.centers" layer: "CenterLossLayer" }')
    assert kinds(inference_net(heads(python)))[1:] == [("f", "InnerProduct")]
    other = loss("Python", tops="y", more='python_param { module: "m" layer: "LossyLayer" }')
    assert len(inference_net(heads(other))) == 3, "a name with another end says nothing"
