"""How fast a built chain is, against the same net written by hand with Chainer's own links, and the real Caffe.

    python benchmarks/chain.py [--models fashion,alexnet] [--repeat 7] [--threads 1] [--json chain.json]

The built chain and the hand-written one hold the same weights and run in turns, so that what
else the machine does falls on both; each figure is the best of its turns. Before that their
results are compared. With one thread the clock is that of the processor, which stands still while
other programs run. ``fashion`` is the trained net of the fixtures, ``alexnet`` a net of
AlexNet's shapes at 227 x 227 with random weights. Caffe runs in its own interpreter, named by
BRIDGE_PYCAFFE_PYTHON; without one it is left out by name.

    python benchmarks/chain.py --torch PYTHON [--models alexnet,googlenet,vgg16,resnet50,mobilenet] [--threads 1,2]

compares a training step, forward and backward at batch 4, with the same nets in the PyTorch of that interpreter, on one
thread and on two, and the most memory of each process. BatchNorm and Scale are frozen. See against_torch.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FASHION = ROOT / "fixtures" / "fashion"


def conv(name: str, bottom: str, outputs: int, kernel: int, more: str = "") -> str:
    params = f'num_output: {outputs} kernel_size: {kernel} {more} weight_filler {{ type: "xavier" }}'
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ {params} }} }}\n"
        f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
    )


def norm_pool(number: int, bottom: str, norm: bool) -> str:
    text = f'layer {{ name: "norm{number}" type: "LRN" bottom: "{bottom}" top: "norm{number}" lrn_param {{ local_size: 5 alpha: 0.0001 beta: 0.75 }} }}\n'  # noqa: E501
    bottom = f"norm{number}" if norm else bottom
    pool = f'layer {{ name: "pool{number}" type: "Pooling" bottom: "{bottom}" top: "pool{number}" pooling_param {{ kernel_size: 3 stride: 2 }} }}\n'  # noqa: E501
    return text + pool if norm else pool


def full(name: str, bottom: str, outputs: int, relu: bool) -> str:
    params = f'num_output: {outputs} weight_filler {{ type: "xavier" }}'
    text = f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" inner_product_param {{ {params} }} }}\n'  # noqa: E501
    return text + (f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}\n' if relu else "")


def alexnet() -> str:
    return (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 227 dim: 227 } } }\n'
        + conv("conv1", "data", 96, 11, "stride: 4") + norm_pool(1, "conv1", True)
        + conv("conv2", "pool1", 256, 5, "pad: 2 group: 2") + norm_pool(2, "conv2", True)
        + conv("conv3", "pool2", 384, 3, "pad: 1") + conv("conv4", "conv3", 384, 3, "pad: 1 group: 2")
        + conv("conv5", "conv4", 256, 3, "pad: 1 group: 2") + norm_pool(5, "conv5", False)
        + full("fc6", "pool5", 4096, True) + full("fc7", "fc6", 4096, True) + full("fc8", "fc7", 1000, False)
        + 'layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }\n'
    )  # fmt: skip


def fashion_net() -> tuple[Any, int]:
    import bridge

    return bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel"), 64


def alexnet_net() -> tuple[Any, int]:
    import bridge
    from bridge.caffe_files import prototxt
    from bridge.caffe_files.assemble import assemble

    net = assemble(None, prototxt.parse(alexnet())).replace(name="alexnet")
    return bridge.from_chain(bridge.build_chain(net, seed=0), net), 4


# -- the same nets as their authors' readers write them ------------------------------------------


def by_hand_fashion(chainer: Any) -> Any:
    F, L = chainer.functions, chainer.links

    class Fashion(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.conv1 = L.Convolution2D(1, 16, 5)
                self.conv2 = L.Convolution2D(16, 32, 5, pad=2, groups=2)
                self.conv3 = L.Convolution2D(32, 32, 3, pad=1)
                self.fc6 = L.Linear(288, 64)
                self.fc8 = L.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            h = F.local_response_normalization(F.relu(self.conv1(x)), 5, 1, 2e-5, 0.75)
            h = F.max_pooling_2d(h, 3, 2)
            h = F.max_pooling_2d(F.relu(self.conv2(h)), 3, 2)
            h = F.max_pooling_2d(F.relu(self.conv3(h)), 3, 2)
            return F.softmax(self.fc8(F.dropout(F.relu(self.fc6(h)))))

    return Fashion()


def by_hand_alexnet(chainer: Any) -> Any:
    F, L = chainer.functions, chainer.links

    class Alex(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.conv1 = L.Convolution2D(3, 96, 11, stride=4)
                self.conv2 = L.Convolution2D(96, 256, 5, pad=2, groups=2)
                self.conv3 = L.Convolution2D(256, 384, 3, pad=1)
                self.conv4 = L.Convolution2D(384, 384, 3, pad=1, groups=2)
                self.conv5 = L.Convolution2D(384, 256, 3, pad=1, groups=2)
                self.fc6 = L.Linear(9216, 4096)
                self.fc7 = L.Linear(4096, 4096)
                self.fc8 = L.Linear(4096, 1000)

        def forward(self, x: Any) -> Any:
            h = F.max_pooling_2d(F.local_response_normalization(F.relu(self.conv1(x)), 5, 1, 2e-5, 0.75), 3, 2)
            h = F.max_pooling_2d(F.local_response_normalization(F.relu(self.conv2(h)), 5, 1, 2e-5, 0.75), 3, 2)
            h = F.relu(self.conv4(F.relu(self.conv3(h))))
            h = F.max_pooling_2d(F.relu(self.conv5(h)), 3, 2)
            return F.softmax(self.fc8(F.relu(self.fc7(F.relu(self.fc6(h))))))

    return Alex()


MODELS: dict[str, tuple[Callable[[], tuple[Any, int]], Callable[[Any], Any]]] = {
    "fashion": (fashion_net, by_hand_fashion),
    "alexnet": (alexnet_net, by_hand_alexnet),
}


# -- measuring ---------------------------------------------------------------------------------


def turns(works: dict[str, Callable[[], Any]], repeat: int, clock: str) -> dict[str, float]:
    """The best seconds of each work, all of them in turns."""
    now = getattr(time, clock)
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeat + 1):  # the first turn warms up, and never is the best
        for name, work in works.items():
            start = now()
            work()
            best[name] = min(best[name], now() - start)
    return best


def measure(name: str, repeat: int, clock: str) -> dict[str, Any]:
    import numpy as np

    import bridge
    from bridge.chain.functions import chainer

    make, by_hand = MODELS[name]
    net, batch = make()
    shape = (batch, *net.inputs["data"][1:])
    x = np.random.default_rng(0).random(shape, np.float32)
    built, hand = bridge.build_chain(net), by_hand(chainer)
    bridge.transplant(net, hand, strict=True)
    gradient = np.random.default_rng(1).standard_normal((batch, net.infer()[-1][0][1])).astype(np.float32)

    def forward(chain: Any) -> Callable[[], Any]:
        def run() -> Any:
            with chainer.using_config("train", False), chainer.no_backprop_mode():
                return chain(x)

        return run

    def both(chain: Any) -> Callable[[], Any]:
        def run() -> None:
            with chainer.using_config("train", False):
                chain.cleargrads()
                y = chain(x)
                y.grad = gradient
                y.backward()

        return run

    expected = forward(hand)().array
    np.testing.assert_allclose(forward(built)().array, expected, rtol=1e-4, atol=1e-6)
    found: dict[str, Any] = {"batch": batch}
    for what, make_work in (("forward", forward), ("forward and backward", both)):
        seconds = turns({"built": make_work(built), "by hand": make_work(hand)}, repeat, clock)
        found[what] = {**seconds, "ratio": seconds["built"] / seconds["by hand"]}
    caffe = in_caffe(net, x, gradient, expected, repeat, clock)
    for what in ("forward", "forward and backward"):
        if "skipped" not in caffe:
            found[what].update(caffe=caffe[what], ratio_to_caffe=found[what]["built"] / caffe[what])
    return {**found, **({"caffe skipped": caffe["skipped"]} if "skipped" in caffe else {})}


IN_CAFFE = """
import json, sys, time, numpy as np, caffe
folder, repeat, now = sys.argv[1], int(sys.argv[2]), getattr(time, sys.argv[3])
given = np.load(folder + '/given.npz')
net = caffe.Net(folder + '/net.prototxt', folder + '/net.caffemodel', caffe.TEST)
net.blobs['data'].reshape(*given['x'].shape)
net.reshape()
net.blobs['data'].data[...] = given['x']
def forward(): net.forward()
def both():
    net.forward(); net.clear_param_diffs()
    net.blobs['prob'].diff[...] = given['g']; net.backward()
