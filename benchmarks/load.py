"""How fast models of real sizes open and load, against a plain read of the file.

    python benchmarks/load.py [--models alexnet,googlenet,vgg16] [--repeat 3] [--json load.json]

Makes files of the shapes of AlexNet, GoogLeNet and VGG-16, with random values, in a
temporary folder. Each measurement is a process of its own: the best of the repeats, the
file in the page cache, without the imports (a tiny model goes first); memory is the peak
above that after the imports, mapped pages of the file included. What is not installed is
left out by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TINY = ROOT / "fixtures" / "golden" / "conv_basic" / "weights.caffemodel"

Task = Callable[[Path], Callable[[], Any]]


# -- what is measured: each imports what it needs and returns the work -------------------------


def plain_read(path: Path) -> Callable[[], Any]:
    """The file read into memory."""

    def work() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return work


def reader() -> Callable[[Path], Any]:
    """The reader, with all that it imports; a tiny model is read to have it so."""
    from backends.protobuf import read

    read(TINY)
    return read


def open_only(path: Path) -> Callable[[], Any]:
    """Opened: every layer, parameter and blob indexed."""
    read = reader()
    return lambda: read(path)


def typed_net(path: Path) -> Callable[[], Any]:
    """Opened, and built into a net of typed layers."""
    import bridge

    bridge.load(TINY)
    return lambda: bridge.load(path)


def one_layer(path: Path) -> Callable[[], Any]:
    """Opened, and one layer's weights copied."""
    read = reader()
    return lambda: next(layer for layer in read(path).layers if layer.blobs).blobs[0].numpy().copy()


def copy_all(path: Path) -> Callable[[], Any]:
    """Opened, and every array copied."""
    read = reader()
    return lambda: [blob.numpy().copy() for layer in read(path).layers for blob in layer.blobs]


def safetensors(path: Path) -> Callable[[], Any]:
    """The same arrays loaded by safetensors."""
    from safetensors.numpy import load_file

    return lambda: load_file(path.with_suffix(".safetensors"))


def caffe_function(path: Path) -> Callable[[], Any]:
    """Loaded by Chainer's CaffeFunction."""
    from bridge import compat

    compat.install()
    from chainer.links.caffe import CaffeFunction

    return lambda: CaffeFunction(str(path))


def own_caffe_function(path: Path) -> Callable[[], Any]:
    """Loaded by bridge.chain.CaffeFunction."""
    from bridge.chain import CaffeFunction

    CaffeFunction(TINY)
    return lambda: CaffeFunction(path)


def copy_file(path: Path) -> Callable[[], Any]:
    """The file copied by cp."""
    return lambda: subprocess.run(["cp", path, path.with_name("copy")], check=True)


def copy_and_sync(path: Path) -> Callable[[], Any]:
    """The file copied by cp and flushed to disk, as converting does."""

    def work() -> None:
        subprocess.run(["cp", path, path.with_name("copy")], check=True)
        with open(path.with_name("copy"), "rb") as file:
            os.fsync(file.fileno())

    return work


def converted(suffix: str) -> Task:
    def task(path: Path) -> Callable[[], Any]:
        import bridge

        target = path.with_name(f"converted{suffix}")
        bridge.save(bridge.load(TINY), target)
        return lambda: bridge.save(bridge.load(path), target)

    task.__doc__ = f"Converted to {suffix}."
    return task


TASKS: dict[str, tuple[Task, str]] = {
    "plain read": (plain_read, "plain read"),
    "open only": (open_only, "plain read"),
    "open as typed net": (typed_net, "plain read"),
    "open and copy one layer": (one_layer, "plain read"),
    "open and copy all": (copy_all, "plain read"),
    "safetensors": (safetensors, "plain read"),
    "CaffeFunction": (caffe_function, "plain read"),
    "bridge CaffeFunction": (own_caffe_function, "plain read"),
    "pycaffe": (plain_read, "plain read"),
    "cp": (copy_file, "cp"),
    "cp and sync": (copy_and_sync, "cp"),
    "convert to .caffemodel": (converted(".caffemodel"), "cp"),
    "convert to .safetensors": (converted(".safetensors"), "cp"),
}
"""Name -> what to run, and what its time is compared with."""

PYCAFFE = """
import os, sys, time, json
os.environ["GLOG_minloglevel"] = "3"
import caffe
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
before, start = status("VmRSS"), time.perf_counter()
net = caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)
arrays = [blob.data for blobs in net.params.values() for blob in blobs]
print(json.dumps({"seconds": time.perf_counter() - start, "memory": status("VmHWM") - before}))
"""


