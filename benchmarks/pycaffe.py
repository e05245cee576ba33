"""How fast bridge.caffe constructs and runs nets, against the real Caffe, by one script.

    BRIDGE_PYCAFFE_PYTHON=... python benchmarks/pycaffe.py [--models alexnet,googlenet] [--batches 1,10]
        [--threads 1] [--repeat 10] [--json pycaffe.json]

Makes nets of the shapes of AlexNet and GoogLeNet with random values. The same script, whose
``import caffe`` means the one or the other, constructs each net from its prototxt and
caffemodel, and runs it: a process for each measurement, the two in turn. Of the time to
construct the best of three counts, after a small net was constructed; of the passes the
median, the first one apart. The outputs are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SCRIPT = """
import json, os, sys, time
os.environ["GLOG_minloglevel"] = "3"
import numpy as np
import caffe
tiny, prototxt, caffemodel, inputs, outputs, repeat = sys.argv[1:]
x, repeat = np.load(inputs), int(repeat)
caffe.set_mode_cpu()
warm = caffe.Net(tiny + "/deploy.prototxt", caffe.TEST, weights=tiny + "/weights.caffemodel")
warm.forward()
def measured(work):
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
constructed = []
for _ in range(3):
    net = None
    seconds, net = measured(lambda: caffe.Net(prototxt, caffe.TEST, weights=caffemodel))
    constructed.append(seconds)
net.blobs["data"].reshape(*x.shape)
def forward():
    net.blobs["data"].data[...] = x
    return net.forward()["prob"]
first, y = measured(forward)
np.save(outputs, y)
passes = sorted(measured(forward)[0] for _ in range(repeat))
print(json.dumps({"construct": min(constructed), "first": first, "forward": passes[repeat // 2]}))
"""
TINY = ROOT / "fixtures" / "golden" / "conv_basic"


def run(command: list[str], name: str, folder: Path, threads: int, repeat: int) -> dict[str, Any]:
    """One measurement."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    files = [TINY, folder / "net.prototxt", folder / "net.caffemodel", folder / "x.npy", folder / f"{name}.npy"]
    limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **limits, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if name == "Caffe":
        env.pop("PYTHONPATH")
    arguments = map(str, [script, *files, repeat])
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    import numpy as np

    from benchmarks.infer import make

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="alexnet,googlenet")
    parser.add_argument("--batches", default="1,10")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    caffe = shlex.split(os.environ.get("BRIDGE_PYCAFFE_PYTHON", ""))
    commands = {"bridge.caffe": [sys.executable, "-m", "bridge.caffe"], **({"Caffe": caffe} if caffe else {})}
    results: dict[str, Any] = {}
    print("| net | batch | | bridge.caffe | Caffe | ratio |\n|---|---:|---|---:|---:|---:|")
    for model in options.models.split(","):
        for batch in map(int, options.batches.split(",")):
            with tempfile.TemporaryDirectory() as name:
                make(model, batch, folder := Path(name))
                found = {
                    who: run(command, who, folder, options.threads, options.repeat) for who, command in commands.items()
                }
                if caffe:
                    a, b = (np.load(folder / f"{who}.npy") for who in commands)
                    found["apart"] = {"largest": float(np.abs(a - b).max() / np.abs(b).max())}
            results[f"{model}, batch {batch}"] = found
            for what, value in found["bridge.caffe"].items():
                other = found.get("Caffe", {}).get(what)
                ratio = f"{other * 1e3:.1f} ms | {value / other:.2f}" if other else "| "
                print(f"| {model} | {batch} | {what} | {value * 1e3:.1f} ms | {ratio} |", flush=True)
            if caffe:
                print(f"| {model} | {batch} | largest difference | {found['apart']['largest']:.1e} | | |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
