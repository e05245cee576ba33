"""The ``caffe`` program: ``python -m bridge.caffe train|test|time --solver= --weights= ...``.

It takes the program's flags and prints its lines, so that tools like parse_log.py read them.

Source: tools/caffe.cpp.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import numpy as np

from bridge.caffe import state, tools
from bridge.caffe.net import Net
from bridge.caffe.solver_param import SolverSettings
from bridge.caffe.solvers import Solver, get_solver, scores
from bridge.caffe.state import Timer, log
from bridge.chain.devices import cuda_problem
from bridge.errors import BridgeError, UsageError

PLACE = "caffe.cpp"
_EFFECTS = ("stop", "snapshot", "none")


def main(arguments: Sequence[str]) -> int:
    """Run a command of the caffe program; returns the exit status."""
    parser = _parser()
    flags = parser.parse_args([_double(word) for word in arguments])
    state.init_log()
    try:
        _COMMANDS[flags.command](flags)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _double(word: str) -> str:
    """A flag with two hyphens, and a switch with its value; gflags takes one hyphen, and no value, as well."""
    if word.lstrip("-") in tools.SWITCHES:
        return f"--{word.lstrip('-')}=true"
    single = word.startswith("-") and not word.startswith("--") and len(word) > 2 and word[1].isalpha()
    return f"-{word}" if single else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bridge.caffe", description="The commands of the caffe program.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (
        ("train", "train or fine-tune a model"),
        ("test", "score a model"),
        ("time", "measure the time of each layer"),
    ):
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument("--gpu", default="", help="number of the CUDA device; by default the CPU computes")
        command.add_argument("--solver", default="", help="the solver.prototxt, for train")
        command.add_argument("--model", default="", help="the net's prototxt, for test and time")
        command.add_argument("--phase", default="", choices=("", "TRAIN", "TEST"), help="phase, for time")
        command.add_argument("--level", type=int, default=0, help="level of the NetState")
        command.add_argument("--stage", default="", help="stages of the NetState, separated by commas")
        command.add_argument("--snapshot", default="", help="a .solverstate to go on from")
        command.add_argument("--weights", default="", help="weights to start from, separated by commas")
        command.add_argument("--iterations", type=int, default=50, help="number of batches, for test and time")
        command.add_argument("--sigint_effect", default="stop", choices=_EFFECTS, help="what Ctrl-C does in training")
        command.add_argument("--sighup_effect", default="snapshot", choices=_EFFECTS, help="what SIGHUP does there")
    tools.add_parsers(commands)
    return parser


def _set_mode(gpu: str) -> None:
    if not gpu:
        log("Use CPU.", PLACE)
        return
    if not gpu.isdecimal():
        raise UsageError(f"--gpu is '{gpu}'", expected="the number of one device")
    state.set_device(int(gpu))
    state.set_mode_gpu()
    log(f"Use GPU with device ID {gpu}", PLACE)


def _own_device(settings: SolverSettings) -> str:
    """The device that a solver.prototxt asks for; none where it asks for a GPU and there is none."""
    if "solver_mode" not in settings.message or settings.param.solver_mode != settings.param.GPU:
        return ""
    if problem := cuda_problem():
        log(f"The solver asks for a GPU, but {problem}.", PLACE)
        return ""
    return str(settings.param.device_id)


def _stages(flags: argparse.Namespace) -> list[str]:
    return [stage for stage in flags.stage.split(",") if stage]


def _train(flags: argparse.Namespace) -> None:
    if not flags.solver:
        raise UsageError("train needs --solver=FILE")
    if flags.snapshot and flags.weights:
        raise UsageError("--snapshot and --weights exclude each other")
    settings = SolverSettings.read(flags.solver)
    _set_mode(flags.gpu or _own_device(settings))
    settings.param.train_state.level = flags.level
    settings.param.train_state.stage.extend(_stages(flags))
    if flags.snapshot or flags.weights:
        del settings.param.weights[:]
    if flags.weights:
        settings.param.weights.append(flags.weights)
    solver = get_solver(settings)
    _handle_signals(solver, {"SIGINT": flags.sigint_effect, "SIGHUP": flags.sighup_effect})
    if flags.snapshot:
        log(f"Resuming from {flags.snapshot}", PLACE)
        solver.restore(flags.snapshot)
    log("Starting Optimization", PLACE)
    solver.solve()
    log("Optimization Done.", PLACE)


def _handle_signals(solver: Solver, effects: dict[str, str]) -> None:
    """Have signals answered between two iterations. Source: signal_handler.cpp."""
    received: list[str] = []
    for name, effect in effects.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP

        def note(_: int, __: FrameType | None, effect: str = effect) -> None:
            received.append(effect)

        if number is not None and effect != "none":
            signal.signal(number, note)
    solver.action = lambda: received.pop(0) if received else "none"


def _test(flags: argparse.Namespace) -> None:
    _needs(flags, "model", "weights")
    _set_mode(flags.gpu)
    net = Net(flags.model, state_phase("TEST"), level=flags.level, stages=_stages(flags), weights=flags.weights)
    log(f"Running for {flags.iterations} iterations.", PLACE)
    loss, sums = 0.0, np.zeros(0, np.float32)
    for batch in range(flags.iterations):
        loss += net._forward(0, len(net.nodes) - 1)
        found = list(scores(net))
        values = np.array([value for _, value, _ in found], np.float32)
        sums = values if batch == 0 else sums + values
        for name, value, _ in found:
            log(f"Batch {batch}, {name} = {value:g}", PLACE)
    log(f"Loss: {loss / flags.iterations:g}", PLACE)
    for (name, _, weight), value in zip(scores(net), sums / np.float32(flags.iterations), strict=True):
        part = f" (* {weight:g} = {weight * value:g} loss)" if weight else ""
        log(f"{name} = {value:g}{part}", PLACE)


def _needs(flags: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(flags, name):
            raise UsageError(f"{flags.command} needs --{name}=FILE")
    if flags.iterations < 1:
        raise UsageError(f"--iterations is {flags.iterations}", expected="at least 1")


def state_phase(name: str) -> int:
    """``caffe.TRAIN`` or ``caffe.TEST``."""
    return {"TRAIN": 0, "TEST": 1}[name]


def _time(flags: argparse.Namespace) -> None:
    _needs(flags, "model")
    _set_mode(flags.gpu)
    phase = state_phase(flags.phase or "TRAIN")
    net = Net(flags.model, phase, level=flags.level, stages=_stages(flags), weights=flags.weights or None)
    last = len(net.nodes) - 1
    log("Performing Forward", PLACE)
    log(f"Initial loss: {net._forward(0, last):g}", PLACE)
    log("Performing Backward", PLACE)
    net._backward(last, 0)
    log("*** Benchmark begins ***", PLACE)
    log(f"Testing for {flags.iterations} iterations.", PLACE)
    total = Timer()
    total.start()
    forward, backward = np.zeros(last + 1), np.zeros(last + 1)
    for iteration in range(flags.iterations):
        passes = [forward[:].copy(), backward[:].copy()]
        for index in range(last + 1):
            forward[index] += _timed(lambda index=index: net._forward(index, index))  # type: ignore[misc]
        for index in range(last, -1, -1):
            backward[index] += _timed(lambda index=index: net._backward(index, index))  # type: ignore[misc]
        spent = (forward - passes[0]).sum() + (backward - passes[1]).sum()
        log(f"Iteration: {iteration + 1} forward-backward time: {spent:g} ms.", PLACE)
    total.stop()
    _report(net, forward / flags.iterations, backward / flags.iterations, total.ms, flags.iterations)


def _timed(work: Callable[[], object]) -> float:
    timer = Timer()
    timer.start()
    work()
    timer.stop()
    return timer.ms


def _report(net: Net, forward: np.ndarray, backward: np.ndarray, total: float, iterations: int) -> None:
    log("Average time per layer: ", PLACE)
    for node, ahead, back in zip(net.nodes, forward, backward, strict=True):
        log(f"{node.name:>10}\tforward: {ahead:g} ms.", PLACE)
        log(f"{node.name:>10}\tbackward: {back:g} ms.", PLACE)
    log(f"Average Forward pass: {forward.sum():g} ms.", PLACE)
    log(f"Average Backward pass: {backward.sum():g} ms.", PLACE)
    log(f"Average Forward-Backward: {total / iterations:g} ms.", PLACE)
    log(f"Total Time: {total:g} ms.", PLACE)
    log("*** Benchmark ends ***", PLACE)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "test": _test,
    "time": _time,
    **tools.COMMANDS,
}
NAMES = tuple(_COMMANDS)
"""The commands there are."""
