"""What a GPU does with the nets of this project: the tests marked gpu, and steps of three nets in several ways.

    python benchmarks/gpu.py [--device 0] [--batch 64] [--nets alexnet,googlenet,resnet50] [--json gpu.json]
    python benchmarks/gpu.py --smoke        # the same code on the CPU, one image a step, to see that it runs

It takes what is installed and no network, and under eight minutes: a part with too little of --minutes left says
so, and the tests marked gpu come last and take what is left. The file of --json is written after each part. A step
is forward, backward and an update of momentum SGD, with the data on the device. The figure is the middle one of the
steps' times; the first two, in which kernels are compiled and memory is taken, are not counted. A part that fails is
shown with its error, and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

START = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_nets  # noqa: E402

STEPS, WARM = 12, 2


class Machine:
    """The device that is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        from bridge.chain.devices import parse_device

        self.name = parse_device(options.device)
        self.gpu = self.name != "@numpy"
        self.batch, self.steps = options.batch, 1 if options.smoke else STEPS
        self.smoke = options.smoke
        self.end = START + 60 * options.minutes

    def size(self, name: str) -> int:
        """Height and width of the images; a smoke test takes small ones, for float16 is slow on a CPU."""
        return 67 if self.smoke else gpu_nets.SIZES[name]

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.gpu:
            importlib.import_module("cupy").cuda.Device().synchronize()

    def peak(self) -> float:
        """Most gigabytes that CuPy and PyTorch have held since :meth:`forget`; 0 on the CPU."""
        if not self.gpu:
            return 0.0
        own = importlib.import_module("cupy").get_default_memory_pool().total_bytes()
        return float(own + (self.torch().max_memory_reserved() if self.torch() else 0)) / 1e9

    def forget(self) -> None:
        from bridge.chain.devices import free_memory

        gc.collect()
        free_memory()
        if self.gpu and self.torch():
            self.torch().empty_cache()
            self.torch().reset_peak_memory_stats()

    @staticmethod
    def torch() -> Any:
        """PyTorch's part for CUDA, if it was imported and finds a device."""
        found = sys.modules.get("torch")
        return found.cuda if found is not None and found.cuda.is_available() else None

    def left(self, seconds: float = 0) -> bool:
        return time.perf_counter() + seconds < self.end


def timed(step: Callable[[], Any], machine: Machine) -> float:
    """The middle of the steps' times in seconds."""
    times = []
    for number in range(machine.steps + (WARM if machine.steps > 1 else 0)):
        machine.wait()
        start = time.perf_counter()
        step()
        machine.wait()
        times.append(time.perf_counter() - start)
        if number >= WARM and not machine.left():
            break
    return statistics.median(times[WARM:] or times)


def images(size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (batch, 3, size, size)).astype(np.float32), rng.integers(0, 1000, batch).astype(np.int32)


def built(name: str, machine: Machine, half: bool) -> Callable[[], Any]:
    """A step of the built chain, by the updater of the runner."""
    from bridge.caffe_files import prototxt
    from bridge.caffe_files.assemble import assemble
    from bridge.chain.build import build_chain
    from bridge.finetuning import Recipe
    from bridge.finetuning.optimizers import Updater, factors_of

    net = assemble(None, prototxt.parse(gpu_nets.trained(name, machine.batch, machine.size(name))))
    chain = build_chain(net, seed=0)
    if half:
        for param in chain.params():
            param.array = param.array.astype(np.float16)
    chain.to_device(machine.name)
    updater = Updater(Recipe(base_lr=1e-4, momentum=0.9), chain, factors_of(net, chain, {}), half=half)
    x, labels = images(machine.size(name), machine.batch)
    inputs = {"data": chain.xp.asarray(x.astype(np.float16) if half else x), "label": chain.xp.asarray(labels)}

    def step() -> None:
        chain.cleargrads()
        chain.loss(inputs).backward(loss_scale=updater.loss_scale)
        updater.update(1e-4)

    return step


