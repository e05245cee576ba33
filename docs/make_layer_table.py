"""Write docs/layers.md: every layer type, and what holds it to Caffe. Run it after adding a layer type or a fixture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bridge.caffe_files import prototxt  # noqa: E402
from bridge.caffe_files.upgrade import upgrade_net  # noqa: E402
from bridge.layers import REGISTRY, CaffeLayer  # noqa: E402
from bridge.layers.base import registered_name  # noqa: E402
from bridge.schema import Layer  # noqa: E402
from bridge.schema.message import Message  # noqa: E402
from tests.references import REFERENCES  # noqa: E402

PAGE = ROOT / "docs" / "layers.md"
MOST = 20
"""So many cases are named in a row."""
HEAD = """# Layer types

Made by `docs/make_layer_table.py` from the registered layer types and the fixtures; a test checks that it is current.

- *Read*: the parameters are read with their types and defaults, the blobs by role. A layer of any other type is read
  too: its blobs list, verify and convert; only running and exporting it needs its type (see [plugins](plugins.md)).
- *ONNX*, *Chainer*: it is lowered to standard operators, to functions that can be trained. *dropped*: it has no part
  in inference; *as X*: what is left of it for inference; *input*: its tops become inputs of the model.
- *Verified*: the golden cases in `fixtures/golden/` that have such a layer, recorded from the real Caffe and compared
  through both engines by `tests/test_golden.py`. *loss*: cases in `fixtures/losses.npz`, value and gradient recorded
  from the real Caffe and compared by `tests/test_losses.py`. *reference*: a second implementation in plain NumPy, from
  the source of the Caffe that has the type (`tests/references/`), compared on random parameters by
  `tests/test_fork_layers.py`. An empty field: nothing but our own two engines was compared.

One limit is known: of a window that holds nothing above it, MAX pooling gives the lowest number of float32 in Caffe,
and NaN is passed over. So does the chain on a CPU; ONNX's MaxPool hands minus infinity on, and does with NaN what the
runtime does. To match it, every pooling would cost one node more, for values that no sound net has.

| Layer type | Read | ONNX | Chainer | Verified |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    cases, losses = golden_cases(), loss_cases()
    rows = (
        f"| `{name}` | yes | {onnx(cls)} | {chainer(cls)} | "
        f"{verified(name, cases.get(name, []), losses.get(name, []))} |\n"
        for name, cls in sorted(REGISTRY.items(), key=lambda item: item[0].lower())
    )
    return HEAD + "".join(rows)


def golden_cases() -> dict[str, list[str]]:
    """The golden cases and the trained fixture that have a layer of each type."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "fixtures").glob("golden/*/io.npz")):
        for name in sorted({registered_name(layer) for layer in layers(path.with_name("deploy.prototxt"))}):
            found.setdefault(name, []).append(path.parent.name)
    return found


def loss_cases() -> dict[str, list[str]]:
    """The recorded losses and accuracies of each type."""
    found: dict[str, list[str]] = {}
    with np.load(ROOT / "fixtures" / "losses.npz") as recorded:
        for key in sorted(key for key in recorded if key.endswith("/net")):
            (*_, layer) = prototxt.parse(str(recorded[key])).messages("layer")
            found.setdefault(layer.text("type"), []).append(key.removesuffix("/net"))
    return found


def layers(path: Path) -> Iterator[Message]:
    """The layers of a prototxt of any generation, in their current form."""
    _, definitions = upgrade_net(prototxt.parse_file(path))
    yield from definitions


def onnx(cls: type[CaffeLayer]) -> str:
    """What becomes of the type in an export."""
    if cls.is_input:
        return "input"
    if half := getattr(cls, "inference_type", ""):
        return f"as {half}"
    if cls.training_only:
        return "dropped"
    return "yes" if cls.to_onnx is not Layer.to_onnx else "no"


def chainer(cls: type[CaffeLayer]) -> str:
    """What becomes of the type in a chain."""
    if cls.is_input:
        return "input"
    return "yes" if cls.to_chainer is not Layer.to_chainer else "no"


def verified(name: str, cases: list[str], losses: list[str]) -> str:
    """What a test compares the type with."""
    recorded = [f"*loss* {', '.join(losses)}"] if losses else []
    more = [f"and {len(cases) - MOST} more"] if len(cases) > MOST else []
    reference = ["*reference*"] if name in REFERENCES else []
    return ", ".join(cases[:MOST] + more + recorded + reference)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
