"""What stands in files: names, messages, blobs and nets in any encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.schema import Blob, Blobs, Net, Opaque
from bridge.schema.message import Message, Symbol
from tests import encode
from tests.strategies.common import SEEDS
from tests.strategies.weights import arrays

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
"""Names of layers and blobs: slashes, colons, spaces, quotes and any script among them."""
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: float(str(np.float32(x))))
"""Numbers as a prototxt has them, each the shortest that is its float32."""
_DISTINCT = {"t", "f", "true", "false", "True", "False", "inf", "infinity", "nan"}


def messages(depth: int = 3) -> Any:
    """Any message that text format can say."""
    words = st.from_regex(r"[A-Za-z_]\w*", fullmatch=True).map(lambda word: word[:20])
    symbols = words.filter(lambda word: word.lower() not in _DISTINCT).map(Symbol)
    scalars = st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | NAMES | symbols
    values = scalars if depth == 0 else scalars | messages(depth - 1)
    named = st.dictionaries(words, st.lists(values, min_size=1, max_size=3), max_size=4)
    numbers = st.integers(1, 1 << 29).map(str)
    numbered = st.dictionaries(numbers, st.lists(st.integers(0, 2**63) | st.binary(max_size=9), min_size=1), max_size=2)
    return st.builds(lambda names, numbers: _message({**names, **numbers}), named, numbered)


def _message(fields: dict[str, list[Any]]) -> Message:
    message = Message()
    for name, values in fields.items():
        message.set(name, *values)
    return message


@dataclass(frozen=True)
class StoredBlob:
    """An array and how a caffemodel holds it: see :mod:`tests.encode`."""

    array: np.ndarray
    values: str
    shape: str
    diff: bool

    @property
    def data(self) -> bytes:
        return encode.blob(self.array, self.values, self.shape, self.diff)

    @property
    def expected(self) -> np.ndarray:
        array = encode.stored(self.array, self.values)
        return array.reshape(()) if self.shape == "absent" and array.size == 1 else array


@st.composite
def stored_blobs(draw: Any) -> StoredBlob:
    style = draw(st.sampled_from(encode.SHAPES))
    axes = {"legacy": (4, 4), "absent": (1, 1)}.get(style, (0, 5))
    shape = draw(st.lists(st.integers(0 if style != "absent" else 1, 4), min_size=axes[0], max_size=axes[1]))
    values = np.random.default_rng(draw(SEEDS)).standard_normal(shape)
    return StoredBlob(values, draw(st.sampled_from(encode.VALUES)), style, draw(st.booleans()))


def _only(**fields: Any) -> Any:
    """A parameter message with some of the fields."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda drawn: Message("", **drawn))


_SIZES = st.integers(0, 500)
_FILLERS = _only(type=st.sampled_from(["xavier", "constant"]), value=FLOATS, std=FLOATS)
_PARAMS: dict[str, tuple[str, Any]] = {
    "Convolution": (
        "convolution_param",
        _only(num_output=_SIZES, bias_term=st.booleans(), pad=_SIZES, kernel_size=_SIZES, stride=_SIZES, group=_SIZES,
              weight_filler=_FILLERS, bias_filler=_FILLERS),
    ),
    "InnerProduct": ("inner_product_param", _only(num_output=_SIZES, bias_term=st.booleans(), weight_filler=_FILLERS)),
    "Pooling": (
        "pooling_param",
        _only(pool=st.sampled_from(["MAX", "AVE", "STOCHASTIC"]).map(Symbol), kernel_size=_SIZES, pad=_SIZES),
    ),
    "LRN": ("lrn_param", _only(local_size=_SIZES, alpha=FLOATS, beta=FLOATS, k=FLOATS)),
    "Dropout": ("dropout_param", _only(dropout_ratio=FLOATS)),
    "Concat": ("concat_param", _only(concat_dim=_SIZES)),
    "ReLU": ("", st.just(Message())),
    "Softmax": ("", st.just(Message())),
}  # fmt: skip


@st.composite
def definitions(draw: Any) -> Message:
    """A layer's definition that every generation of Caffe could say."""
    kind = draw(st.sampled_from(sorted(_PARAMS)))
    layer = Message("", name=draw(NAMES), type=kind)
    layer.set("bottom", *draw(st.lists(NAMES, max_size=2)))
    layer.set("top", *draw(st.lists(NAMES, max_size=2)))
    rates = draw(st.lists(st.tuples(FLOATS, FLOATS), max_size=2))
    layer.set("param", *(Message("", lr_mult=lr, decay_mult=decay) for lr, decay in rates))
    name, params = _PARAMS[kind]
    message = draw(params)
    if len(message):
        layer.set(name, message)
    return layer


StoredNet = list[tuple[Message, list[StoredBlob]]]


def stored_nets() -> Any:
    """Layers with blobs, in any encoding."""
    return st.lists(st.tuples(definitions(), st.lists(stored_blobs(), max_size=2)), max_size=4)


@st.composite
def wire_data(draw: Any) -> bytes:
    """Bytes that are almost a caffemodel: fields of any number, type and length, nested, cut off."""

    def fields(depth: int) -> bytes:
        parts = []
        for _ in range(draw(st.integers(0, 4))):
            number = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 50, 100, 106, 143, 1 << 28]))
            wire = draw(st.sampled_from([2, 2, 2, 2, 0, 1, 3, 4, 5, 6, 7]))
            body = draw(st.binary(max_size=12))
            if wire == 2:
                body = fields(depth - 1) if depth and draw(st.booleans()) else body
                lie = draw(st.sampled_from([0, 0, 0, 0, 1, -1, 1 << 31, 1 << 63]))
                body = encode.varint(max(len(body) + lie, 0)) + body
            parts.append(encode.tag(number, wire) + body)
        return b"".join(parts)

    data = encode.chunk(1, b"net") + fields(4)
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@st.composite
def unknown_nets(draw: Any) -> Net:
    """Layers of an unknown type, of any names, equal ones too, some with blobs of earlier ones."""
    layers: list[Opaque] = []
    pool: list[Blob] = []
    for name in draw(st.lists(NAMES, max_size=4)):
        own = [Blob.of(array) for array in draw(st.lists(arrays(), max_size=3))]
        blobs = own + (draw(st.lists(st.sampled_from(pool), max_size=2, unique_by=id)) if pool else [])
        pool += own
        definition = Message("", name=name, type="Odd")
        held = Blobs({f"blob{index}": blob for index, blob in enumerate(blobs)})
        layers.append(Opaque(name=name, type="Odd", definition=definition, blobs=held))
    return Net(draw(NAMES), tuple(layers))
