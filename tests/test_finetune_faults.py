"""Never lost: a run that is killed, interrupted or out of room goes on; faults are said in one line."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import BridgeError, FormatError, ModelError, OutputError, UsageError
from tests.conftest import ROOT, missing, need
from tests.finetuning import MODEL, call, command, config, log_of, run, same_bits, small_npz, small_pictures, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def arguments(tmp_path: Path, epochs: int = 60, *more: object) -> list[object]:
    """A run whose first layers are frozen, with a snapshot every third step."""
    data = tmp_path / "data.npz"
    if not data.exists():
        small_npz(data, 320)
    return [
        "finetune", *MODEL, "--data", data, "--head", "fc8=4", "--freeze", "conv[12]", "--epochs", epochs,
        "--scale", "0.00390625", "--snapshot-every", "3", "-q", *more,
    ]  # fmt: skip


def begun(tmp_path: Path, output: Path, *more: object) -> subprocess.Popen[str]:
    line = command(*arguments(tmp_path, 60, "-o", output, "--resume", *more))
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def after_snapshots(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Wait until so many snapshots were seen, or the process has ended."""
    seen, last, deadline = 0, stamp(output / "snapshot.npz"), time.monotonic() + 60
    while seen < count and process.poll() is None and time.monotonic() < deadline:
        now = stamp(output / "snapshot.npz")
        seen, last = seen + (now != last), now
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; its folder's parent has the data."""
    need("chainer")
    root = tmp_path_factory.mktemp("whole")
    done = call(*arguments(root, 60, "-o", root / "run"))
    assert done.returncode == 0, done.stderr
    return root


# ---- killed, interrupted --------------------------------------------------------------------


