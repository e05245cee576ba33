"""Plants faults in an exported graph, one at a time, and counts how many ``bridge verify`` finds.

    python benchmarks/plant.py [--list] [--json plant.json]

The first net has a layer of most kinds; two others are recurrent, and of forks' layers. Each fault changes the ONNX
file as a wrong exporter would: a wrong pad or stride, a transposed weight, ReLU in place of ReLU6, outputs in another
order. For each it prints whether the verification failed, as it must, and whether the first layer (or part) that it
names is the right one. Faults below rounding, such as one weight off by its last bit, are listed apart: their bits
are found by the comparison of weights alone. Exits with 1 if a fault above rounding is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402

import bridge  # noqa: E402
from benchmarks.faults import FAULTS as LARGE  # noqa: E402
from benchmarks.faults import NET  # noqa: E402
from benchmarks.faults_kinds import KINDS, NETS  # noqa: E402
from benchmarks.faults_small import SMALL  # noqa: E402
from bridge.exporting import export_onnx  # noqa: E402
from bridge.schema import Blob, Net  # noqa: E402
from bridge.schema.blob import Blobs  # noqa: E402
from bridge.verification.report import Report  # noqa: E402
from tests.nets import make  # noqa: E402

FAULTS = {**LARGE, **SMALL, **KINDS}


def centred(net: Net) -> Net:
    """The net with normal weights of such a size that values neither grow nor vanish from layer to layer."""
    rng = np.random.default_rng(7)

    def weight(values: np.ndarray) -> np.ndarray:
        fan = max(1, values.size // values.shape[0])
        made: np.ndarray = (rng.standard_normal(values.shape) / np.sqrt(fan)).astype(np.float32)
        return made

    layers = []
    for layer in net.layers:
        blobs = {
            role: Blob.of(weight(blob.numpy()) if role in ("weight", "bias", "beta", "mean") else blob.numpy())
            for role, blob in layer.blobs.entries()
        }
        layers.append(layer.changed(blobs=Blobs(blobs)) if blobs else layer)
    return net.replace(layers=tuple(layers))


def first_named(report: Report) -> set[str]:
    """What the report names first: of values a layer with those before it, of parts and blobs all."""
    found = report.first_difference
    names = {found.layer, *found.since} if found is not None else set()
    for part in (part for result in report.parts for part in result.parts if part.status == "different"):
        names |= {part.name or part.kind, part.kind if part.kind == "graph" else part.name}
    return names


def run(names: list[str]) -> Iterator[dict[str, Any]]:
    """Plant each fault and verify; one row per fault."""
    with tempfile.TemporaryDirectory() as folder:
        for net in dict.fromkeys(FAULTS[name].net for name in names):
            source, exported = Path(folder) / f"{net}.caffemodel", Path(folder) / f"{net}.onnx"
            made = centred(make({"": NET, **NETS}[net]))
            bridge.save(made, source)
            export_onnx(made, exported, check=False)
            sound = verify(source, exported)
            if not sound.passed:
                raise SystemExit(f"the graph without a fault does not pass:\n{sound}")
            for name in names:
                if FAULTS[name].net == net:
                    yield plant(name, source, exported)


def verify(source: Path, graph: Path) -> Report:
    return bridge.verify(source, against=graph, engines=["onnxruntime"], readers=(), checks=())


def plant(name: str, source: Path, exported: Path) -> dict[str, Any]:
    """What comes of one fault."""
    model = onnx.load(str(exported))
    FAULTS[name].plant(model)
    onnx.save(model, str(exported.with_name("planted.onnx")))
    report = verify(source, exported.with_name("planted.onnx"))
    outputs_alone = [top for result in report.outputs for top in result.tops if top.status == "different"]
    parts = [part for result in report.parts for part in result.parts if part.status == "different"]
    named = first_named(report)
    found = report.status == 1
    return {
        "fault": name,
        "found": found,
        "by": "graph" if outputs_alone or parts else "weights" if found else "",
        "right": FAULTS[name].where in named or FAULTS[name].where in _weights(report),
        "named": sorted(named),
    }


def _weights(report: Report) -> set[str]:
    return {blob.layer for result in report.weights for blob in result.blobs if blob.status == "different"}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each fault, and the score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("faults", nargs="*", default=list(FAULTS), help="names of faults; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(FAULTS))
        return 0
    rows = []
    for row in run(options.faults):
        rows.append(row)
        verdict = "found" if row["found"] else "MISSED"
        place = "" if not row["found"] else "named right" if row["right"] else f"named {', '.join(row['named'])}"
        print(f"{row['fault']:45}{verdict:8}{row['by']:9}{place}", flush=True)
    found, right = (sum(row[key] for row in rows) for key in ("found", "right"))
    by_graph = sum(row["by"] == "graph" for row in rows)
    print(f"{found} of {len(rows)} found, {by_graph} by running the graph, {right} named right")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0 if found == len(rows) else 1


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
