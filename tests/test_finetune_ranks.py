"""Several processes with ChainerMN: they train as one would, resume, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from bridge.errors import MissingExtraError, UsageError
from bridge.finetuning import parallel
from tests import ranks
from tests.conftest import ROOT, missing, need
from tests.finetuning import MODEL, call, command, environment, log_of, losses, parameters, same_bits, small_npz

MPI = pytest.mark.slow


@pytest.fixture(scope="module")
def mpiexec() -> str:
    need("chainer", "mpi4py")
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    return found or missing("mpiexec", "there is no mpiexec (pip install mpich)")


def line(data: Path, output: Path, *more: object, files: tuple[str, str] = MODEL) -> list[object]:
    return ["finetune", *files, "--data", data, "--head", "fc8=4", "--scale", "0.00390625", "-q", "-o", output, *more]


def several(mpiexec: str, number: int, *arguments: str) -> subprocess.Popen[str]:
    """Start a command in several processes; they do not take the processor while they wait for each other."""
    settings = environment(MPIR_CVAR_POLLS_BEFORE_YIELD="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    whole = [mpiexec, "-n", str(number), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(whole, cwd=ROOT, env=settings, **pipes)


def together(mpiexec: str, number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in several processes, to its end."""
    process = several(mpiexec, number, *command(*arguments))
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


def normalised_model(folder: Path) -> tuple[str, str]:
    """The model with a BatchNorm, whose running statistics are each process's own until the end of an epoch."""
    norm = 'layer { name: "norm6" type: "BatchNorm" bottom: "fc6" top: "fc6" }\n'
    text = Path(MODEL[0]).read_text()
    place = text.index('layer { name: "relu6"')
    (folder / "normalised.prototxt").write_text(text[:place] + norm + text[place:])
    return str(folder / "normalised.prototxt"), MODEL[1]


BOUNDS = {
    "plain.SGD": 1e-6, "plain.Nesterov": 1e-6, "plain.Adam": 1e-6, "dropout.SGD": 1e-6,
    "plain.AdaGrad": 5e-6, "plain.RMSProp": 5e-6, "plain.AdaDelta": 5e-6, "plain.AdamW": 5e-6,
}  # fmt: skip


@MPI
@pytest.mark.parametrize("number", [2, 3])
def test_processes_train_as_one_does(mpiexec: str, number: int, tmp_path: Path) -> None:
    """Parameters after 20 steps, all layers trained, with random mirroring and batches of 24, the last of an epoch 12.

    With dropout each process draws what one would have drawn for its part of the batch.
    """
    process = several(mpiexec, number, sys.executable, "-m", "tests.ranks", str(tmp_path), *BOUNDS)
    assert process.communicate(timeout=400)[1] == ""
    found = ranks.differences(tmp_path, list(BOUNDS))
    assert {name: value for name, value in found.items() if not value <= BOUNDS[name]} == {}


@MPI
def test_mpiexec_needs_no_other_flag_and_every_image_counts_once(mpiexec: str, tmp_path: Path) -> None:
    """One run in one folder; 3 held-out images for 2 processes."""
    data = small_npz(tmp_path / "data.npz", 45)
    held = small_npz(tmp_path / "held.npz", 3)
    arguments = ["--freeze", "conv*", "--epochs", "2", "--validation", held]
    done = together(mpiexec, 2, *line(data, tmp_path / "run", *arguments))
    assert done.returncode == 0, done.stderr
    assert "of 3 held-out images right" in done.stdout
    assert done.stdout.count("\n") == 1
    assert sum("validation_loss" in record for record in log_of(tmp_path / "run")) == 2
    alone = call(*line(data, tmp_path / "alone", *arguments))
    assert alone.stdout.split(": ", 1)[1] == done.stdout.split(": ", 1)[1]


@MPI
def test_a_process_without_held_out_images_takes_part(mpiexec: str, tmp_path: Path) -> None:
    data, held = small_npz(tmp_path / "data.npz", 45), small_npz(tmp_path / "held.npz", 1)
    done = together(
        mpiexec, 3, *line(data, tmp_path / "run", "--freeze", "conv*", "--epochs", "1", "--validation", held)
    )
    assert done.returncode == 0, done.stderr
    assert "of 1 held-out images right" in done.stdout


