"""Every field of every known caffe.proto is read, harmless with a reason, or refused; and the page says so."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from backends.protobuf import read
from backends.wire import FileBytes, Span, decode
from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.fields import ANYWHERE, LAYERS, NETS, harmless, known_as, refuse_unknown_fields, unread_fields
from bridge.caffe_files.proto import dialects, meanings, schema, variants
from bridge.caffe_files.proto.encode import encode
from bridge.caffe_files.prototxt import parse
from bridge.errors import UnknownFieldError
from bridge.layers import REGISTRY
from bridge.layers.base import CaffeLayer
from bridge.schema.message import Message
from tests.conftest import ROOT
from tests.encode import chunk, number


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fork_table", ROOT / "docs" / "make_fork_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = maker()
LINES = list(MAKER.lines())


def test_the_page_is_up_to_date() -> None:
    assert MAKER.PAGE.read_text(encoding="utf-8") == MAKER.page(), "run docs/make_fork_table.py"


def test_every_field_of_every_message_is_on_the_page() -> None:
    listed = {(line.parameter, line.field) for line in LINES}
    for fork in ("", *dialects()):
        layer = schema("LayerParameter", (fork,) if fork else ())
        for parameter in layer.by_number.values():
            if parameter.kind == "message":
                fields = schema(parameter.type, (fork,) if fork else ()).by_name
                assert {(parameter.name, name) for name in fields} <= listed


def test_what_is_harmless_has_a_reason_and_what_is_refused_none() -> None:
    for line in LINES:
        assert bool(line.reason) == (line.verdict == "harmless"), line


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_reason_is_given_for_fields_that_the_type_does_not_read(name: str) -> None:
    cls = REGISTRY[name]
    for field in cls.harmless:
        assert field not in MAKER.read_fields(cls, cls.message), f"{field} is read, and so not harmless"


def test_the_shared_tables_name_fields_that_there_are() -> None:
    fields = {line.field for line in LINES}
    assert set(ANYWHERE) <= fields
    layer = {*variants("LayerParameter"), *variants("V1LayerParameter")}
    assert set(LAYERS) <= layer
    assert set(NETS) <= {*variants("NetParameter")}


def refused() -> list[Any]:
    """Each refused field of a known type, in a layer of it, with a value that is not its default."""
    cases = {}
    for line in LINES:
        if line.verdict == "refused" and line.owners:
            cases[line.parameter, line.field] = line
    return [pytest.param(line, id=f"{key[0]}.{key[1]}") for key, line in sorted(cases.items())]


@pytest.mark.parametrize("line", refused())
def test_a_refused_field_is_found_in_a_layer_of_every_type_that_has_it(line: Any) -> None:
    field = next(iter(line.forks.values()))
    value = MAKER.sample(field)
    for name in line.owners:
        if harmless(REGISTRY[name], (line.parameter, line.field)):
            continue  # it is refused in another type
        layer = of_type(name, line.parameter, line.field, value)
        if layer is None:
            continue  # the type does not take the field's message without others that are required
        found = [entry for entry in unread_fields(layer) if entry.path == f"{line.parameter}.{line.field}"]
        assert found or isinstance(value, Message)
        assert not any(entry.reason for entry in found), found


def of_type(name: str, parameter: str, field: str, value: Any) -> Any:
    """A net of one layer of a type, with one field, and what the type cannot do without; none if that is not enough."""
    required = {
        "num_output": 3, "kernel_size": 3, "num_classes": 3, "min_size": 4, "pooled_h": 2, "pooled_w": 2,
        "input_dim": 5, "stride": 2, "group_size": 2, "output_dim": 2, "tiles": 2, "pyramid_height": 2,
    }  # fmt: skip
    cls: type[CaffeLayer] = REGISTRY[name]
    inner = Message()
    for key, needed in required.items():
        if any(field_.kind != "message" for field_ in known_as((parameter, key)).values()) and parameter == cls.message:
            inner.set(key, needed)
    inner.set(field, value)
    definition = Message(name="l", type=name)
    definition.set("bottom", *(f"x{i}" for i in range(max(1, cls.bottom_count[0]))))
    definition.set("top", *(f"y{i}" for i in range(cls.top_count[0])))
    definition.set(parameter, inner)
    net = assemble(None, Message(layer=definition))
    return net if isinstance(net.layers[0], CaffeLayer) else None


NET = 'layer {{ name: "l" type: "{}" bottom: "x" top: "y" {} }}'


@pytest.mark.parametrize(
    ("kind", "fields", "problem"),
    [
        (
            "Pooling",
            "pooling_param { kernel_size: 2 torch_pooling: true }",
            r"torch_pooling: true' \(nvcaffe\) may change",
        ),
        (
            "Pooling",
            "pooling_param { kernel_size: 2 stryde: 2 }",
            "'pooling_param.stryde: 2' is in no known caffe.proto",
        ),
        ("ReLU", "relu_parm { negative_slope: 1 }", "'relu_parm' is in no known caffe.proto"),
        ("PReLU", "param { lr_mul: 1 }", "'param.lr_mul: 1' is in no known caffe.proto"),
        ("Normalize", "normalize_param { normalize_type: 'L1' }", r"'normalize_param' \(windows\) may change"),
        ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 relu: true }", r"relu: true' \(intel\) may"),
    ],
)
def test_what_may_change_a_result_is_refused(kind: str, fields: str, problem: str) -> None:
    with pytest.raises(UnknownFieldError, match=problem):
        refuse_unknown_fields(assemble(None, parse(NET.format(kind, fields))))


@pytest.mark.parametrize(
    ("kind", "fields", "note"),
    [
        (
            "Convolution",
            "convolution_param { num_output: 1 kernel_size: 1 relu: false engine: CUDNN }",
            "default value",
        ),
        (
            "Convolution",
            "convolution_param { num_output: 1 kernel_size: 1 } quantization_param { bw_params: 8 }",
            "integer",
        ),
        ("ReLU", "debug: true forward_type: FLOAT16", ""),
        ("Softmax", "loss_param { normalize: true }", ""),
        ("Pooling", "pooling_param { kernel_size: 2 engine: CAFFE } convolution_param { pad: 3 }", ""),
    ],
)
def test_what_is_harmless_is_a_note_at_most(kind: str, fields: str, note: str) -> None:
    net = assemble(None, parse(NET.format(kind, fields)))
    refuse_unknown_fields(net)
    assert not note or any(note in line for line in net.notes)


# ---- numbers in a file alone -----------------------------------------------------------------------


def layer(kind: str, *fields: bytes) -> bytes:
    return chunk(100, chunk(1, b"l") + chunk(2, kind.encode()) + b"".join(fields))


def definition(tmp_path: Any, *parts: bytes, dialect: str = "auto") -> Message:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"".join(parts))
    return read(path, dialect=dialect).layers[-1].definition


def test_a_number_on_which_forks_disagree_keeps_no_name(tmp_path: Any) -> None:
    """2 is scale_train in Faster R-CNN, sample_weights_test in SegNet, an engine in NVCaffe."""
    drop = layer("Dropout", chunk(108, number(2, 0)))
    assert definition(tmp_path, drop).message("dropout_param") == Message(**{"2": 0})
    assert {"faster_rcnn", "nvcaffe", "segnet"} <= meanings("DropoutParameter", 2).keys()
    found = definition(tmp_path, drop, dialect="faster_rcnn").message("dropout_param")
    assert found == parse("scale_train: false")


def test_other_layers_of_the_file_tell_its_fork(tmp_path: Any) -> None:
    """8266711 is Faster R-CNN's own number; a net-level field above 10 is NVCaffe's."""
    drop = layer("Dropout", chunk(108, number(2, 0)))
    regions = layer("ROIPooling", chunk(8266711, number(1, 6) + number(2, 6)))
    assert definition(tmp_path, regions, drop).message("dropout_param") == parse("scale_train: false")
    nvcaffe = chunk(1, b"n") + number(12, 2) + number(19, 1)
    assert definition(tmp_path, nvcaffe, drop).message("dropout_param") == parse("engine: DEFAULT")


def test_the_wire_type_tells_forks_apart(tmp_path: Any) -> None:
    """5 of BatchNorm is a filler in NVCaffe, and a bool in Intel's and in caffe-windows."""
    norm = layer("BatchNorm", chunk(139, chunk(5, chunk(1, b"constant"))))
    assert definition(tmp_path, norm).message("batch_norm_param") == parse("scale_filler { type: 'constant' }")


