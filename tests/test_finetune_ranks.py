"""Several processes with ChainerMN: they train as one would, resume, and end together."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, missing, need
from tests.finetuning import MODEL, call, command, environment, log_of, losses, parameters, same_bits, small_npz

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mpiexec() -> str:
    need("chainer", "mpi4py")
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    return found or missing("mpiexec", "there is no mpiexec (pip install mpich)")


def line(data: Path, output: Path, *more: object, files: tuple[str, str] = MODEL) -> list[object]:
    return ["finetune", *files, "--data", data, "--head", "fc8=4", "--scale", "0.00390625", "-q", "-o", output, *more]


def pair(mpiexec: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in two processes."""
    whole = [mpiexec, "-n", "2", *command(*arguments, "--communicator", "naive")]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment())


def plain_model(folder: Path) -> tuple[str, str]:
    """The model without dropout, whose draws are each process's own."""
    kept = [text for text in Path(MODEL[0]).read_text().splitlines() if "Dropout" not in text]
    (folder / "plain.prototxt").write_text("\n".join(kept))
    return str(folder / "plain.prototxt"), MODEL[1]


def normalised_model(folder: Path) -> tuple[str, str]:
    """The model with a BatchNorm, whose running statistics are each process's own until the end of an epoch."""
    norm = 'layer { name: "norm6" type: "BatchNorm" bottom: "fc6" top: "fc6" }\n'
    text = Path(MODEL[0]).read_text()
    place = text.index('layer { name: "relu6"')
    (folder / "normalised.prototxt").write_text(text[:place] + norm + text[place:])
    return str(folder / "normalised.prototxt"), MODEL[1]


@pytest.mark.parametrize("frozen", ["conv*", "fc8"])
def test_two_processes_train_as_one_does(mpiexec: str, frozen: str, tmp_path: Path) -> None:
    """With all images in each step, the mean of two halves' gradients is the gradient of the whole."""
    data = small_npz(tmp_path / "data.npz", 64)
    common = ["--freeze", frozen, "--batch-size", "64", "--epochs", "6", "--validation-share", "0"]
    files = plain_model(tmp_path)
    done = pair(mpiexec, *line(data, tmp_path / "two", *common, files=files))
    assert done.returncode == 0, done.stderr
    assert call(*line(data, tmp_path / "one", *common, files=files)).returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=1e-5)
    mine, theirs = parameters(tmp_path / "two"), parameters(tmp_path / "one")
    for name, values in mine.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-5, err_msg=name)


def test_validation_counts_every_image_once(mpiexec: str, tmp_path: Path) -> None:
    data = small_npz(tmp_path / "data.npz", 101)
    done = pair(mpiexec, *line(data, tmp_path / "run", "--freeze", "conv*", "--epochs", "2", "--validation", data))
    assert done.returncode == 0, done.stderr
    assert "of 101 held-out images right" in done.stdout
    assert done.stdout.count("\n") == 1
    assert sum("validation_loss" in record for record in log_of(tmp_path / "run")) == 2


def test_two_processes_resume_in_the_same_bits(mpiexec: str, tmp_path: Path) -> None:
    data = small_npz(tmp_path / "data.npz", 96)
    common = ["--freeze", "conv[12]", "--epochs", "4", "--mirror", "--snapshot-every", "2"]
    files = normalised_model(tmp_path)
    assert pair(mpiexec, *line(data, tmp_path / "whole", *common, files=files)).returncode == 0
    arguments = line(data, tmp_path / "halves", *common, "--resume", files=files)
    whole = [mpiexec, "-n", "2", *command(*arguments, "--communicator", "naive")]
    process = subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "halves" / "snapshot.npz").exists():
        pass
    process.kill()
    process.communicate()
    done = pair(mpiexec, *arguments)
    assert done.returncode == 0, done.stderr
    assert same_bits(tmp_path / "whole", tmp_path / "halves")
    alone = call(*line(data, tmp_path / "halves", *common, "--resume", files=files))
    assert alone.returncode == 2
    assert "was started with --communicator naive" in alone.stderr


def test_an_error_ends_both_and_is_said_once(mpiexec: str, tmp_path: Path) -> None:
    data = small_npz(tmp_path / "data.npz", 32)
    done = pair(mpiexec, *line(data, tmp_path / "run", "--freeze", "cov*"))
    assert done.returncode == 2
    assert done.stderr.count("cov*") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()
