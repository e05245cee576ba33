"""A picture in a file: PNG, SVG, or a page of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import UsageError, nearest
from bridge.files.atomic import atomic
from bridge.schema import Net, Shape
from bridge.schema.drawing import net_drawing
from bridge.show import html
from bridge.show.figures import demand_matplotlib, png_of, svg_of

SUFFIXES = (".png", ".svg", ".html")
WHATS = ("filters", "histograms", "graph", "features")


def draw_net(
    net: Net, path: str | Path, what: str, *, layer: str = "", maps: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a picture of a net.

    ``draw_net(net, "conv1.png", "filters", layer="conv1")`` shows the kernels of a layer.

    Args:
        net: The net.
        path: The file; its suffix, one of :data:`SUFFIXES`, decides the format.
        what: One of :data:`WHATS`: a layer's kernels, how all values are spread, the drawing, or what layers make of
            an image.
        layer: The layer whose kernels are shown.
        maps: For ``features``, what :func:`feature_maps` returned.

    Raises:
        UsageError: There is no such picture, or nothing to show in it.
        MissingExtraError: matplotlib is not installed, which everything but a drawing in SVG or HTML needs.
        OutputError: The file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown kind of picture", expected=" or ".join(SUFFIXES))
    if what == "graph" and suffix != ".png":
        markup = net_drawing(net).svg()
        save_picture(path, markup.encode("utf-8", "backslashreplace"), f"{net.name or net.where}: drawing")
        return
    demand_matplotlib()
    figure = _figure(net, what, layer, maps or {})
    save_picture(path, svg_of(figure) if suffix == ".svg" else png_of(figure), f"{net.name or net.where}: {what}")


def _figure(net: Net, what: str, layer: str, maps: Mapping[str, np.ndarray]) -> Any:
    from bridge.plotting import figures

    if what == "filters":
        return figures.filters(net[layer])
    if what == "histograms":
        return figures.histograms(net)
    if what == "graph":
        return figures.drawing_figure(net_drawing(net))
    if what == "features":
        return figures.features(maps)
    raise UsageError(f"no picture '{what}'", hint=nearest(what, WHATS))


def save_picture(path: str | Path, content: bytes, title: str) -> None:
    """Write a picture, for ``.html`` as a page that holds it.

    Args:
        path: The file.
        content: PNG or SVG.
        title: The page's title.
    """
    if Path(path).suffix.lower() == ".html":
        png = content.startswith(b"\x89PNG")
        picture = html.image(content, title) if png else html.Markup(content.decode())
        content = html.page(title, html.tag("h1", title), html.tag("div", picture, class_="wide")).encode(
            "utf-8", "backslashreplace"
        )
    with atomic(path) as file:
        file.write(content)


def feature_maps(net: Net, image: str | Path, layer: str = "", inputs: Mapping[str, Shape] | None = None,
                 mean: np.ndarray | None = None, scale: float = 1.0) -> dict[str, np.ndarray]:  # fmt: skip
    """What layers make of an image.

    Args:
        net: A net with weights and one input for images.
        image: The image, which is scaled to the input's extents. Values are 0 to 255, channels blue, green, red.
        layer: Show this one; by default every layer that has weights and writes maps, 12 of them at most.
        inputs: Extents of the input, where the file does not give them.
        mean: float32 (values,) or (C, H, W) that is subtracted first; empty or ``None`` for none.
        scale: What the rest is multiplied by.

    Returns:
        Title -> (C, H, W) float32 of the first image of the batch.

    Raises:
        UsageError: No layer shows anything.
        BridgeError: The image cannot be read, or the net cannot be run.
    """
    from bridge import engines
    from bridge.caffe_files.inference import inference_net
    from bridge.verification.arrays import read_array

    served = inference_net(net, dict(inputs or {}))
    wanted = served[layer].name if layer else ""
    (name, shape), *others = served.inputs.items()
    if others or shape is None:
        problem = f"has {1 + len(others)} inputs" if others else f"input '{name}' has no extents"
        raise UsageError(problem, where=net.where, expected="one image", hint="--input NAME=1,3,224,224")
    array = read_array(Path(image), name, (1, *shape[1:]))
    if mean is not None and mean.size:
        array = array - (mean if mean.ndim == 3 else mean[:, None, None])
    sized = inference_net(served.with_input_shapes({name: array.shape}))
    engine = (engines.available() or ["onnxruntime"])[0]
    tops = engines.make(engine, sized).tops({name: np.asarray(array * scale, np.float32)})
    made: dict[str, np.ndarray] = {}
    for each, written in zip(sized.layers, tops, strict=True):
        value = written[0] if written else None
        if value is not None and value.ndim == 4 and (each.name == wanted if wanted else bool(each.blobs)):
            made[f"{each.name} ({each.type})"] = value[0]
    if not made:
        raise UsageError(f"layer '{layer}' writes no maps" if layer else "no layer writes maps", where=net.where)
    return dict(list(made.items())[:12])
