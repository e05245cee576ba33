"""Pictures of nets, by pydot and Graphviz. Source: draw.py of pycaffe."""

from __future__ import annotations

import importlib
from typing import Any

from bridge.caffe.proto import caffe_pb2
from bridge.errors import MissingExtraError, ModelError
from bridge.layers import REGISTRY
from bridge.layers.convolution import Convolution
from bridge.layers.data import Data
from bridge.layers.inner_product import InnerProduct
from bridge.layers.pooling import Pooling

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
_COLOURS: tuple[tuple[type, str], ...] = ((Convolution, "#FF5050"), (Pooling, "#FF9900"), (InnerProduct, "#CC33FF"))


def get_pooling_types_dict() -> dict[int, str]:
    """The name of each kind of pooling by its number."""
    return {number: name for name, number in caffe_pb2.PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: Any) -> str:
    """What stands at the arrows out of a layer: its outputs, or the batch of a data layer."""
    kind = _kind(layer)
    if issubclass(kind, Data):
        return f"Batch {layer.data_param.batch_size}"
    if issubclass(kind, Convolution):
        return str(layer.convolution_param.num_output)
    if issubclass(kind, InnerProduct):
        return str(layer.inner_product_param.num_output)
    return '""'


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """The factors on the learning rate of a layer's weight and bias.

    Raises:
        ModelError: The layer has none, or more than two.
    """
    if not issubclass(_kind(layer), (Convolution, InnerProduct)):
        raise ModelError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ModelError("Could not parse the learning rate multiplier", where=f"layer '{layer.name}'")
    first, second = [*(param.lr_mult for param in layer.param), 1.0, 1.0][:2]
    return first, second


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """What stands in a layer's box.

    Args:
        layer: A ``LayerParameter``.
        rankdir: Which way the net goes: LR, TB, BT.
        display_lrm: Name the factors on the learning rate too.
    """
    parts = [layer.name]
    kind = _kind(layer)
    pooling = issubclass(kind, Pooling)
    how = f" {get_pooling_types_dict()[layer.pooling_param.pool]}" if pooling else ""
    parts.append(f"({layer.type}{how})")
    space = " " if rankdir in ("TB", "BT") else r"\n"
    if pooling or issubclass(kind, Convolution):
        extents = _extents(layer.pooling_param) if pooling else _extents(layer.convolution_param)
        parts.append(space.join(f"{name}: {extent}" for name, extent in extents.items()))
    if display_lrm and issubclass(kind, (Convolution, InnerProduct)):
        rates = get_layer_lr_mult(layer)
        if any(rates):
            parts.append(f"lr mult: {rates[0]:.1f}, {rates[1]:.1f}")
    return f'"{space.join(parts)}"'


def _extents(param: Any) -> dict[str, int]:
    """Kernel, stride and padding; the first of several."""
    found = {"kernel size": (param.kernel_size, 1), "stride": (param.stride, 1), "pad": (param.pad, 0)}
    return {
        name: (value[0] if len(value) else default) if hasattr(value, "extend") else value
        for name, (value, default) in found.items()
    }


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a layer's box."""
    kind = REGISTRY.get(layertype, type(None))
    return next((colour for base, colour in _COLOURS if issubclass(kind, base)), LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Any:
    """A net as a graph of pydot's.

    Args:
        caffe_net: A ``NetParameter``.
        rankdir: Which way the net goes: LR, TB, BT.
        label_edges: Write at the arrows how many outputs there are.
        phase: Only the layers of this phase.
        display_lrm: Name the factors on the learning rate too.

    Raises:
        MissingExtraError: pydot is not installed.
        ModelError: A layer has both include and exclude rules.
    """
    pydot = _pydot()
    graph = pydot.Dot(caffe_net.name or "Net", graph_type="digraph", rankdir=rankdir)
    nodes: dict[str, Any] = {}
    edges = []
    for layer in caffe_net.layer:
        if phase is not None and not _included(layer, phase):
            continue
        own = f"{layer.name}_{layer.type}"
        in_place = len(layer.bottom) == 1 and [*layer.bottom] == [*layer.top]
        style = (
            NEURON_LAYER_STYLE
            if in_place
            else {**LAYER_STYLE_DEFAULT, "fillcolor": choose_color_by_layertype(layer.type)}
        )
        nodes[own] = pydot.Node(get_layer_label(layer, rankdir, display_lrm=display_lrm), **style)
        for blob in (*layer.bottom, *layer.top):
            nodes.setdefault(f"{blob}_blob", pydot.Node(f'"{blob}"', **BLOB_STYLE))
        edges += [(f"{blob}_blob", own, '""') for blob in layer.bottom]
        edges += [(own, f"{blob}_blob", get_edge_label(layer) if label_edges else '""') for blob in layer.top]
    for node in nodes.values():
        graph.add_node(node)
    for source, target, label in edges:
        graph.add_edge(pydot.Edge(nodes[source], nodes[target], label=label))
    return graph


def _included(layer: Any, phase: int) -> bool:
    if len(layer.include) and len(layer.exclude):
        raise ModelError("has both include and exclude specified", where=f"layer {layer.name}")
    kept = not len(layer.include) or any(rule.phase == phase for rule in layer.include)
    return kept and not any(rule.phase == phase for rule in layer.exclude)


def draw_net(
    caffe_net: Any, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """A net as a picture, in any format of Graphviz's.

    Raises:
        MissingExtraError: pydot or Graphviz is not installed.
    """
    graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
    try:
        return bytes(graph.create(format=ext))
    except FileNotFoundError:
        hint = "install Graphviz, whose program is called dot, or draw to a file that ends in .raw"
        raise MissingExtraError("Graphviz is not installed", hint=hint) from None


def draw_net_to_file(
    caffe_net: Any, filename: str, rankdir: str = "LR", phase: int | None = None, display_lrm: bool = False
) -> None:
    """Draw a net to a file; its suffix tells the format, ``.raw`` being Graphviz's own text."""
    ext = filename[filename.rfind(".") + 1 :]
    if ext == "raw":  # needs no Graphviz
        graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
        picture = graph.to_string().encode()
    else:
        picture = draw_net(caffe_net, rankdir, ext, phase, display_lrm)
    with open(filename, "wb") as file:
        file.write(picture)


def _kind(layer: Any) -> type:
    kind: type = REGISTRY.get(layer.type, type(None))
    return kind


def _pydot() -> Any:
    for name in ("pydotplus", "pydot"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise MissingExtraError("pydot is not installed", hint="pip install pydot")


__all__ = [
    "BLOB_STYLE", "LAYER_STYLE_DEFAULT", "NEURON_LAYER_STYLE", "choose_color_by_layertype", "draw_net",
    "draw_net_to_file", "get_edge_label", "get_layer_label", "get_layer_lr_mult", "get_pooling_types_dict",
    "get_pydot_graph",
]  # fmt: skip