def test_a_run_that_was_killed_ten_times_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    rng, output = random.Random(5), tmp_path / "run"
    kills = []
    for number in range(10):
        process = begun(whole, output)
        if number in (0, 4):  # before the first step
            time.sleep(rng.uniform(0.1, 0.9))
        else:
            after_snapshots(process, output, rng.randint(1, 8))
            time.sleep(rng.uniform(0, 0.01))
        kills.append(process.poll() is None)
        process.kill()
        process.communicate()
    assert all(kills)
    process = begun(whole, output)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert same_bits(whole / "run", output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_every_step(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = begun(whole, output)
    after_snapshots(process, output, 3)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert "interrupted" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    steps = len(log_of(output))
    assert 0 < steps < len(log_of(whole / "run"))
    with np.load(output / "snapshot.npz") as snapshot:
        assert f'"iteration": {steps},'.encode() in snapshot["__state__"].tobytes()
    process = begun(whole, output)
    process.communicate(timeout=120)
    assert same_bits(whole / "run", output)


def test_a_run_that_stops_before_its_thaw_resumes_behind_it(tmp_path: Path) -> None:
    from bridge.finetuning.listener import Listener
    from bridge.finetuning.run import begin

    settings: dict[str, Any] = {"unfreeze_at": 1, "epochs": 3, "trunk_engine": "chainer", "snapshot_every": 1}
    run(config(tmp_path, output=str(tmp_path / "whole"), **settings))

    def pull_the_plug(record: dict[str, Any]) -> None:
        if record["iteration"] in (2, 6):
            raise InterruptedError

    for resume in (False, True):
        with pytest.raises(InterruptedError):
            begin(config(tmp_path, resume=resume, **settings), Listener(pull_the_plug)).run()
    run(config(tmp_path, resume=True, **settings))
    assert same_bits(tmp_path / "whole", tmp_path / "run")


# ---- no room --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        missing("tmpfs", "a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(whole: Path, small_disk: Path) -> None:
    process = begun(whole, small_disk / "run")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "cannot be written: No space left on device" in errors
    assert not list((small_disk / "run").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=8M", small_disk], check=True)
    process = begun(whole, small_disk / "run")
    process.communicate(timeout=120)
    assert same_bits(whole / "run", small_disk / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills_while_pictures_are_decoded(workers: int, small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    line = ["finetune", *MODEL, "--data", small_pictures(tmp_path / "pictures"), "--head", "fc8=3", "-q"]
    more = ["--resize", "256", "--crop", "28", "--cache-memory", "0", "--workers", workers, "-o", small_disk / "run"]
    done = call(*line, *more)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written: No space left on device" in done.stderr
    assert not list((small_disk / "run").iterdir())


def _limit(kind: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (size, size))


@pytest.mark.parametrize("size", [1_000, 100_000, 140_000])
def test_files_that_may_not_grow(size: int, whole: Path, tmp_path: Path) -> None:
    """Settings, snapshot or model do not fit; what there was stays, and the run goes on when there is room."""
    line = arguments(whole, 60, "-o", tmp_path / "run", "--resume")
    done = call(*line, preexec_fn=_limit(resource.RLIMIT_FSIZE, size))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    done = call(*line)
    assert done.returncode == 0, done.stderr
    assert same_bits(whole / "run", tmp_path / "run")


def test_features_that_do_not_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.finetuning import stored

    def full(*_: object) -> None:
        raise OutputError("cannot be written: No space left on device", where="cache")

    monkeypatch.setattr(stored, "atomic", full)
    with pytest.raises(OutputError, match="No space left"):
        trained(config(tmp_path, cache_dir=str(tmp_path / "cache")))


def test_too_little_memory_for_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.finetuning import loop
    from bridge.finetuning.run import begin

    made = begin(config(tmp_path, snapshot_every=1))
    forward = loop.forward
    calls = []

    def hungry(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            np.empty(1 << 50)
        return forward(*arguments)

    monkeypatch.setattr(loop, "forward", hungry)
    with pytest.raises(UsageError, match=r"not enough memory in iteration 3: Unable to allocate"):
        made.run()
    assert len(log_of(tmp_path / "run")) == 3
    monkeypatch.undo()
    trained(config(tmp_path, snapshot_every=1, resume=True))
    trained(config(tmp_path, output=str(tmp_path / "whole")))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_an_image_too_large_for_the_memory(tmp_path: Path) -> None:
    """The net's input is fine, its features are not: the process may have 1.5 GB."""
    text = Path(MODEL[0]).read_text().replace("dim: 10 dim: 1 dim: 28 dim: 28", "dim: 1 dim: 1 dim: 6000 dim: 6000")
    text = text[: text.index('layer { name: "fc6"')]
    pool = 'layer { name: "all" type: "Pooling" bottom: "pool3" top: "all" pooling_param { global_pooling: true } }\n'
    head = 'layer { name: "fc" type: "InnerProduct" bottom: "all" top: "fc" inner_product_param { num_output: 2 } }\n'
    (tmp_path / "net.prototxt").write_text(text + pool + head)
    np.savez(tmp_path / "large.npz", x=np.zeros((2, 6000, 6000), np.uint8), y=np.arange(2))
    line = ["finetune", tmp_path / "net.prototxt", MODEL[1], "--data", tmp_path / "large.npz", "-q", "-o"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    limit = _limit(resource.RLIMIT_AS, 1_500_000_000)
    done = call(*line, tmp_path / "run", "--trunk-engine", "chainer", preexec_fn=limit, env=environment)
    assert done.returncode == 2, done.stderr
    assert "not enough memory" in done.stderr
    assert "Traceback" not in done.stderr


# ---- what cannot be done --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"heads": ("fc8=2",)}, UsageError, r"(?s)labels run from 0 to 3, the net tells 2.*--head fc8=4"),
        ({"heads": ("fc9=4",)}, BridgeError, "no layer 'fc9'"),
        ({"heads": ("pool1=4",)}, UsageError, "no num_output"),
        ({"heads": ("fc8",)}, UsageError, "expected LAYER=10"),
        ({"heads": ("fc8=fc6:4",)}, UsageError, "has a layer 'fc6' already"),
        ({"heads": ("fc8=4", "fc8=5")}, UsageError, "layer 'fc8' two heads"),
        ({"recipe": "Adamm"}, UsageError, "no optimizer 'Adamm'"),
        ({"freeze": ("cov*",)}, UsageError, "cov"),
        ({"freeze": ("*",), "freeze_exactly": True}, UsageError, "nothing to train"),
        ({"lr_mult": {"fx*": 2.0}}, UsageError, "fx"),
        ({"lr_mult": {"*": 0.0}}, UsageError, "nothing to train"),
        ({"data": "/nowhere/at/all"}, BridgeError, "does not exist"),
        ({"data": "nowhere:at_all"}, UsageError, "cannot be imported"),
        ({"validation": "/nowhere"}, BridgeError, "does not exist"),
        ({"mean": "1,x"}, BridgeError, "1,x"),
        ({"communicator": "smoke"}, BridgeError, "smoke|mpi4py"),
    ],
)
def test_what_cannot_be_done_says_so_in_one_line_and_leaves_nothing(
    changes: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    if "recipe" in changes:
        from bridge.finetuning import Recipe

        changes = {"recipe": Recipe(type=changes["recipe"])}
    with pytest.raises(error, match=words):
        run(config(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--head", "fc8"], "--head fc8: expected LAYER=10"),
        (["--crop", "x"], "--crop x: expected"),
        (["--crop", "\u00b2"], "--crop \u00b2: expected"),
        (["--device", "\u00b2"], "device '\u00b2'"),
        (["--lr-mult", "fc8=fast"], "--lr-mult fc8=fast"),
        (["--cache-memory", "much"], "--cache-memory much"),
        (["--cache-memory", "-5G"], "--cache-memory -5G"),
        (["--cache-memory", "1e400"], "--cache-memory 1e400"),
        (["--momentum", "2"], "momentum 2: expected"),
        (["--lr", "-1"], "rate -1"),
        (["--lr", "nan"], "must be finite"),
        (["--solver", "none.prototxt"], "none.prototxt"),
        (["--lr-policy", "wave"], "wave"),
        (["--class-names", "none.txt"], "none.txt"),
        (["--lr-policy", "exp"], "--lr-policy exp needs --gamma"),
        (["--half"], "takes a GPU"),
        (["--device", "7"], "device '7'"),
        (["--optimizer", "Adamm"], "no optimizer"),
    ],
)
def test_the_command_line_says_so_too(more: list[str], words: str, tmp_path: Path) -> None:
    done = call(*arguments(tmp_path, 1, "-o", tmp_path / "run", *more))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_outputs_without_a_class_are_remarked_on(tmp_path: Path) -> None:
    notes: list[str] = []
    run(config(tmp_path, heads=("fc8=9",), epochs=1), notes)
    assert "the net tells 9 classes apart, the data have 4" in notes
    notes.clear()
    run(config(tmp_path, output=str(tmp_path / "other"), epochs=1), notes)
    assert not any("classes apart" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": None}, "numbers from 0 to 255"),
        ({"validation_share": 0.005}, "none are held out"),
        ({"validation_share": 0.0, "patience": 2}, "without validation data"),
        ({"freeze": (), "unfreeze_at": 1}, "where nothing is frozen"),
        ({"unfreeze_at": 5}, "after the last of 1 epochs"),
        ({"freeze": ("conv*", "fc8")}, "new parameters are frozen, and stay as their fillers made them: fc8"),
    ],
)
def test_what_comes_to_nothing_or_is_likely_forgotten_is_remarked_on(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    notes: list[str] = []
    run(config(tmp_path, output=str(tmp_path / "usual"), epochs=1), notes)
    assert not any(words in note for note in notes)
    run(config(tmp_path, **{"epochs": 1, **changes}), notes)
    assert any(words in note for note in notes)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_snapshot(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    wild = Recipe(base_lr=1e18, momentum=0.9)
    with pytest.raises(ModelError, match=r"the loss is \S+ in iteration"), np.errstate(all="ignore"):
        run(config(tmp_path, recipe=wild, snapshot_every=1))
    with np.load(tmp_path / "run" / "snapshot.npz") as snapshot:
        assert f'"iteration": {len(log_of(tmp_path / "run"))},'.encode() in snapshot["__state__"].tobytes()


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    trained(config(tmp_path, epochs=1))
    with pytest.raises(UsageError, match="--resume"):
        run(config(tmp_path, epochs=1))
    with pytest.raises(UsageError, match="was started with --batch-size 32, now it is 16"):
        run(config(tmp_path, epochs=1, resume=True, batch_size=16))
    with pytest.raises(UsageError, match=r"was started with --seed 7, now it is 8"):
        run(config(tmp_path, epochs=1, resume=True, recipe=Recipe(momentum=0.9, weight_decay=5e-4, seed=8)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and holds no run"):
        run(config(tmp_path, output=str(tmp_path / "mine")))


def test_more_epochs_make_a_finished_run_a_longer_one(tmp_path: Path) -> None:
    from bridge.finetuning import Recipe

    whole = config(tmp_path, epochs=3, output=str(tmp_path / "whole"), trunk_engine="chainer")
    run(whole)
    run(config(tmp_path, epochs=1, trunk_engine="chainer"))
    run(config(tmp_path, epochs=3, trunk_engine="chainer", resume=True))
    assert same_bits(tmp_path / "whole", tmp_path / "run")
    with pytest.raises(UsageError, match="was started with --epochs 3, now it is 2"):
        run(config(tmp_path, epochs=2, trunk_engine="chainer", resume=True))
    paced = Recipe(lr_policy="cosine")
    run(config(tmp_path, epochs=1, recipe=paced, output=str(tmp_path / "paced")))
    with pytest.raises(UsageError, match="was started with --epochs 1, now it is 2"):
        run(config(tmp_path, epochs=2, recipe=paced, output=str(tmp_path / "paced"), resume=True))


def test_other_data_under_the_same_name(tmp_path: Path) -> None:
    settings = config(tmp_path, epochs=1)
    trained(settings)
    small_npz(Path(settings.data), 150)
    with pytest.raises(UsageError, match="not those that the run began with"):
        run(config_resumed(settings))


def config_resumed(settings: Any) -> Any:
    import dataclasses

    return dataclasses.replace(settings, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b[:200] + b"x" * 50 + b[250:]])
def test_a_damaged_snapshot_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    settings = config(tmp_path, epochs=1)
    trained(settings)
    path = tmp_path / "run" / "snapshot.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=r"(?s)snapshot\.npz: is no snapshot.*another folder"):
        run(config_resumed(settings))


def test_a_finished_run_resumed_is_a_finished_run(tmp_path: Path) -> None:
    settings = config(tmp_path, epochs=1)
    run(settings)
    before = (tmp_path / "run" / "model.caffemodel").read_bytes(), log_of(tmp_path / "run")
    run(config_resumed(settings))
    assert ((tmp_path / "run" / "model.caffemodel").read_bytes(), log_of(tmp_path / "run")) == before