def test_fields_swapped_by_a_fork_are_read_by_the_layers_number(tmp_path: Any) -> None:
    """Reorg's stride is 2 in one fork and 1 in others."""
    assert definition(tmp_path, layer("Reorg", chunk(148, number(2, 3)))).message("reorg_param") == parse("stride: 3")
    assert definition(tmp_path, layer("Reorg", chunk(159, number(1, 3)))).message("reorg_param") == parse("stride: 3")


def test_a_field_of_another_fork_is_not_written_under_a_number_that_means_something_else() -> None:
    """DeepLab's hole is 17, which is force_nd_im2col to all others."""
    dropped: list[str] = []
    data = encode(parse("convolution_param { hole: 2 }"), schema("LayerParameter").by_name, dropped.append)
    assert dropped == ["convolution_param.hole"]
    assert not len(
        decode(Span(FileBytes(data, ""), 0, len(data), schema("LayerParameter"), "")).message("convolution_param")
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("force_backward: true default_forward_type: FLOAT16", ""),
        ("inputs: 'x'", r"the net: 'inputs: 'x'' is in no known caffe.proto"),
        ("opt_levle: 2", r"the net: 'opt_levle: 2' is in no known caffe.proto"),
    ],
)
def test_fields_of_the_net_itself(fields: str, problem: str) -> None:
    net = assemble(None, parse(f"{fields} {NET.format('ReLU', '')}"))
    if not problem:
        refuse_unknown_fields(net)
        return
    with pytest.raises(UnknownFieldError, match=problem):
        refuse_unknown_fields(net)