# -- a measurement, in its own process -------------------------------------------------------


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(name: str, path: Path) -> dict[str, float]:
    """Run one task here."""
    work = TASKS[name][0](path)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    memory = status("VmHWM") - before
    del result
    return {"seconds": seconds, "memory": memory}


def measured(name: str, path: Path, repeat: int) -> dict[str, Any]:
    """The best of several processes, or why there is none."""
    command = [sys.executable, __file__, "--measure", name, str(path)]
    if name == "pycaffe":
        python = os.environ.get("BRIDGE_PYCAFFE_PYTHON")
        if not python:
            return {"skipped": "BRIDGE_PYCAFFE_PYTHON names no interpreter with the real Caffe"}
        command = [python, "-c", PYCAFFE, str(path.with_suffix(".prototxt")), str(path)]
    runs = []
    for _ in range(repeat):
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            return {"skipped": (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]}
        runs.append(json.loads(run.stdout.splitlines()[-1]))
    return {key: min(run[key] for run in runs) for key in ("seconds", "memory")}


# -- models ----------------------------------------------------------------------------------


def layer(name: str, kind: str, bottom: str, param: str = "", top: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top or name}" {param} }}\n'


def conv(name: str, bottom: str, num_output: int, kernel: int, extra: str = "") -> str:
    param = f"convolution_param {{ num_output: {num_output} kernel_size: {kernel} {extra} }}"
    return layer(name, "Convolution", bottom, param) + layer(f"relu_{name}", "ReLU", name, top=name)


def full(name: str, bottom: str, num_output: int) -> str:
    return layer(name, "InnerProduct", bottom, f"inner_product_param {{ num_output: {num_output} }}")


def pool(name: str, bottom: str, kernel: int, stride: int, extra: str = "") -> str:
    param = f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: {stride} {extra} }}"
    return layer(name, "Pooling", bottom, param)


def lrn(name: str, bottom: str) -> str:
    return layer(name, "LRN", bottom, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")


def data(size: int) -> str:
    shape = f"shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'


def classifier(bottom: str) -> Iterator[str]:
    for name, width in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        yield full(name, bottom, width)
        bottom = name
    yield layer("prob", "Softmax", "fc8")


def alexnet() -> Iterator[str]:
    yield data(227) + conv("conv1", "data", 96, 11, "stride: 4") + lrn("norm1", "conv1") + pool("pool1", "norm1", 3, 2)
    yield conv("conv2", "pool1", 256, 5, "pad: 2 group: 2") + lrn("norm2", "conv2") + pool("pool2", "norm2", 3, 2)
    yield conv("conv3", "pool2", 384, 3, "pad: 1") + conv("conv4", "conv3", 384, 3, "pad: 1 group: 2")
    yield conv("conv5", "conv4", 256, 3, "pad: 1 group: 2") + pool("pool5", "conv5", 3, 2)
    yield from classifier("pool5")


def vgg16() -> Iterator[str]:
    yield data(224)
    bottom = "data"
    for block, (depth, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], 1):
        for i in range(1, depth + 1):
            yield conv(f"conv{block}_{i}", bottom, width, 3, "pad: 1")
            bottom = f"conv{block}_{i}"
        yield pool(f"pool{block}", bottom, 2, 2)
        bottom = f"pool{block}"
    yield from classifier(bottom)


def inception(name: str, bottom: str, widths: tuple[int, ...]) -> str:
    one, reduce3, three, reduce5, five, projection = widths
    text = conv(f"{name}/1x1", bottom, one, 1) + conv(f"{name}/3x3_reduce", bottom, reduce3, 1)
    text += conv(f"{name}/3x3", f"{name}/3x3_reduce", three, 3, "pad: 1") + conv(
        f"{name}/5x5_reduce", bottom, reduce5, 1
    )
    text += conv(f"{name}/5x5", f"{name}/5x5_reduce", five, 5, "pad: 2")
    text += pool(f"{name}/pool", bottom, 3, 1, "pad: 1") + conv(f"{name}/pool_proj", f"{name}/pool", projection, 1)
    branches = " ".join(f'bottom: "{name}/{branch}"' for branch in ("3x3", "5x5", "pool_proj"))
    return text + layer(f"{name}/output", "Concat", f"{name}/1x1", branches)


def auxiliary(name: str, bottom: str) -> str:
    average = "pooling_param { pool: AVE kernel_size: 5 stride: 3 }"
    text = layer(f"{name}/ave_pool", "Pooling", bottom, average) + conv(f"{name}/conv", f"{name}/ave_pool", 128, 1)
    return text + full(f"{name}/fc", f"{name}/conv", 1024) + full(f"{name}/classifier", f"{name}/fc", 1000)


