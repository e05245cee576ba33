"""One script, in the real Caffe and here: the same numbers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import FASHION, GOLDEN, ROOT, need

SCRIPT = """
import sys
import numpy as np
import caffe
prototxt, weights, out, force = sys.argv[1:]
if force == "1":
    text = open(prototxt).read()
    prototxt = out + ".prototxt"
    open(prototxt, "w").write("force_backward: true\\n" + text)
net = caffe.Net(prototxt, weights, caffe.TEST)
rng = np.random.RandomState(0)
found = {}
for step in range(3):
    for name in net.inputs:
        net.blobs[name].data[...] = rng.normal(size=net.blobs[name].data.shape)
    net.forward()
    for name, blob in net.blobs.items():
        found["%d data %s" % (step, name.replace("/", "|"))] = blob.data.copy()
    if force == "1":
        for name in net.outputs:
            net.blobs[name].diff[...] = rng.normal(size=net.blobs[name].data.shape)
        net.backward()
        for name, blob in net.blobs.items():
            found["%d diff %s" % (step, name.replace("/", "|"))] = blob.diff.copy()
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            found["%d param %s %d" % (step, name.replace("/", "|"), index)] = blob.diff.copy()
            blob.data[...] *= 1.1
names = [list(net._layer_names), list(net._blob_names), net.inputs, net.outputs]
names += map(list, net.top_names.values())
found["names"] = np.array(repr(names))
np.savez(out, **found)
"""
CASES = ["net_inplace", "net_alexnet_mini", "net_siamese_shared", "conv_group2", "deconv_group", "pool_ave_pad", "lrn"]


def cases() -> list[tuple[str, str]]:
    known = {path.name: path for path in GOLDEN}
    found = [(name, str(path)) for name, path in known.items() if name.startswith("net_") or name in CASES]
    return [*found, ("fashion", str(FASHION))]


@pytest.mark.caffe
@pytest.mark.parametrize("force", ["0", "1"])
@pytest.mark.parametrize(("name", "folder"), cases())
def test_one_script_in_both(name: str, folder: str, force: str, tmp_path: Path) -> None:
    need("chainer", "onnxruntime")
    (tmp_path / "script.py").write_text(SCRIPT)
    weights = next(path for path in sorted(Path(folder).iterdir()) if path.name.endswith(".caffemodel"))
    found = []
    ours = [sys.executable, "-m", "bridge.caffe"]
    for command in (shlex.split(os.environ["BRIDGE_PYCAFFE_PYTHON"]), ours):
        out = tmp_path / f"{len(found)}.npz"
        env = {**os.environ, **({"PYTHONPATH": str(ROOT)} if command is ours else {}), "GLOG_minloglevel": "2"}
        arguments = ["script.py", str(Path(folder) / "deploy.prototxt"), str(weights), str(out), force]
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(out) as file:
            found.append(dict(file))
    caffe, mine = found
    assert set(caffe) == set(mine)
    for key, expected in caffe.items():
        if key == "names":
            assert str(mine[key]) == str(expected)
        else:
            # Gradients come of diffs of the scale 1 at the outputs; their bound is that of test_gradients.py.
            share, least = (1e-5, 1e-6) if " data " in key else (1e-4, 1)
            bound = share * max(float(np.abs(expected).max(initial=0)), least)
            np.testing.assert_allclose(mine[key], expected, rtol=0, atol=bound, err_msg=key)
