"""Pictures: what the drawing of a net holds, the files of ``bridge plot``, and what a notebook shows."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import bridge
from bridge import cli
from bridge.errors import UsageError
from bridge.schema.drawing import net_drawing
from bridge.show.graph import Box, Drawing, Frame
from tests.conftest import FASHION, need

MODEL = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]
INPUT = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 32 input_dim: 32\n'


def layer(name: str, kind: str, bottoms: str, top: str = "", more: str = "") -> str:
    wiring = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}"{wiring} top: "{top or name}" {more} }}\n'


def conv(name: str, bottom: str, number: int = 8) -> str:
    size = f"convolution_param {{ num_output: {number} kernel_size: 3 pad: 1 }}"
    return layer(name, "Convolution", bottom, more=size) + layer(f"{name}_relu", "ReLU", name, name)


def residual(blocks: int) -> str:
    text, bottom = INPUT + conv("first", "data"), "first"
    for number in range(blocks):
        text += conv(f"b{number}_1", bottom) + conv(f"b{number}_2", f"b{number}_1")
        text += layer(f"b{number}", "Eltwise", f"{bottom} b{number}_2")
        bottom = f"b{number}"
    return text + layer("end", "Pooling", bottom, more="pooling_param { kernel_size: 2 stride: 2 }")


def loaded(text: str, tmp_path: Path) -> bridge.Net:
    (tmp_path / "net.prototxt").write_text(text)
    return bridge.load(tmp_path / "net.prototxt")


# -- the drawing -----------------------------------------------------------------------------------


def lines(drawing: Drawing) -> list[tuple[str, ...]]:
    return [place.box.lines for place in drawing.boxes if place.box]


def test_layers_that_work_in_place_share_a_box(tmp_path: Path) -> None:
    drawing = net_drawing(loaded(INPUT + conv("conv1", "data"), tmp_path))
    assert lines(drawing)[1] == ("conv1", "3 x 3 Convolution + ReLU", "1 x 8 x 32 x 32")


def test_a_layer_in_place_has_its_own_box_behind_one_of_several_tops(tmp_path: Path) -> None:
    split = 'layer { name: "s" type: "Slice" bottom: "data" top: "x" top: "y" top: "z" }' + layer("r", "ReLU", "y", "y")
    assert [name for name, *_ in lines(net_drawing(loaded(INPUT + split, tmp_path)))] == ["data", "s", "r"]


def test_repeated_blocks_are_drawn_once_with_how_often_they_come(tmp_path: Path) -> None:
    net = loaded(residual(7), tmp_path)
    folded, whole = net_drawing(net), net_drawing(net, fold=False)
    assert [frame[0] for frame in folded.frames] == ["7 times: b0_1 to b6"]
    assert [name for name, *_ in lines(folded)] == ["data", "first", "b0_1", "b0_2", "b0", "end"]
    assert len(whole.boxes) == 3 + 3 * 7
    assert not whole.frames
    # What follows the last repetition reads the block's end.
    assert {path[0].box.lines[0] for path in folded.edges if path[-1].box.lines[0] == "end"} == {"b0"}  # type: ignore[union-attr]


def test_inputs_are_drawn_one_by_one(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    shape = "input_param { shape { dim: 2 dim: 3 } }"
    inputs = "".join(f'layer {{ name: "in_{name}" type: "Input" top: "{name}" {shape} }}\n' for name in names)
    drawing = net_drawing(loaded(inputs + layer("all", "Concat", " ".join(names)), tmp_path))
    assert not drawing.frames
    assert [name for name, *_ in lines(drawing)] == [*names, "all"]


def test_every_output_of_a_layer_has_its_shape(tmp_path: Path) -> None:
    text = INPUT + 'layer { name: "s" type: "Slice" bottom: "data" top: "x" top: "y" top: "z" }'
    assert lines(net_drawing(loaded(text, tmp_path)))[1] == ("s", "Slice", *["1 x 1 x 32 x 32"] * 3)


def test_blocks_of_other_sizes_are_not_folded(tmp_path: Path) -> None:
    text = INPUT + conv("a", "data", 4) + layer("p", "Pooling", "a", more="pooling_param { kernel_size: 2 }")
    assert not net_drawing(loaded(text + conv("b", "p", 8), tmp_path)).frames


def test_a_net_whose_shapes_are_unknown_is_drawn_without(tmp_path: Path) -> None:
    drawing = net_drawing(loaded(layer("a", "Nowhere", "data") + layer("b", "ReLU", "a"), tmp_path))
    assert lines(drawing) == [("data",), ("a", "Nowhere"), ("b", "ReLU")]


def test_every_edge_points_down_and_no_boxes_overlap(tmp_path: Path) -> None:
    text = INPUT
    text += "".join(conv(f"branch{number}", "data") + conv(f"deep{number}", f"branch{number}") for number in range(5))
    text += layer("all", "Concat", " ".join(f"deep{number}" for number in range(5)) + " branch0")
    drawing = net_drawing(loaded(text, tmp_path))
    for path in drawing.edges:
        assert all(upper.y < lower.y for upper, lower in itertools.pairwise(path))
    for one, other in itertools.combinations(drawing.boxes, 2):
        apart = abs(one.x - other.x) >= (one.width + other.width) / 2
        assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y
    assert all(place.x - place.width / 2 >= 0 and place.x + place.width / 2 <= drawing.width for place in drawing.boxes)


def test_a_frame_surrounds_its_boxes() -> None:
    drawing = Drawing(
        [Box(("a",)), Box(("b",), (0,)), Box(("c",), (1,))], [Frame((0, 1), "twice: a title of some length")]
    )
    ((_, left, top, right, bottom),) = drawing.frames
    for place in drawing.boxes[:2]:
        assert left < place.x - place.width / 2 < place.x + place.width / 2 < right <= drawing.width
        assert top < place.y < place.y + place.height < bottom < drawing.boxes[2].y
    assert left >= 0


def test_names_from_files_are_text_in_the_drawing(tmp_path: Path) -> None:
    svg = net_drawing(loaded(INPUT + layer("<script>x\\n</script>", "ReLU", "data", "<b>"), tmp_path)).svg()
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


# -- bridge plot -----------------------------------------------------------------------------------


def ends(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments])
    out, err = capfd.readouterr()
    return left.value.code, out, err


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
@pytest.mark.parametrize("what", [("--graph",), ("--histograms",), ("--filters", "conv1"), ("--filters", "conv2")])
def test_plot_writes_a_picture(
    what: tuple[str, ...], suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("matplotlib")
    path = tmp_path / f"out.{suffix}"
    status, out, err = ends(capfd, "plot", *MODEL, *what, "-o", str(path))
    assert (status, err) == (0, "")
    assert out.startswith(f"{path}: {what[0][2:]} of FashionAlexNet")
    content = path.read_bytes()
    if suffix == "png":
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5  # not one colour
    elif suffix == "svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert not re.search(rb"""(?:src|href)\s*=\s*["'](?!data:)""", content)
        assert b"<svg" in content or b"data:image/png" in content


