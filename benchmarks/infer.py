"""How fast exported nets run, against the real Caffe and OpenCV's own importer, on the same inputs.

    BRIDGE_PYCAFFE_PYTHON=... python benchmarks/infer.py [--models alexnet,googlenet,vgg16] [--batch 1]
        [--threads 1] [--repeat 10] [--opencv PYTHON] [--json infer.json]

Makes nets of the shapes of AlexNet, GoogLeNet and VGG-16, with random values of a size that
keeps activations finite, exports each, and runs it in ONNX Runtime; the same caffemodel in
the real Caffe (an interpreter that has it: BRIDGE_PYCAFFE_PYTHON) and in OpenCV 4's importer
of Caffe files; the exported file in OpenCV as well (an interpreter that has cv2: --opencv).
Each measurement is a process of its own with so many threads; the first forward pass does
not count, the median of the others does. The outputs are compared too. What is not installed
is left out by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COMMON = """
import json, os, sys, time
import numpy as np
os.environ["GLOG_minloglevel"] = "3"
prototxt, caffemodel, onnx, inputs, outputs, threads, repeat = sys.argv[1:]
threads, repeat, x = int(threads), int(repeat), np.load(inputs)
def measure(version, forward):
    y, seconds = np.array(forward()), []
    for _ in range(repeat):
        start = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - start)
    np.save(outputs, y)
    print(json.dumps({"version": version, "seconds": sorted(seconds)[repeat // 2], "best": min(seconds)}))
"""
RUNNERS = {
    "ONNX Runtime": """
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = threads
session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
measure(ort.__version__, lambda: session.run(["prob"], {"data": x})[0])
""",
    "Caffe": """
import caffe
caffe.set_mode_cpu()
net = caffe.Net(prototxt, caffemodel, caffe.TEST)
net.blobs["data"].reshape(*x.shape)
net.reshape()
def forward():
    net.blobs["data"].data[...] = x
    return net.forward()["prob"]
measure(getattr(caffe, "__version__", "?"), forward)
""",
    "OpenCV, on the caffemodel": """
import cv2
if not hasattr(cv2.dnn, "readNetFromCaffe"):
    sys.exit(f"OpenCV {cv2.__version__} has no importer of Caffe files")
cv2.setNumThreads(threads)
net = cv2.dnn.readNetFromCaffe(prototxt, caffemodel)
def forward():
    net.setInput(x, "data")
    return net.forward("prob")
measure(cv2.__version__, forward)
""",
    "OpenCV, on the exported file": """
import cv2
cv2.setNumThreads(threads)
net = cv2.dnn.readNetFromONNX(onnx)
def forward():
    net.setInput(x, "data")
    return net.forward("prob")
measure(cv2.__version__, forward)
""",
}
"""Name -> what is run after COMMON, in an interpreter that has the package."""


def interpreters(opencv: str) -> dict[str, tuple[list[str], str]]:
    """For each runner the command of its interpreter, or why there is none."""
    caffe = os.environ.get("BRIDGE_PYCAFFE_PYTHON", "")
    return {
        "ONNX Runtime": ([sys.executable], ""),
        "Caffe": (shlex.split(caffe), "BRIDGE_PYCAFFE_PYTHON names no interpreter with the real Caffe"),
        "OpenCV, on the caffemodel": (shlex.split(opencv), ""),
        "OpenCV, on the exported file": (shlex.split(opencv), ""),
    }


def run(name: str, command: list[str], lacks: str, folder: Path, threads: int, repeat: int) -> dict[str, Any]:
    """One measurement, or why there is none."""
    if not command:
        return {"skipped": lacks}
    files = [folder / f"net.{suffix}" for suffix in ("prototxt", "caffemodel", "onnx")]
    arguments = [*files, folder / "x.npy", folder / f"{name}.npy", threads, repeat]
    limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [*command, "-c", COMMON + RUNNERS[name], *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **limits},
    )  # fmt: skip
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(name: str, batch: int, folder: Path) -> None:
    """Write the net, its export and an input."""
    import numpy as np

    import bridge
    from benchmarks.load import MODELS
    from bridge.caffe_files.assemble import assemble
    from bridge.caffe_files.prototxt import parse
    from bridge.schema import Blob, Blobs

    text = "".join(MODELS[name]())
    net = assemble(None, parse(text))
    rng, shapes, layers = np.random.default_rng(0), {}, []
    for layer, tops in zip(net.layers, net.infer(), strict=True):
        needed = layer.blob_shapes(*(shapes[bottom] for bottom in layer.bottoms)) if layer.bottoms else {}
        blobs = {
            role: Blob.of(rng.standard_normal(shape, np.float32) * np.sqrt(2 / max(1, np.prod(shape[1:])), dtype="f"))
            for role, shape in needed.items()
        }
        layers.append(dataclasses.replace(layer, blobs=Blobs(blobs)))
        shapes.update(zip(layer.tops, tops, strict=True))
    (folder / "net.prototxt").write_text(text)
    bridge.save(net.replace(name=name, layers=tuple(layers)), folder / "net.caffemodel")
    loaded = bridge.load(folder / "net.prototxt", folder / "net.caffemodel")
    bridge.export_onnx(loaded, folder / "net.onnx", check=False)
    np.save(folder / "x.npy", rng.standard_normal((batch, *shapes["data"][1:]), np.float32))


def table(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one net; print a Markdown table as it goes."""
    import numpy as np

    make(name, options.batch, folder)
    print(f"\n{name}, batch {options.batch}, {options.threads} threads\n\n| | time | of Caffe's | outputs differ by |")
    print("|---|---:|---:|---:|", flush=True)
    found: dict[str, Any] = {}
    for runner, (command, lacks) in sorted(interpreters(options.opencv).items(), key=lambda item: item[0] != "Caffe"):
        found[runner] = entry = run(runner, command, lacks, folder, options.threads, options.repeat)
        if "skipped" in entry:
            print(f"| {runner} | skipped: {entry['skipped']} | | |", flush=True)
            continue
        judge = next(other for other in found if "skipped" not in found[other])
        a, b = (np.load(folder / f"{other}.npy").reshape(-1) for other in (judge, runner))
        entry["apart"] = float(np.abs(a - b).max())
        caffe = found["Caffe"].get("seconds")
        entry["ratio"] = entry["seconds"] / caffe if caffe else None
        ratio = f"{entry['ratio']:.2f}" if caffe else ""
        print(
            f"| {runner} {entry['version']} | {entry['seconds'] * 1e3:.1f} ms | {ratio} | {entry['apart']:.1e} |",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="alexnet,googlenet,vgg16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--opencv", default=sys.executable, help="interpreter that has cv2; this one by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "python": platform.python_version(), "machine": platform.machine(),
        "batch": options.batch, "threads": options.threads, "models": {},
    }  # fmt: skip
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results["models"][name] = table(name, Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