@MPI
def test_a_killed_process_ends_the_run_which_resumes_with_another_number(mpiexec: str, tmp_path: Path) -> None:
    """Nothing of the last snapshot is lost: two processes end in the bits of a whole run, and three go on from it."""
    data = small_npz(tmp_path / "data.npz", 96)
    common = ["--freeze", "conv[12]", "--epochs", "4", "--mirror", "--snapshot-every", "2", "--resume"]
    files = normalised_model(tmp_path)
    arguments = line(data, tmp_path / "run", *common, files=files)
    process = several(mpiexec, 2, *command(*arguments))
    wait_for(tmp_path / "run" / "snapshot.npz", process)
    killed = time.monotonic()
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert time.monotonic() - killed < 10
    assert "KILLED" in (output + errors).upper()  # MPI says it
    with np.load(tmp_path / "run" / "snapshot.npz") as kept:
        assert any(name.startswith("rank1/") for name in kept.files)
    shutil.copytree(tmp_path / "run", tmp_path / "more")
    for number, name in ((2, "run"), (2, "whole"), (3, "more")):
        done = together(mpiexec, number, *line(data, tmp_path / name, *common, files=files))
        assert done.returncode == 0, done.stderr
    assert same_bits(tmp_path / "run", tmp_path / "whole")
    assert len(losses(tmp_path / "more")) == 4 * 3
    assert losses(tmp_path / "more")[:2] == losses(tmp_path / "whole")[:2]


@MPI
def test_another_number_of_processes_ends_with_the_same_parameters(mpiexec: str, tmp_path: Path) -> None:
    data = small_npz(tmp_path / "data.npz", 64)
    common = ["--freeze", "conv*", "--batch-size", "16", "--validation-share", "0", "--resume"]
    first = together(mpiexec, 2, *line(data, tmp_path / "some", *common, "--epochs", "2"))
    assert first.returncode == 0, first.stderr
    then = call(*line(data, tmp_path / "some", *common, "--epochs", "4"))
    assert then.returncode == 0, then.stderr
    assert call(*line(data, tmp_path / "one", *common, "--epochs", "4")).returncode == 0
    mine, theirs = parameters(tmp_path / "some"), parameters(tmp_path / "one")
    for name, values in mine.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-6, err_msg=name)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while process.poll() is None and not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    if not path.exists():
        process.kill()
    assert path.exists(), process.communicate()[1]