def googlenet() -> Iterator[str]:
    yield data(224) + conv("conv1", "data", 64, 7, "pad: 3 stride: 2") + pool("pool1", "conv1", 3, 2)
    yield lrn("norm1", "pool1") + conv("conv2_reduce", "norm1", 64, 1) + conv("conv2", "conv2_reduce", 192, 3, "pad: 1")
    yield lrn("norm2", "conv2") + pool("pool2", "norm2", 3, 2)
    yield inception("3a", "pool2", (64, 96, 128, 16, 32, 32)) + inception(
        "3b", "3a/output", (128, 128, 192, 32, 96, 64)
    )
    yield pool("pool3", "3b/output", 3, 2) + inception("4a", "pool3", (192, 96, 208, 16, 48, 64))
    yield auxiliary("loss1", "4a/output") + inception("4b", "4a/output", (160, 112, 224, 24, 64, 64))
    yield inception("4c", "4b/output", (128, 128, 256, 24, 64, 64))
    yield inception("4d", "4c/output", (112, 144, 288, 32, 64, 64)) + auxiliary("loss2", "4d/output")
    yield inception("4e", "4d/output", (256, 160, 320, 32, 128, 128)) + pool("pool4", "4e/output", 3, 2)
    yield inception("5a", "pool4", (256, 160, 320, 32, 128, 128))
    yield inception("5b", "5a/output", (384, 192, 384, 48, 128, 128))
    yield layer("pool5", "Pooling", "5b/output", "pooling_param { pool: AVE kernel_size: 7 stride: 1 }")
    yield full("loss3/classifier", "pool5", 1000) + layer("prob", "Softmax", "loss3/classifier")


MODELS = {"alexnet": alexnet, "googlenet": googlenet, "vgg16": vgg16}


def make(name: str, folder: Path) -> Path:
    """Write the model, with random values, as caffemodel, prototxt and safetensors."""
    import numpy as np

    import bridge
    from bridge.caffe_files.assemble import assemble
    from bridge.caffe_files.prototxt import parse
    from bridge.schema import Blob, Blobs

    text = "".join(MODELS[name]())
    net = assemble(None, parse(text))
    rng, shapes, layers = np.random.default_rng(0), {}, []
    for item, tops in zip(net.layers, net.infer(), strict=True):
        needed = item.blob_shapes(*(shapes[bottom] for bottom in item.bottoms)) if item.bottoms else {}
        blobs = {role: Blob.of(rng.standard_normal(shape, np.float32)) for role, shape in needed.items()}
        layers.append(dataclasses.replace(item, blobs=Blobs(blobs)))
        shapes.update(zip(item.tops, tops, strict=True))
    path = folder / f"{name}.caffemodel"
    path.with_suffix(".prototxt").write_text(text)
    full_net = net.replace(name=name, layers=tuple(layers))
    for target in (path, path.with_suffix(".safetensors")):
        bridge.save(full_net, target)
    return path


# -- the table -------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    results: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "models": {}}
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results["models"][name] = table(name, Path(folder), options.tasks.split(","), options.repeat)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def table(name: str, folder: Path, tasks: list[str], repeat: int) -> dict[str, Any]:
    """Measure one model; print a Markdown table as it goes."""
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
                    "from pathlib import Path; from benchmarks.load import make\n"
                    f"make({name!r}, Path({str(folder)!r}))"], check=True)  # fmt: skip
    path = folder / f"{name}.caffemodel"
    size = path.stat().st_size
    print(f"\n{name}, {size / 1e6:.0f} MB\n\n| | time | compared | memory |\n|---|---:|---:|---:|", flush=True)
    found: dict[str, Any] = {"bytes": size}
    for task in tasks:
        found[task] = entry = measured(task, path, repeat)
        if "skipped" in entry:
            print(f"| {task} | | | skipped: {entry['skipped']} |", flush=True)
            continue
        base = TASKS[task][1]
        entry["ratio"] = entry["seconds"] / found[base]["seconds"] if base in found else float("nan")
        print(f"| {task} | {entry['seconds'] * 1e3:.1f} ms | {entry['ratio']:.3g} x {base} "
              f"| {entry['memory'] / 1e6:.0f} MB |", flush=True)  # fmt: skip
    if "seconds" in found.get("CaffeFunction", {}):
        for task in ("open and copy all", "open and copy one layer", "bridge CaffeFunction"):
            if task in found:
                factor = found["CaffeFunction"]["seconds"] / found[task]["seconds"]
                print(f"\n'{task}' is {factor:.0f} times as fast as CaffeFunction", flush=True)
    return found


if __name__ == "__main__":
    main()