def linked(name: str, machine: Machine) -> Callable[[], Any]:
    """A step of the net by Chainer's own links."""
    from bridge.chain.functions import chainer

    chain: Any = gpu_nets.by_links(chainer, name)
    chain.to_device(machine.name)
    optimizer = chainer.optimizers.MomentumSGD(1e-4).setup(chain)
    x, labels = map(chain.xp.asarray, images(gpu_nets.SIZES[name], machine.batch))

    def step() -> None:
        loss = chainer.functions.softmax_cross_entropy(gpu_nets.scores_of(chain, name, x), labels)
        chain.cleargrads()
        loss.backward()
        optimizer.update()

    return step


def torched(name: str, machine: Machine, half: bool) -> Callable[[], Any] | None:
    """A step in PyTorch, where it and torchvision are installed."""
    model = gpu_nets.in_pytorch(name)
    if model is None:
        return None
    torch = importlib.import_module("torch")
    place = f"cuda:{machine.name.removeprefix('@cupy:')}" if machine.gpu else "cpu"
    model = model.to(place).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    x, labels = (torch.from_numpy(array).to(place) for array in images(gpu_nets.SIZES[name], machine.batch))
    scaler = torch.amp.GradScaler(place.split(":")[0], enabled=half)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(place.split(":")[0], torch.float16, enabled=half):
            loss = torch.nn.functional.cross_entropy(model(x), labels.long())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if machine.gpu:
            torch.cuda.synchronize()

    return step


def runner(machine: Machine) -> dict[str, Any]:
    """``bridge finetune`` on AlexNet: seconds to the first step's end, and what a step takes beside the bare one."""
    from bridge.finetuning import Config, Listener, Recipe
    from bridge.finetuning.run import begin

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "alexnet.prototxt")
        size = machine.size("alexnet")
        path.write_text(gpu_nets.trained("alexnet", machine.batch, size))
        rng = np.random.default_rng(0)
        rows = machine.batch * (machine.steps + WARM)
        data = Path(folder, "data.npz")
        np.savez(data, x=rng.integers(0, 255, (rows, 3, size, size), np.uint8), y=np.arange(rows) % 10)
        start = time.perf_counter()
        recipe = Recipe(base_lr=1e-4, momentum=0.9, max_iter=machine.steps + WARM)
        config = Config(
            files=(str(path), weights(Path(folder), path)), data=str(data), output=str(Path(folder, "run")),
            batch_size=machine.batch, validation_share=0, recipe=recipe, device=machine.name, snapshot_every=1 << 30,
        )  # fmt: skip
        first: list[float] = []

        def note(record: dict[str, Any]) -> None:
            seconds.append(record["seconds"])
            first.append(time.perf_counter() - start)

        begin(config, Listener(note)).run()
    return {"first_step_ends": first[0], "step": statistics.median(seconds[WARM:] or seconds)}


def weights(folder: Path, prototxt: Path) -> str:
    """A file with random weights for a prototxt."""
    import bridge
    from bridge.caffe_files import prototxt as reader
    from bridge.caffe_files.assemble import assemble

    net = assemble(None, reader.parse(prototxt.read_text()))
    path = folder / "alexnet.caffemodel"
    bridge.save(bridge.from_chain(bridge.build_chain(net, seed=0), net), path)
    return str(path)


def tests(machine: Machine) -> dict[str, Any]:
    """The tests marked gpu, as far as the time allows; they need none of pytest's plugins, and warnings are shown."""
    command = [sys.executable, "-m", "pytest", "-rf", "-m", "gpu", "-o", "addopts=", "-W", "default"]
    settings = {**os.environ, "HYPOTHESIS_PROFILE": "ci", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "-v", "-p", "no:cacheprovider", str(ROOT / "tests")],
            cwd=ROOT, env=settings, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(30.0, machine.end - time.perf_counter()))
        if ended := process.poll() is not None:
            status: int | None = process.returncode
        else:
            process.kill()
            process.wait()
            status = None
        output.seek(0)
        lines = output.read().splitlines() or ["no output"]
    counts = {word: sum(f" {word} " in f"{line} " for line in lines if "::" in line) for word in ("PASSED", "FAILED")}
    summary = lines[-1] if ended else f"{counts['PASSED']} passed, {counts['FAILED']} failed, then no time was left"
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "status": status,
        "summary": summary,
        "failed": failed,
        **({} if not status or failed else {"tail": lines[-20:]}),
    }


