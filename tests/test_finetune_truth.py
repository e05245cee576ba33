"""A run tells the truth about itself: epochs, its plan, a verdict, what stopped it, and who else is at work."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import ModelError, UsageError
from tests.conftest import ROOT, need
from tests.finetuning import MODEL, call, command, config, environment, log_of, run, same_bits, small_npz, trained


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def arguments(tmp_path: Path, *more: object) -> list[object]:
    data = tmp_path / "data.npz"
    if not data.exists():
        small_npz(data, 160)
    return ["finetune", *MODEL, "--data", data, "--head", "fc8=4", "--scale", "0.00390625", *more]


# ---- what it shows ------------------------------------------------------------------------------


def test_redirected_output_has_the_plan_and_a_line_per_epoch(tmp_path: Path) -> None:
    done = call(*arguments(tmp_path, "--train-head", "--epochs", 3, "-o", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("reading ")
    for start in ("frozen: conv1", "trained: fc8", "trunk of ", "measured: ", "expected: about "):
        assert any(line.startswith(start) for line in lines), start
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert all("held out: loss" in line for line in epochs)
    assert "best so far" in epochs[0]
    assert done.stdout.count("\n") == 1


def test_the_first_line_comes_before_anything_heavy(tmp_path: Path) -> None:
    line = command(*arguments(tmp_path, "--epochs", 1, "-o", tmp_path / "run"))
    code = f"import sys; sys.argv[1:] = {line[3:]!r}\n" + (
        "import builtins, click\n"
        "def echo(*a, _said=click.echo, **k):\n"
        "    heavy = {'numpy', 'chainer', 'onnx'} & set(sys.modules)\n"
        "    _said(*a, **k); print('heavy', heavy or 'none'); sys.stdout.flush(); raise SystemExit\n"
        "click.echo = echo\n"
        "from bridge.cli import main; main()\n"
    )
    done = subprocess.run([line[0], "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "reading " in done.stderr
    assert "heavy none" in done.stdout


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    from bridge.finetuning import Listener
    from bridge.finetuning.run import begin

    plain = trained(config(tmp_path, output=str(tmp_path / "plain"), freeze=("conv1",)))
    plans: list[Any] = []
    told = begin(
        config(tmp_path, output=str(tmp_path / "told"), freeze=("conv1",)), Listener(plan=lambda *p: plans.append(p))
    )
    told.run()
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "told")
    mine, theirs = plain.trained.copies(), told.trained.copies()
    assert all(mine[key].tobytes() == theirs[key].tobytes() for key in mine)
    (plan, timing), *_ = plans
    assert "trunk of" in str(plan)
    assert timing.trunk > 0
    assert timing.step > 0
    assert timing.total > 0


# ---- the verdict --------------------------------------------------------------------------------


def test_a_run_that_learns_nothing_says_so_and_ends_with_status_1(tmp_path: Path) -> None:
    small_npz(tmp_path / "data.npz", 200)
    line = arguments(tmp_path, "--train-head", "--lr", "0", "--epochs", 2, "-o", tmp_path / "run", "--seed", 1)
    done = call(*[word for word in line if word not in ("--scale", "0.00390625")], "--validation-share", "0.5")
    assert done.returncode == 1, done.stderr
    assert "no better than guessing" in done.stderr
    assert "--show-data" in done.stderr
    assert (tmp_path / "run" / "model.caffemodel").exists()
    assert "no better than guessing" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (1.8, 1.61, "stays at that of guessing"),
        (38.4, 38.3, "hardly moved, from 38.4 to 38.3: the rate 0.01 is too low"),
        (2.0, 40.0, "rose from 2 to 40: the rate 0.01 is too high"),
        (2.0, 0.1, "the held-out ones are not"),
        (40.0, 20.0, "still 20"),
    ],
)
def test_the_losses_tell_what_is_usually_wrong(first: float, last: float, words: str) -> None:
    from bridge.finetuning.verdict import cause_of_losses

    assert words in cause_of_losses(first, last, 1.609, 0.01)


def test_chance_is_the_binomial_tail() -> None:
    from bridge.finetuning.verdict import chance

    assert chance(0, 10, 0.2) == 1
    assert chance(10, 10, 0.2) == pytest.approx(0.2**10)
    assert chance(4, 20, 0.2) == pytest.approx(0.588551, abs=1e-6)
    assert chance(9, 20, 0.2) == pytest.approx(0.009982, abs=1e-6)


@pytest.mark.parametrize(
    ("true", "predicted", "learned"),
    [
        ([0, 1, 2, 3] * 5, [0, 1, 2, 3] * 5, True),
        ([0, 1, 2, 3] * 5, [0] * 20, False),
        ([0] * 36 + [1] * 4, [0] * 40, False),
        ([0, 1], [0, 1], None),
    ],
)
def test_a_model_is_held_against_the_most_frequent_class(
    true: list[int], predicted: list[int], learned: bool | None, tmp_path: Path
) -> None:
    import dataclasses

    from bridge.finetuning.evaluation import Evaluation
    from bridge.finetuning.verdict import judge

    loop = trained(config(tmp_path, epochs=1))
    outcome = loop.run()
    right = float(np.mean(np.equal(true, predicted)))
    found = Evaluation(1.0, right, np.array(true), np.array(predicted))
    verdict = judge(loop.plan, dataclasses.replace(outcome, evaluation=found))
    assert verdict.learned is learned
    assert bool(verdict.causes) == (learned is False)


# ---- numbers that are none ------------------------------------------------------------------------


def test_a_validation_loss_that_is_no_number_is_logged_as_null_and_is_never_the_best(tmp_path: Path) -> None:
    from bridge.finetuning import Listener
    from bridge.finetuning.run import begin

    loop = begin(config(tmp_path, epochs=3))
    kept = type(loop).evaluate

    def broken(self: Any, source: Any) -> Any:
        import dataclasses

        found = kept(self, source)
        odd = self.at.state.iteration > loop.plan.batches.per_epoch
        return dataclasses.replace(found, loss=float("nan")) if odd else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loop), "evaluate", broken)
        outcome = loop.run()
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    held = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert held[0] is not None
    assert held[1:] == [None, None]
    assert outcome.best_epoch == 0
    assert np.isnan([record.get("validation_loss", 0) for record in outcome.history]).sum() == 2
    assert Listener().plan is None


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    from bridge.finetuning.run import begin

    loop = begin(config(tmp_path, epochs=1, validation_share=0.0))
    update = loop.updater.update

    def overflow(rate: float) -> None:
        update(rate)
        if loop.at.state.iteration == loop.plan.iterations - 1:
            loop.chain.child("fc8").W.array[0, 0] = np.inf

    loop.updater.update = overflow
    with pytest.raises(ModelError, match=r"no model is written: 1 of 256 values of 'fc8/W' are no finite numbers"):
        loop.run()
    assert not list((tmp_path / "run").glob("*.caffemodel"))


# ---- the folder -----------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    from bridge.finetuning.lock import RunLock

    output = tmp_path / "run"
    trained(config(tmp_path))
    with RunLock(output, "config.json"):
        done = call(*arguments(tmp_path, "-o", output, "--resume", "--epochs", 1))
    assert done.returncode == 2
    assert "another run works in this folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_of_two_runs_that_begin_together_one_goes_on(tmp_path: Path) -> None:
    lines = [command(*arguments(tmp_path, "--train-head", "-o", tmp_path / "run", "--epochs", 40)) for _ in range(2)]
    both = [subprocess.Popen(line, cwd=ROOT, stdout=-1, stderr=-1, text=True) for line in lines]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert len(log_of(tmp_path / "run")) == len({record["iteration"] for record in log_of(tmp_path / "run")})


def test_a_start_model_whose_frozen_weights_changed_is_refused(tmp_path: Path) -> None:
    import bridge

    net = bridge.load(*MODEL)
    bridge.save(net, tmp_path / "model.caffemodel")
    settings = {"files": (MODEL[0], str(tmp_path / "model.caffemodel")), "epochs": 2}
    trained(config(tmp_path, **settings))
    trained(config(tmp_path, **settings, resume=True))
    weight = net["conv1"].weight.copy()
    weight.reshape(-1)[0] += 1e-3
    bridge.save(net.with_blobs("conv1", weight=weight, bias=net["conv1"].bias), tmp_path / "model.caffemodel")
    with pytest.raises(UsageError, match="frozen layers are not those that the run began with"):
        trained(config(tmp_path, **settings, resume=True))


def test_resume_alone_goes_on_from_any_folder(tmp_path: Path) -> None:
    line = arguments(tmp_path, "--train-head", "--epochs", 30, "--snapshot-every", 3)
    assert call(*line, "-o", tmp_path / "whole").returncode == 0
    process = subprocess.Popen(command(*line, "-o", tmp_path / "run"), cwd=ROOT, stdout=-1, stderr=-1)
    while process.poll() is None and not (tmp_path / "run" / "snapshot.npz").exists():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    text = (tmp_path / "run" / "command.txt").read_text()
    assert text.startswith(f"cd {ROOT}\nbridge finetune ")
    assert "--train-head" in text
    done = call("finetune", "--resume", "run", cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert same_bits(tmp_path / "whole", tmp_path / "run")
    again = call("finetune", "--resume", tmp_path / "run", "--lr", "0.5", "--epochs", 40)
    assert again.returncode == 2
    assert "the run was started with --lr 0.01, now it is 0.5" in again.stderr
    longer = call("finetune", "--resume", tmp_path / "run", "--epochs", 31)
    assert longer.returncode == 0, longer.stderr
    assert "epoch 31/31" in longer.stderr


def test_a_folder_without_a_command_says_what_to_do(tmp_path: Path) -> None:
    run(config(tmp_path, epochs=1))
    done = call("finetune", "--resume", tmp_path / "run")
    assert done.returncode == 2
    assert "command.txt" in done.stderr


# ---- Ctrl-C ----------------------------------------------------------------------------------------


def test_a_signal_drops_the_step_that_is_under_way_and_nothing_else(tmp_path: Path) -> None:
    """It comes in the middle of the fifth step, and the resumed run ends in the same bits."""
    from bridge.finetuning.run import begin

    settings: dict[str, Any] = {"epochs": 4, "freeze": ("conv[12]",)}
    run(config(tmp_path, output=str(tmp_path / "whole"), **settings))
    loop = begin(config(tmp_path, output=str(tmp_path / "run"), **settings))
    seed = type(loop).seed

    def interrupt(self: Any, iteration: int) -> None:
        seed(self, iteration)
        if iteration == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loop), "seed", interrupt)
        with pytest.raises(KeyboardInterrupt, match="all steps are kept"):
            loop.run()
    assert len(log_of(tmp_path / "run")) == 4
    run(config(tmp_path, output=str(tmp_path / "run"), resume=True, **settings))
    assert same_bits(tmp_path / "whole", tmp_path / "run")


def test_several_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    """A signal that comes to one of them after the gradients waits for the next step, which tells the others."""
    from bridge.finetuning.interrupts import Interrupts
    from bridge.finetuning.logfile import LogFile
    from bridge.finetuning.parallel import Ranks
    from bridge.finetuning.run import begin

    class Two(Ranks):
        size = 2

    loop = begin(config(tmp_path, epochs=1))
    loop.enter(loop.plan.stages[0])  # alone: two would share the features between them
    loop = dataclasses.replace(loop, plan=dataclasses.replace(loop.plan, ranks=Two()))
    with (
        Interrupts(alone=False) as interrupts,
        LogFile(loop.plan.config.folder, 0, True) as log,
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(loop), "update", lambda self, record: signal.raise_signal(signal.SIGINT))
            assert not loop._iterate(log, interrupts)
        assert interrupts.asked
        assert loop._iterate(log, interrupts)
        with pytest.raises(KeyboardInterrupt):  # a second signal does not wait for the others, nor for a snapshot
            signal.raise_signal(signal.SIGINT)
        assert interrupts.cut
