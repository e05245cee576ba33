"""Images, messages, specifications and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import caffe
from bridge.caffe import coord_map, net_spec
from bridge.caffe.proto import caffe_pb2
from bridge.errors import BridgeError, MissingExtraError, UsageError
from tests.caffe_door.nets import SMALL, close, make, plain, write
from tests.conftest import ROOT, need

L, P = caffe.layers, caffe.params


# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 2, 3, 4, 5)])
def test_blobproto_and_back(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    blob = caffe.io.array_to_blobproto(values, diff=-values)
    close(caffe.io.blobproto_to_array(blob), values)
    close(caffe.io.blobproto_to_array(blob, return_diff=True), -values)


def test_a_legacy_blobproto() -> None:
    blob = caffe_pb2.BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
    assert caffe.io.blobproto_to_array(blob).shape == (1, 2, 1, 3)


def test_blobprotovector() -> None:
    arrays = [np.eye(3), np.arange(4.0)]
    found = caffe.io.blobprotovector_str_to_arraylist(caffe.io.arraylist_to_blobprotovector_str(arrays))
    for mine, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_datum(dtype: Any) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    datum = caffe.io.array_to_datum(values, label=5)
    assert datum.label == 5
    found = caffe.io.datum_to_array(caffe_pb2.Datum.FromString(datum.SerializeToString()))
    np.testing.assert_array_equal(found, values)
    found[0] = 0  # it is the caller's own
    with pytest.raises(UsageError, match="Incorrect array shape: 2 x 3"):
        caffe.io.array_to_datum(values[:, :, 0])


def test_any_prototxt_merges() -> None:
    from google.protobuf import text_format

    files = [*(ROOT / "fixtures" / "golden").rglob("*.prototxt"), *(ROOT / "fixtures" / "fashion").glob("*.prototxt")]
    assert len(files) > 200
    for path in files:
        net = text_format.Merge(path.read_text(), caffe_pb2.NetParameter())
        assert len(net.layer) + len(net.layers) > 0


def test_messages_of_forks() -> None:
    from google.protobuf import text_format

    text = """layer { bn_param { bn_mode: INFERENCE }
        dense_image_data_param { source: "a" } interp_param { zoom_factor: 2 } }"""
    net = text_format.Merge(text, caffe_pb2.NetParameter())
    assert net.layer[0].bn_param.bn_mode == caffe_pb2.BNParameter.INFERENCE
    assert text_format.Merge(str(net), caffe_pb2.NetParameter()) == net
    labels = text_format.Merge("item { name: 'a' label: 3 }", caffe_pb2.LabelMap())
    assert labels.item[0].label == 3


def test_the_schema_is_that_of_the_files() -> None:
    """Numbers and types of BVLC Caffe's fields: what one writes the other reads."""
    from bridge.caffe_files.proto import caffe_pb2 as own

    mine, theirs = caffe_pb2.DESCRIPTOR.message_types_by_name, own.DESCRIPTOR.message_types_by_name
    assert set(theirs) - set(mine) == {"SegNetBNParameter"}
    for name in set(theirs) & set(mine):
        message = mine[name]
        for field in theirs[name].fields:
            assert message.fields_by_name[field.name].number == field.number
            assert message.fields_by_name[field.name].type == field.type
    assert caffe_pb2.NetParameter.DESCRIPTOR.full_name == "caffe.NetParameter"
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (caffe.TRAIN, caffe.TEST)


# -- what a net is fed -------------------------------------------------------------------------------


def transformer() -> Any:
    made = caffe.io.Transformer({"data": (1, 3, 4, 5)})
    made.set_transpose("data", (2, 0, 1))
    made.set_channel_swap("data", (2, 1, 0))
    made.set_raw_scale("data", 255)
    made.set_mean("data", np.array([1, 2, 3]))
    made.set_input_scale("data", 0.5)
    return made