def attempt(part: Callable[[], Any]) -> Any:
    """What a part gives, or its error."""
    try:
        return part()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def ways(name: str, machine: Machine) -> dict[str, Callable[[], Callable[[], Any] | None]]:
    return {
        "built chain": lambda: built(name, machine, False),
        "built chain, mixed": lambda: built(name, machine, True),
        "chainer's links": lambda: linked(name, machine),
        "pytorch": lambda: torched(name, machine, False),
        "pytorch, mixed": lambda: torched(name, machine, True),
    }


def measured(make: Callable[[], Callable[[], Any] | None], machine: Machine) -> dict[str, Any]:
    from bridge.chain.devices import scope

    machine.forget()
    with scope(machine.name), np.errstate(all="ignore"):
        step = make()
        if step is None:
            return {"error": "not installed"}
        seconds = timed(step, machine)
        peak = machine.peak()
    return {"seconds": seconds, "images_per_second": machine.batch / seconds, "peak_gb": peak}


def show(found: dict[str, Any]) -> None:
    print(*(f"{name}: {text}" for name, text in found["facts"].items()), sep="\n")
    if "error" in found:
        print(f"{found['device']}: {found['error']}")
        return
    print(f"a training step against NumPy: {found['against_numpy']}")
    print(f"tests marked gpu: {found['tests'].get('summary', found['tests'].get('error'))}")
    print(f"{'net':10} {'way':20} {'ms/step':>9} {'images/s':>9} {'peak GB':>8}")
    for row in found["steps"]:
        head = f"{row['net']:10} {row['way']:20}"
        if "error" in row:
            print(f"{head} {row['error']}")
        else:
            print(f"{head} {1e3 * row['seconds']:9.1f} {row['images_per_second']:9.0f} {row['peak_gb']:8.2f}")
    run = found["runner"]
    bare = next((row["seconds"] for row in found["steps"] if row["net"] == "alexnet" and "seconds" in row), None)
    if "error" in run:
        print(f"runner: {run['error']}")
        return
    more = f", {1e3 * (run['step'] - bare):.1f} ms more than the bare step" if bare else ""
    print(
        f"runner, alexnet: first step ends after {run['first_step_ends']:.1f} s, {1e3 * run['step']:.1f} ms/step{more}"
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="0")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nets", default=",".join(gpu_nets.SIZES))
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument(
        "--smoke", action="store_true", help="on the CPU, one image and one step each, without the tests"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.device, options.batch = "-1", 1
    found: dict[str, Any] = {"device": options.device, "batch": options.batch, "facts": attempt(facts), "steps": []}
    with saved(found, options.json):
        machine = attempt(lambda: Machine(options))
    if not isinstance(machine, Machine):
        found["error"] = machine["error"]
    else:
        measure(found, machine, options)
    with saved(found, options.json):
        found["seconds"] = time.perf_counter() - START
    show(found)
    return found


def measure(found: dict[str, Any], machine: Machine, options: argparse.Namespace) -> None:
    """All parts in turn, and the file after each, so that a crash leaves what came before it."""
    from bridge.chain.device_facts import step_differences

    found["device"] = machine.name
    with saved(found, options.json):
        found["against_numpy"] = attempt(lambda: step_differences(machine.name))
    for name in options.nets.split(","):
        for way, make in ways(name, machine).items():
            with saved(found, options.json):
                enough = machine.left(90)
                row = attempt(lambda make=make: measured(make, machine)) if enough else {"error": "no time left"}
                found["steps"].append({"net": name, "way": way, **row})
    with saved(found, options.json):
        found["runner"] = attempt(lambda: runner(machine)) if machine.left(60) else {"error": "no time left"}
    with saved(found, options.json):
        found["tests"] = {"summary": "left out"} if options.smoke else attempt(lambda: tests(machine))


def facts() -> dict[str, str]:
    """What the machine has of all that a GPU needs, or why not."""
    from bridge.chain.device_facts import gpu_facts

    return {fact.name: fact.found or fact.problem for fact in gpu_facts()}


@contextlib.contextmanager
def saved(found: dict[str, Any], path: Path | None) -> Iterator[None]:
    """Write what is found into the file at the end."""
    try:
        yield
    finally:
        if path is not None:
            path.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.exit("error" in main())
