"""How long a proof takes, and how much memory.

    python benchmarks/verify.py [--repeat 3] [--json verify.json]
    python benchmarks/verify.py --nets [--json nets.json]

The first proves two files of VGG-16's size equal, bit by bit, against a plain read of both. It makes two files
of 553 MB with random values in a temporary folder. Each time is the best of the repeats, the files in the page
cache. It fails if the proof takes more than three times the plain read, as promised.

The second takes nets of large values and few weights (large_nets.py, random weights): the processor time that the
check of an export takes, against one pass of the net through both engines; and the most memory (the process's
largest resident set) that the check and ``bridge verify`` of one draw take. Off that go the weights, and what the
process had in memory after it did the same with a net of one layer: the interpreter and its packages. The rest is
told as a multiple of the largest layer, which is the one whose bottoms and tops together take most, at the extents
of the prototxt; the check runs one image more where the batch is open. It fails above 3 x the pass or 4 x the layer.
Each is measured in a process of its own; all nine take about one minute of processor time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from benchmarks.large_nets import NETS  # noqa: E402
from benchmarks.plant import centred  # noqa: E402
from bridge import engines  # noqa: E402
from bridge.caffe_files.inference import inference_net  # noqa: E402
from bridge.schema import Net, count  # noqa: E402
from bridge.verification.inputs import make_inputs  # noqa: E402
from tests.nets import make  # noqa: E402

CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Outputs of VGG-16's convolutions; 0 is a pooling."""
PROMISE = 3.0
LAYERS = 4.0
"""So many times the largest layer, beside the weights, is what a proof may take of memory."""
TINY = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }\n' + (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }'
)


def vgg16() -> str:
    """The prototxt of VGG-16."""
    lines = [
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } } }'
    ]
    bottom = "data"
    for index, channels in enumerate(CHANNELS):
        name = f"conv{index}" if channels else f"pool{index}"
        kind = "Convolution" if channels else "Pooling"
        conv = f"convolution_param {{ num_output: {channels} kernel_size: 3 pad: 1 }}"
        body = conv if channels else "pooling_param { kernel_size: 2 stride: 2 }"
        lines.append(f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {body} }}')
        bottom = name
    for name, outputs in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        body = f"inner_product_param {{ num_output: {outputs} }}"
        lines.append(f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {body} }}')
        bottom = name
    return "\n".join(lines)


def best(work: Callable[[], Any], repeat: int) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--nets", action="store_true", help="nets of large values in place of two files")
    parser.add_argument("--one", nargs=2, metavar=("NET", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)))
        return 0
    if options.nets:
        return nets(options.json)
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.caffemodel", Path(folder) / "b.caffemodel"
        bridge.save(make(vgg16()), a)
        shutil.copy(a, b)
        seconds = measure(a, b, options.repeat)
        size = a.stat().st_size
    for name, value in seconds.items():
        print(f"{name:32}{value:7.2f} s  {value / seconds['plain read of both']:5.2f} x")
    if options.json:
        Path(options.json).write_text(json.dumps({"bytes": size, "seconds": seconds}, indent=2))
    return int(seconds["weights and checks"] > PROMISE * seconds["plain read of both"])


def nets(target: str | None) -> int:
    """Measure each net, print a line for each, and tell whether one takes too much."""
    rows = {}
    for name in NETS:
        figures = {}
        for what in ("pass", "check", "verify"):
            command = [sys.executable, __file__, "--one", name, what]
            figures[what] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        layer, weights = figures["pass"]["layer"], figures["pass"]["weights"]
        ratio = figures["check"]["seconds"] / figures["pass"]["seconds"]
        used = {what: (figures[what]["memory"] - weights) / layer for what in figures}
        rows[name] = {**figures, "time": ratio, "memory": used}
        print(f"{name:16} one pass {figures['pass']['seconds']:6.1f} s, the check of an export {ratio:5.2f} x")
        print(f"{'':16} largest layer {layer >> 20} MB, weights {weights >> 20} MB; beside the weights ", end="")
        print(", ".join(f"{what} {times:.2f} x" for what, times in used.items()), flush=True)
    if target:
        Path(target).write_text(json.dumps(rows, indent=2))
    return int(
        any(
            row["time"] > PROMISE or max(row["memory"]["check"], row["memory"]["verify"]) > LAYERS
            for row in rows.values()
        )
    )


def one(name: str, what: str) -> dict[str, float]:
    """Measure one thing of one net in this process: seconds of processor time, and bytes of memory."""
    with tempfile.TemporaryDirectory() as folder:
        work(make(TINY), what, Path(folder))  # the packages are loaded now
        net = centred(make(NETS[name]()))
        before, start = _high(), time.process_time()
        work(net, what, Path(folder))
        shapes = net.infer()
        sizes = [
            sum(4 * count(shapes[place.layer][place.top]) for place in net.flow.fed_reads()[index] if place.layer >= 0)
            + sum(4 * count(shape) for shape in shapes[index])
            for index in range(len(net.layers))
        ]
        return {
            "seconds": time.process_time() - start,
            "memory": _high() - before,
            "layer": max(sizes),
            "weights": sum(4 * count(blob.shape) for layer in net.layers for _, blob in layer.blobs.entries()),
        }


def work(net: Net, what: str, folder: Path) -> None:
    """One pass of a net through both engines, the check of its export, or its verification by one draw."""
    if what == "pass":
        served = inference_net(net)
        inputs = make_inputs(served, given=None, seed=0, value_range=None)
        for name in ("onnxruntime", "chainer"):
            engines.make(name, served).outputs(inputs)
    elif what == "check":
        bridge.export_onnx(net, folder / "net.onnx")
    else:
        bridge.save(net, folder / "net.npz")
        chosen: dict[str, Any] = {"engines": ["onnxruntime", "chainer"], "readers": (), "checks": (), "draws": 1}
        report = bridge.verify(folder / "net.npz", **chosen)
        assert report.passed, report


def _high() -> int:
    """The most bytes that this process had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure(a: Path, b: Path, repeat: int) -> dict[str, float]:
    def verify(**options: Any) -> None:
        assert bridge.verify(a, against=b, engines=(), readers=(), **options).passed

    return {
        "plain read of both": best(lambda: [path.read_bytes() for path in (a, b)], repeat),
        "weights": best(lambda: verify(checks=()), repeat),
        "weights and checks": best(verify, repeat),
    }


if __name__ == "__main__":
    sys.exit(main())
