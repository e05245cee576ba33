"""Models that Chainer and ChainerCV have as classes, filled by one call, compute what the Caffe net computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bridge
from tests import known_models
from tests.conftest import need

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def run(net: bridge.Net, model: Any, **options: Any) -> tuple[dict[str, Any], np.ndarray, bridge.TransplantReport]:
    """The net's blobs for random images, the images, and the report of the fill."""
    from bridge.chain.functions import chainer

    report = bridge.transplant(net, model, **options)
    for link in model.links():
        if hasattr(link, "eps") and hasattr(link, "avg_var"):
            link.eps = 1e-5
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, *next(iter(net.inputs.values()))[1:])).astype("f")
    inputs = {"data": images, **({"rois": ROIS} if "rois" in net.inputs else {})}
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        return bridge.build_chain(net).run(inputs), images, report


ROIS = np.float32([[0, 0, 0, 100, 100], [0, 10, 20, 150, 120], [0, 30, 30, 60, 90], [0, 0, 0, 159, 159]])


def complete(report: bridge.TransplantReport, unused: str = "") -> None:
    """Every blob is filled, and no parameter is left but those that the net does not have."""
    left = [row for row in report.rows if row.state != "filled"]
    assert all(row.path and unused and unused in row.path for row in left), str(report)


def check(made: Any, expected: Any, tolerance: float = 1e-4) -> None:
    made, expected = made.array, expected.array
    assert np.isfinite(expected).all()
    assert np.abs(made - expected).max() <= tolerance * np.abs(expected).max()


def chainers(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import chainer.links

        return getattr(chainer.links, name)(None)

    return make


@pytest.mark.parametrize(
    ("lines", "make", "options", "scores", "unused"),
    [
        pytest.param(known_models.vgg, "VGG16Layers", {}, ("fc8", "fc8"), "", marks=SLOW),
        pytest.param(known_models.vgg19, "VGG19Layers", {}, ("fc8", "fc8"), "", marks=SLOW),
        (known_models.googlenet, "GoogLeNet", {"by": "order"}, ("loss3_fc", "loss3/classifier"), "loss"),
        (lambda: known_models.resnet(50, 64), "ResNet50Layers", {"by": "order"}, ("fc6", "fc1000"), ""),
        pytest.param(lambda: known_models.resnet(101, 64), "ResNet101Layers", {"by": "order"}, ("fc6", "fc1000"),
                     "conv1/b", marks=SLOW),
        pytest.param(lambda: known_models.resnet(152, 64), "ResNet152Layers", {"by": "order"}, ("fc6", "fc1000"),
                     "conv1/b", marks=SLOW),
    ],
    ids=["vgg16", "vgg19", "googlenet", "resnet50", "resnet101", "resnet152"],
)  # fmt: skip
def test_chainers_models(lines: Any, make: str, options: Any, scores: tuple[str, str], unused: str) -> None:
    from bridge.chain.functions import chainer

    model = chainers(make)()
    blobs, images, report = run(known_models.net_of(lines()), model, **options)
    complete(report, unused)
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        check(model(images, layers=[scores[0]])[scores[0]], blobs[scores[1]])


def chainercv() -> Any:
    """ChainerCV's links."""
    importlib.import_module("bridge.compat").install()
    reason = "ChainerCV is not installed (it has to be built from its source)"
    return pytest.importorskip("chainercv.links", reason=reason)


@SLOW
@pytest.mark.parametrize(
    ("lines", "make", "options", "scores"),
    [
        (known_models.vgg, lambda C: C.VGG16(n_class=1000), {}, "fc8"),
        (lambda: known_models.resnet(50, 64), lambda C: C.ResNet50(n_class=1000, arch="he"), {"by": "order"}, "fc1000"),
        (lambda: known_models.senet(1, 64), lambda C: C.SEResNet50(n_class=1000), {"by": "order"}, "classifier"),
        (lambda: known_models.senet(32, 64), lambda C: C.SEResNeXt50(n_class=1000), {"by": "order"}, "classifier"),
    ],
    ids=["vgg16", "resnet50", "se-resnet50", "se-resnext50"],
)
def test_chainercvs_classifiers(lines: Any, make: Any, options: Any, scores: str) -> None:
    links = chainercv()
    from bridge.chain.functions import chainer

    model = make(links)
    blobs, images, report = run(known_models.net_of(lines()), model, **options)
    complete(report)
    model.pick = "fc8" if scores == "fc8" else "fc6"
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        check(model(images), blobs[scores])


@SLOW
@pytest.mark.parametrize("size", [300, 512])
def test_chainercvs_ssd(size: int) -> None:
    links = chainercv()
    from bridge.chain.functions import F, chainer

    net, model = known_models.net_of(known_models.ssd(size)), getattr(links, f"SSD{size}")(n_fg_class=20)
    blobs, images, report = run(net, model, by="order")
    complete(report)
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        made = model(images)
    for values, kind, width in zip(made, ("loc", "conf"), (4, 21), strict=True):
        parts = [blobs[name] for name in blobs if name.endswith(f"_mbox_{kind}")]
        flat = [F.reshape(F.transpose(part, (0, 2, 3, 1)), (1, -1, width)) for part in parts]
        check(values, F.concat(flat, axis=1))


@SLOW
def test_chainercvs_faster_rcnn() -> None:
    links = chainercv()
    from bridge.chain.functions import F, chainer

    net, model = known_models.net_of(known_models.faster_rcnn()), links.FasterRCNNVGG16(n_fg_class=20)
    args = (np.zeros((1, 3, 160, 160), "f"), 1.0)
    blobs, images, report = run(net, model, by="order", args=args)
    complete(report)
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        features = model.extractor(images)
        hidden = F.relu(model.rpn.conv1(features))
        check(model.rpn.loc(hidden), blobs["rpn_bbox_pred"])
        check(model.rpn.score(hidden), blobs["rpn_cls_score"])
        places, scores = model.head(features, ROIS[:, [2, 1, 4, 3]], ROIS[:, 0].astype("i"))
        check(places, blobs["bbox_pred"])
        check(scores, blobs["cls_score"])


@SLOW
def test_chainercvs_segnet() -> None:
    links = chainercv()
    from bridge.chain.functions import chainer

    net, model = known_models.net_of(known_models.segnet_basic()), links.SegNetBasic(n_class=11)
    blobs, images, report = run(net, model, by="order")
    complete(report)
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        check(model(images), blobs["conv_classifier"])