def test_features_show_what_layers_make_of_an_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("matplotlib", "PIL", "onnxruntime")
    from PIL import Image

    from bridge.plotting.files import feature_maps

    with np.load(FASHION / "io.npz") as recorded:
        pixels, expected = recorded["in:data"][0, 0], recorded["blob:conv2"][0]
    Image.fromarray(np.round(pixels * 256).astype(np.uint8)).save(tmp_path / "shoe.png")
    maps = feature_maps(bridge.load(*MODEL), tmp_path / "shoe.png", scale=1 / 256)
    assert list(maps) == ["conv1 (Convolution)", "conv2 (Convolution)", "conv3 (Convolution)"]
    assert maps["conv2 (Convolution)"].shape == expected.shape
    done = ends(capfd, "plot", *MODEL, "--features", str(tmp_path / "shoe.png"), "--scale", "0.004", "-o",
                str(tmp_path / "out.png"))  # fmt: skip
    assert done[0] == 0
    assert (tmp_path / "out.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="'prob' writes no maps"):
        feature_maps(bridge.load(*MODEL), tmp_path / "shoe.png", "prob")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "expected one of --filters, --histograms, --graph, --features, found 0"),
        (("--graph", "--histograms"), "found 2"),
        (("--filters", "fc8"), "layer 'fc8' (InnerProduct): has no kernels of two dimensions"),
        (("--filters", "conv9"), "no layer 'conv9'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    arguments: tuple[str, ...], problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("matplotlib")
    status, out, err = ends(capfd, "plot", *MODEL, *arguments, "-o", str(tmp_path / "out.png"))
    assert (status, out) == (2, "")
    assert problem in err.splitlines()[0]
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = ends(capfd, "plot", *MODEL, "--graph", "-o", str(tmp_path / "out.jpg"))
    assert status == 2
    assert "expected .png or .svg or .html" in err


# -- notebooks -------------------------------------------------------------------------------------


def test_a_net_and_a_layer_show_themselves_in_a_notebook() -> None:
    net = bridge.load(*MODEL)
    shown = net._repr_html_()
    assert "FashionAlexNet" in shown
    assert "<svg" in shown
    assert "32 x 8 x 5 x 5" in shown
    kernels = net["conv1"]._repr_html_()
    assert "data:image/png" in kernels
    assert "kernel_size" in kernels
    assert "data:image/png" not in net["conv2"]._repr_html_()  # 8 channels make no picture
    assert ElementTree.fromstring(net["relu1"]._repr_html_()) is not None


def test_a_report_is_one_line_and_a_short_table() -> None:
    report = bridge.verify(*MODEL, against=MODEL[1], readers=(), engines=())
    assert re.fullmatch(r"<Report of .*: PASSED: 10 blobs the same, \d+ checks held>", repr(report))
    shown = report._repr_html_()
    assert len(shown) < 3000
    assert "PASSED" in shown


def test_a_transplant_report_shows_its_rows() -> None:
    need("chainer")
    net = bridge.load(*MODEL)
    report = bridge.transplant(net, bridge.build_chain(net))
    assert repr(report).startswith("<TransplantReport: 10 filled")
    assert report._repr_html_().count("<tr>") == 11