found = {}
for name, work in (('forward', forward), ('forward and backward', both)):
    best = 1e9
    for _ in range(repeat + 1):
        start = now(); work(); best = min(best, now() - start)
    found[name] = best
found['off'] = float(np.abs(net.blobs['prob'].data - given['y']).max())
print(json.dumps(found))
"""


def in_caffe(net: Any, x: Any, gradient: Any, expected: Any, repeat: int, clock: str) -> dict[str, Any]:
    """Seconds of the real Caffe on the same weights and images."""
    import numpy as np

    import bridge
    from bridge.caffe_files import prototxt

    python = os.environ.get("BRIDGE_PYCAFFE_PYTHON")
    if not python:
        return {"skipped": "BRIDGE_PYCAFFE_PYTHON names no interpreter with the real Caffe"}
    definition = net.to_message().copy()
    definition.messages("layer")[-1].set("loss_weight", 1.0)  # Caffe goes back from losses only
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "net.prototxt").write_text(prototxt.format(definition))
        bridge.save(net, Path(folder, "net.caffemodel"))
        np.savez(Path(folder, "given.npz"), x=x, g=gradient, y=expected)
        done = subprocess.run(
            [python, "-c", IN_CAFFE, folder, str(repeat), clock],
            env={**os.environ, "GLOG_minloglevel": "2"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        return {"skipped": f"{python} failed: {done.stderr.strip().splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["off"] < 1e-4, f"Caffe's results are off by {found['off']}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="by default all")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", help="of the linear algebra; by default 1, with --torch 1,2")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with PyTorch, to compare training steps with")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.torch:
        from benchmarks import against_torch

        names = options.models.split(",") if options.models else list(against_torch.NETS)
        threads = [int(number) for number in (options.threads or "1,2").split(",")]
        figures = against_torch.compare(options.torch, names, threads, options.repeat)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
        return
    options.threads = int(options.threads or 1)
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(options.threads)
    results: dict[str, Any] = {
        "python": platform.python_version(), "machine": platform.machine(), "threads": options.threads, "models": {},
    }  # fmt: skip
    clock = "process_time" if options.threads == 1 else "perf_counter"
    for name in (options.models or ",".join(MODELS)).split(","):
        results["models"][name] = found = measure(name, options.repeat, clock)
        print(f"\n{name}, {found['batch']} images, {options.threads} thread(s)\n")
        print("| | built | by hand | ratio | Caffe | ratio |\n|---|---:|---:|---:|---:|---:|")
        for what in ("forward", "forward and backward"):
            row = found[what]
            caffe = f"{row['caffe'] * 1e3:.1f} ms | {row['ratio_to_caffe']:.2f}" if "caffe" in row else "| "
            mine, hand = (f"{row[key] * 1e3:.1f} ms" for key in ("built", "by hand"))
            print(f"| {what} | {mine} | {hand} | {row['ratio']:.2f} | {caffe} |")
        if "caffe skipped" in found:
            print(f"\nCaffe skipped: {found['caffe skipped']}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
