"""How long it takes to prove two files of VGG-16's size equal, bit by bit, against a plain read of both.

    python benchmarks/verify.py [--repeat 3] [--json verify.json]

Makes two files of 553 MB with random values in a temporary folder. Each time is the best of
the repeats, the files in the page cache. Fails if the proof takes more than three times the
plain read, as promised.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from tests.nets import make  # noqa: E402

CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Outputs of VGG-16's convolutions; 0 is a pooling."""
PROMISE = 3.0


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
    options = parser.parse_args()
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