def test_preprocess_and_back() -> None:
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    expected = (image.transpose(2, 0, 1)[::-1] * 255 - np.array([1, 2, 3])[:, None, None]) * 0.5
    found = transformer().preprocess("data", image.copy())
    close(found, expected.astype(np.float32))
    close(transformer().deprocess("data", found[None]), image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.preprocess("image", np.ones((4, 5, 3))), "image is not one of the net inputs: data"),
        (lambda t: t.set_transpose("data", (1, 0)), "same number of dimensions"),
        (lambda t: t.set_channel_swap("data", (1, 0)), "same number of dimensions"),
        (lambda t: t.set_mean("data", np.ones(2)), "Mean channels incompatible with input"),
        (lambda t: t.set_mean("data", np.ones((1, 2, 3, 4))), "Mean shape invalid"),
    ],
)
def test_transformer_refuses(call: Any, message: str) -> None:
    with pytest.raises(BridgeError, match=message):
        call(transformer())


def test_oversample() -> None:
    image = np.arange(6 * 8 * 2, dtype=np.float32).reshape(6, 8, 2)
    crops = caffe.io.oversample([image, -image], (4, 4))
    assert crops.shape == (20, 4, 4, 2)
    corners = [image[:4, :4], image[:4, 4:], image[2:, :4], image[2:, 4:], image[1:5, 2:6]]
    for place, crop in enumerate(corners):
        np.testing.assert_array_equal(crops[place], crop)
        np.testing.assert_array_equal(crops[place + 5], crop[:, ::-1])
        np.testing.assert_array_equal(crops[place + 10], -crop)


def test_a_constant_image_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (caffe.io.resize_image(np.full((3, 3, 3), 7.0), (5, 6)) == np.full((5, 6, 3), 7)).all()
    import sys

    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.delitem(sys.modules, "skimage.io", raising=False)
    with pytest.raises(MissingExtraError, match=r"scikit-image is not installed(.|\n)*pip install scikit-image"):
        caffe.io.load_image("cat.jpg")


def test_images(tmp_path: Path) -> None:
    need("skimage", "PIL")
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = caffe.io.load_image(str(tmp_path / "a.png"))
    close(image, (values / 255).astype(np.float32))
    assert caffe.io.load_image(str(tmp_path / "a.png"), color=False).shape == (6, 8, 1)
    resized = caffe.io.resize_image(image, (3, 4))
    assert resized.shape == (3, 4, 3)
    assert resized.dtype == np.float32


def test_classifier(tmp_path: Path) -> None:
    net = make(tmp_path)
    net.save(tmp_path / "net.caffemodel")
    classifier = caffe.Classifier(
        str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"), mean=np.array([1.0, 2, 3]), raw_scale=2
    )
    images = [np.full((8, 8, 3), value) for value in (0.0, 1.0, 2.0)]
    found = classifier.predict(images, oversample=False)
    x = np.stack([2 * image.transpose(2, 0, 1) - np.array([1, 2, 3])[:, None, None] for image in images])
    close(found, plain(net, x.astype(np.float32))["prob"])
    close(classifier.predict(images), found)  # all crops of a constant image are the same


def test_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make(tmp_path)
    net.save(tmp_path / "net.caffemodel")
    files = str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
    image = np.ones((20, 30, 3), np.float32)
    monkeypatch.setattr(caffe.io, "load_image", lambda name: image)
    windows = [np.array([0, 0, 8, 8]), np.array([5, 5, 13, 13])]
    expected = plain(net, np.ones((2, 3, 8, 8), np.float32))["prob"]
    found = caffe.Detector(*files).detect_windows([("a.jpg", windows)])
    assert [entry["filename"] for entry in found] == ["a.jpg", "a.jpg"]
    close(np.stack([entry["prediction"] for entry in found]), expected)
    padded = caffe.Detector(*files, context_pad=2, mean=np.array([4.0, 5, 6]), channel_swap=(2, 1, 0))
    inside = padded.crop(image, np.array([8, 8, 12, 12]))
    assert (inside == 1).all()
    corner = padded.crop(image, np.array([0, 0, 4, 4]))
    np.testing.assert_array_equal(corner[0, 0], [6, 5, 4])  # outside the image there is the mean, in the image's order
    assert (corner[-1, -1] == 1).all()


# -- nets in Python ----------------------------------------------------------------------------------