def children(root: int) -> list[int]:
    """The Python processes below a process, in the order in which they were started."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(parent), name) for pid, parent, name in (row.split(None, 2) for row in table.splitlines())]
    below, found = {root}, []
    for _ in range(3):
        below |= {pid for pid, parent, _ in rows if parent in below}
        found = [pid for pid, _, name in rows if pid in below and name.startswith("python")]
    return sorted(found)


@MPI
def test_an_error_ends_both_and_is_said_once(mpiexec: str, tmp_path: Path) -> None:
    data = small_npz(tmp_path / "data.npz", 32)
    done = together(mpiexec, 2, *line(data, tmp_path / "run", "--freeze", "cov*"))
    assert done.returncode == 2
    assert done.stderr.count("cov*") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()


@MPI
def test_an_exception_in_one_process_ends_all_with_its_message(mpiexec: str, tmp_path: Path) -> None:
    """Rank 1 fails in its third step, and rank 0 would wait for its gradients."""
    small_npz(tmp_path / "data.npz", 96)
    (tmp_path / "failing.py").write_text(
        "import sys\nfrom bridge.finetuning import batches, parallel\n"
        "own = batches.Batches.__getitem__\n"
        "def failing(self, number):\n"
        "    if parallel.world().Get_rank() == 1 and number == 2:\n        raise RuntimeError('a cable is loose')\n"
        "    return own(self, number)\n"
        "batches.Batches.__getitem__ = failing\nfrom bridge.cli import main\nmain(sys.argv[1:])\n"
    )
    arguments = line(tmp_path / "data.npz", tmp_path / "run", "--freeze", "conv*", "--snapshot-every", "1")
    process = several(mpiexec, 2, sys.executable, str(tmp_path / "failing.py"), *map(str, arguments))
    wait_for(tmp_path / "run" / "snapshot.npz", process)
    start = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode == 2
    assert errors.count("rank 1: RuntimeError: a cable is loose") == 1
    assert (tmp_path / "run" / "snapshot.npz").exists()


# ---- without MPI --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "rows", "weight"), [(0, slice(0, 4), 8 / 9), (1, slice(4, 9), 10 / 9)])
def test_parts_of_a_batch_weigh_as_many_rows_as_they_have(rank: int, rows: slice, weight: float) -> None:
    one = parallel.Ranks()
    one.rank, one.size = rank, 2
    assert one.part(9) == (rows, pytest.approx(weight))


def test_a_rank_without_rows_computes_one_that_does_not_count() -> None:
    one = parallel.Ranks()
    one.rank, one.size = 0, 3
    assert one.part(1) == (slice(0, 1), 0.0)
    one.rank = 2
    assert one.part(1) == (slice(0, 1), 1.0 * 3)


@pytest.mark.parametrize("ranks", [2, 3, 4, 24])
def test_a_part_of_a_batch_is_multiplied_as_the_whole_is(ranks: int) -> None:
    """OpenBLAS has kernels for small products, and NumPy another way for one row, which round otherwise."""
    need("chainer")
    from bridge.chain.functions.helper_rows import part_of_batch, product

    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(rows, 288)).astype(np.float32) for rows in (24, 64))
    whole = product(x, w.T)
    for start in range(0, 24, 24 // ranks):
        rows = slice(start, start + 24 // ranks)
        with part_of_batch(rows, 24):
            assert product(x[rows], w.T).tobytes() == whole[rows].tobytes()


@pytest.mark.parametrize(
    ("variables", "device", "expected"),
    [
        ({}, "0", ""),
        ({"PMI_SIZE": "1"}, "", ""),
        ({"PMI_SIZE": "2"}, "", "naive"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "gpu", "pure_nccl"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "", ""),
        ({"SLURM_STEP_NUM_TASKS": "4", "PMIX_RANK": "0"}, "-1", "naive"),
    ],
)
def test_the_communicator_follows_from_mpiexec_and_the_device(
    variables: dict[str, str], device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parallel.communicator_for(device) == expected


def test_only_communicators_that_exist_are_offered() -> None:
    need("chainer", "mpi4py")
    from bridge.compat import import_chainer

    import_chainer()
    import chainermn

    for name in parallel.COMMUNICATORS:
        try:
            chainermn.create_communicator(name)
        except ValueError as error:
            pytest.fail(str(error))
        except (RuntimeError, ImportError, AttributeError):
            assert name != "naive"  # the others need CUDA
    with pytest.raises(UsageError, match="no communicator 'hierarchical'"):
        parallel.ranks_of("hierarchical")


def test_a_learning_rate_that_is_scaled_keeps_the_number_of_processes(tmp_path: Path) -> None:
    from bridge.finetuning import plan as plans
    from tests.finetuning import config, trained

    loop = trained(config(tmp_path, scale_lr=True, snapshot_every=2))
    recorded = loop.at.state
    recorded.ranks = 2
    with pytest.raises(UsageError, match="began with 2 processes, found 1; with --scale-lr"):
        plans._check_resumed(loop.plan, recorded)
    loop.plan.ranks.size = 4
    try:
        assert plans._paced(loop.plan.config, loop.plan.ranks).base_lr == 4 * loop.plan.config.recipe.base_lr
    finally:
        del loop.plan.ranks.size


def test_mpiexec_without_mpi4py_is_no_run_of_each_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MissingExtraError, match="several processes need mpi4py"):
        parallel.place_on_machine()


def test_a_run_from_own_data_layers_has_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process would train by itself, into the same folder."""
    from bridge.cli.finetune import _from_own_data

    monkeypatch.setenv("PMI_SIZE", "2")
    given = {"solver": "solver.prototxt", "output": str(tmp_path), "resume": False, "quiet": True, "data": ""}
    with click.Context(click.Command("finetune")), pytest.raises(UsageError, match="mpiexec started 2 processes"):
        _from_own_data((), given)
