"""The nets of ``chain.py --torch`` as built chains, in a process of their own.

    python benchmarks/chain_nets.py resnet50 1

It reads requests from standard input; see training_steps.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import training_nets

ROLES = ("weight", "bias", "mean", "variance", "gamma", "beta")


def fill(chain: Any) -> None:
    """Put in the numbers of training_steps.py, and freeze the normalisation: its statistics and its affine part."""
    from benchmarks.training_steps import numbers
    from bridge.chain import freezing

    place = 0
    for index in range(len(chain.layer_names())):
        for role in (role for role in chain.roles(index) if role in ROLES):
            array = chain.array(index, role)
            values = getattr(array, "array", array)
            values[...] = numbers(place, role, values.shape)
            place += 1
        if "scale_factor" in chain.roles(index):
            chain.array(index, "scale_factor")[...] = 1
    for kind in ("batchnorm", "scale"):
        if any(name.startswith(kind) for name in chain.layer_names()):
            freezing.freeze(chain, f"{kind}*")


def main() -> None:
    name, threads = sys.argv[1], sys.argv[2]
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = threads
    import numpy as np

    import bridge
    from benchmarks.training_steps import gradient, images, serve
    from bridge.caffe_files import prototxt
    from bridge.caffe_files.assemble import assemble
    from bridge.chain.functions import chainer
    from bridge.finetuning import blas

    net = assemble(None, prototxt.parse(str(training_nets.NETS[name]())))
    chain = bridge.build_chain(net, seed=0)
    fill(chain)
    del net
    x, g = images(227 if name == "alexnet" else 224), gradient(1000)

    def step() -> Any:
        chain.cleargrads()
        y = chain(x)
        y.grad = g
        y.backward()
        return y.array, (param.grad for param in chain.params(include_uninit=False) if param.grad is not None)

    serve({"version": f"numpy {np.__version__}, {blas.loaded()}", "chainer": chainer.__version__}, step)


if __name__ == "__main__":
    main()