def test_net_spec(tmp_path: Path) -> None:
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [2, 3, 8, 8]})
    n.conv = L.Convolution(n.data, num_output=4, kernel_size=[3, 3], weight_filler={"type": "xavier"},
                           param=[{"lr_mult": 1}, {"lr_mult": 2}])  # fmt: skip
    n.relu = L.ReLU(n.conv, in_place=True)
    n["pool"] = L.Pooling(n["relu"], kernel_size=2, stride=2, pool=P.Pooling.MAX)
    left, right = L.Slice(n.pool, ntop=2, slice_point=1, axis=1)
    n.sink = L.Silence(left, right, ntop=0)
    proto = n.to_proto()
    assert [layer.name for layer in proto.layer] == ["data", "conv", "relu", "pool", "Slice1", "sink"]
    assert [*proto.layer[2].top] == ["conv"]
    assert [*proto.layer[4].top] == ["Slice1", "Slice2"]
    assert [param.lr_mult for param in proto.layer[1].param] == [1, 2]
    net = caffe.Net(write(tmp_path, str(proto)), caffe.TEST)
    assert net.blobs["pool"].data.shape == (2, 4, 3, 3)
    assert str(caffe.to_proto(n.pool)).count("layer {") == 4


def test_net_spec_refuses() -> None:
    with pytest.raises(TypeError, match="Silence input 0 is not a Top"):
        L.Silence((1, 2), ntop=0)
    with pytest.raises(AttributeError, match="layer type ReLU has no parameter 'slop'"):
        L.ReLU(L.Input(), slop=3).to_proto()
    assert hasattr(caffe.NetSpec(), "to_proto")
    assert not hasattr(caffe.NetSpec(), "conv1")
    with pytest.raises(KeyError):
        caffe.NetSpec().conv1  # noqa: B018
    assert net_spec.param_name_dict()["Convolution"] == "convolution"


def test_coordinates() -> None:
    data = L.Input(shape={"dim": [1, 1, 50, 50]})
    conv = L.Pooling(data, kernel_size=4, stride=4)  # x becomes x / 4 - 3 / 8
    param = {"num_output": 1, "kernel_size": 8, "stride": 4}  # y becomes 4 y + 7 / 2
    up = L.Deconvolution(L.ReLU(conv, in_place=True), convolution_param=param)
    assert coord_map.coord_map_from_to(up, data) == (1, 1, -2)
    assert coord_map.crop(up, data).fn.params["crop_param"] == {"axis": 2, "offset": [2]}
    with pytest.raises(AssertionError, match="scale mismatch on crop"):
        coord_map.crop(conv, data)
    with pytest.raises(RuntimeError, match="Could not compute map between tops"):
        coord_map.coord_map_from_to(L.InnerProduct(conv, num_output=2), data)
    with pytest.raises(coord_map.UndefinedMapException, match="InnerProduct maps no coordinates"):
        coord_map.coord_map(L.InnerProduct(conv, num_output=2).fn)


def test_the_map_is_where_values_come_from() -> None:
    """A deconvolution's output, cropped so, lies over the input that it comes from."""
    for kernel, stride, pad in ((3, 1, 0), (5, 2, 2), (4, 2, 1)):
        data = L.Input()
        conv = L.Convolution(data, kernel_size=kernel, stride=stride, pad=pad)
        _, scale, shift = coord_map.coord_map(conv.fn)
        first = np.arange(kernel).mean() - pad  # the centre of what the first value sees
        assert scale * first + shift == pytest.approx(0)


def test_draw(tmp_path: Path) -> None:
    from google.protobuf import text_format

    from bridge.caffe import draw

    net = text_format.Merge(SMALL, caffe_pb2.NetParameter())
    labels = [draw.get_layer_label(layer, "LR", display_lrm=True) for layer in net.layer]
    assert labels[1] == '"conv\\n(Convolution)\\nkernel size: 3\\nstride: 1\\npad: 0\\nlr mult: 1.0, 1.0"'
    assert labels[3] == '"pool\\n(Pooling MAX)\\nkernel size: 2\\nstride: 2\\npad: 0"'
    assert draw.get_layer_label(net.layer[3], "TB").startswith('"pool (Pooling MAX) kernel')
    assert [draw.get_edge_label(layer) for layer in net.layer] == ['""', "4", '""', '""', "5", '""']
    try:
        import pydot  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="pydot is not installed"):
            draw.get_pydot_graph(net, "LR")
        return
    draw.draw_net_to_file(net, str(tmp_path / "net.raw"))
    assert '"ip"' in (tmp_path / "net.raw").read_text()
