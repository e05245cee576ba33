"""The real CuPy takes every call of this project, and NVRTC every source that it is given; no GPU is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, missing, need
from tests.finetuning import environment


@pytest.mark.slow
@pytest.mark.process
def test_cupy_takes_every_call_and_every_kernel_compiles() -> None:
    """Layers and runs in float32 and float16, forward and backward; see :mod:`tests.fake_cuda`."""
    need("chainer", "cupy")
    if sys.platform != "linux":
        missing("cupy", "the CUDA without a device is made for Linux")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda"],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["failed"] == {}
    assert found["refused"] == []
    assert found["sources"]["this project"] >= 15
