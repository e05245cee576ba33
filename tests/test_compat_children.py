"""Repairs reach the processes that Chainer starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing, need
from tests.test_compat import installed

# -- children --------------------------------------------------------------------------------

PROGRAM = """
import sys
if __name__ == "__main__":  # a child imports this file under another name
    sys.path.insert(0, {root!r})
    from bridge import compat
    if "alone" in sys.argv:
        compat.follow = lambda without: None
    compat.install()

import multiprocessing
import {module}


def report(queue):
    from bridge import compat
    queue.put({{patch.module: patch.status for patch in compat.patches()}})


def grandchild(queue):
    child = multiprocessing.get_context(sys.argv[1]).Process(target=report, args=(queue,))
    child.start()
    child.join()


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    target = grandchild if "deep" in sys.argv else report
    child = context.Process(target=target, args=(queue,))
    child.start()
    child.join()
    print(queue.get(timeout=1)["{module}"], child.exitcode)
"""


def start(tmp_path: Path, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no start method {method}")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(root=str(ROOT), module="chainer.functions.connection.deconvolution_2d"))
    command = [sys.executable, str(script), method, *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)


@installed
@pytest.mark.parametrize("depth", ["", "deep"])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_are_patched(tmp_path: Path, method: str, depth: str) -> None:
    done = start(tmp_path, method, depth)
    assert done.stdout == "applied 0\n", done.stderr


@installed
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_would_not_be_patched_by_themselves(tmp_path: Path, method: str) -> None:
    assert start(tmp_path, method, "alone").stdout != "applied 0\n"


@installed
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_chainers_own_parallel_iterator_works(tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(f"""
import sys
if __name__ == "__main__":
    sys.path.insert(0, {str(ROOT)!r})
    from bridge import compat
    compat.install()
import multiprocessing
import numpy
import chainer

class Squares(chainer.dataset.DatasetMixin):
    def __len__(self):
        return 8
    def get_example(self, i):
        return chainer.functions.resize_images(numpy.full((1, 1, 2, 2), i * i, "f"), (1, 1)).array.item()

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    iterator = chainer.iterators.MultiprocessIterator(Squares(), 8, n_processes=2, repeat=False, shuffle=False)
    print(next(iterator))
    iterator.finalize()
""")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "[0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0]\n", done.stderr


@installed
def test_one_iterator_feeds_two_ranks() -> None:
    need("mpi4py")
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if mpiexec is None:
        missing("mpiexec", "there is no mpiexec (pip install mpich)")
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from bridge import compat; compat.install()
import numpy, chainer, chainermn
comm = chainermn.create_communicator("naive")
data = chainer.datasets.TupleDataset(numpy.arange(4, dtype="f"), numpy.arange(4, dtype="f"))
iterator = chainer.iterators.SerialIterator(data, 4, shuffle=False)
iterator = chainermn.iterators.create_multi_node_iterator(iterator, comm)
assert [float(x) for x, _ in next(iterator)] == [0, 1, 2, 3]
"""
    command = [str(mpiexec), "-n", "2", sys.executable, "-c", code]
    environment = {**os.environ, "CHAINERMN_FORCE_ABORT_ON_EXCEPTION": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_user_had_a_forkserver_import_stays() -> None:
    script = """
import sys, multiprocessing
multiprocessing.set_forkserver_preload(["json"])
from bridge import compat
compat.install()
from multiprocessing.forkserver import _forkserver
print(_forkserver._preload_modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "['bridge.compat.child', 'json']\n"
