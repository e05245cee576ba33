"""How fast a large net becomes an ONNX file, against a copy of its weights.

    python benchmarks/export.py [--model vgg16] [--repeat 3] [--json export.json]

Makes a caffemodel of the shape of VGG-16 (553 MB), with random values, in a temporary
folder. Each measurement is a process of its own: the best of the repeats, the source in
the page cache, the target not there, without the imports (a tiny model goes first) unless
it is the whole command. Times are of loading and exporting together. Memory is the peak
above that after the imports: anonymous memory, which is what the export takes for itself,
and all resident memory, pages of the mapped source among them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TINY = ROOT / "fixtures" / "golden" / "conv_basic"
TASKS = (
    "cp",
    "cp and sync",
    "one file",
    "external data",
    "external data in the source",
    "one file, with digest",
    "one file, float16",
    "one file, checked",
    "whole command",
    "whole command, checked",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "one file": {"check": False},
    "external data": {"check": False, "external_data": "file"},
    "external data in the source": {"check": False, "external_data": "source"},
    "one file, with digest": {"check": False, "digest": True},
    "one file, float16": {"check": False, "half": True},
    "one file, checked": {},
}


def targets(path: Path) -> list[Path]:
    """What the tasks write."""
    return [path.with_name(name) for name in ("copy", "out.onnx", "out.onnx.data")]


def work_of(task: str, path: Path) -> Callable[[], Any]:
    """The work of a task, everything imported that it needs."""
    copy, out, _ = targets(path)
    if task.startswith("cp"):
        sync = task != "cp"
        return lambda: (subprocess.run(["cp", path, copy], check=True), sync and flush(copy))
    if task.startswith("whole"):
        more = [] if "checked" in task else ["--no-check"]
        files = [str(path.with_suffix(".prototxt")), str(path)]
        command = [sys.executable, "-m", "bridge", "export", *files, "-o", str(out), *more]
        return lambda: subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    import bridge

    options = OPTIONS[task]
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder, "tiny.caffemodel")
        tiny.write_bytes((TINY / "weights.caffemodel").read_bytes())
        net = bridge.load(TINY / "deploy.prototxt", tiny)
        small = options if options.get("external_data") != "source" else {**options, "external_data": None}
        bridge.export_onnx(net, Path(folder, "tiny.onnx"), **small)
    return lambda: bridge.export_onnx(bridge.load(path.with_suffix(".prototxt"), path), out, **options)


def flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# -- a measurement, in its own process -------------------------------------------------------


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


class Watch(threading.Thread):
    """Looks at the anonymous memory of the process every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.peak = threading.Event(), 0

    def run(self) -> None:
        while not self.over.wait(0.003):
            self.peak = max(self.peak, status("RssAnon"))


def measure(task: str, path: Path) -> dict[str, float]:
    """Run one task here."""
    work = work_of(task, path)
    for target in targets(path):
        target.unlink(missing_ok=True)
    os.sync()  # what was written before is not to be waited for now
    with open(path, "rb") as file:
        while file.read(1 << 22):
            pass
    resident, anonymous = status("VmRSS"), status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    watch = Watch()
    watch.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    watch.over.set()
    watch.join()
    return {
        "seconds": seconds,
        "anonymous": max(0, watch.peak - anonymous),
        "resident": status("VmHWM") - resident,
        "written": sum(target.stat().st_size for target in targets(path) if target.exists()),
    }


def measured(task: str, path: Path, repeat: int) -> dict[str, Any]:
    """The best of several processes, or why there is none."""
    runs = []
    for _ in range(repeat):
        run = subprocess.run([sys.executable, __file__, "--measure", task, str(path)], capture_output=True, text=True)
        if run.returncode:
            return {"skipped": (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]}
        runs.append(json.loads(run.stdout.splitlines()[-1]))
    return {key: min(run[key] for run in runs) for key in runs[0]}


# -- the table -------------------------------------------------------------------------------


def make(name: str, folder: Path) -> Path:
    """Write the model in another process, so that its arrays are not in this one's memory."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom benchmarks.load import make\n"
        f"make({name!r}, Path({str(folder)!r})).with_suffix('.safetensors').unlink()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder / f"{name}.caffemodel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--tasks", default=";".join(TASKS), help="names between semicolons")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where to put the files; the system's temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    results: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "tasks": {}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = make(options.model, Path(folder))
        results["model"], results["bytes"] = options.model, path.stat().st_size
        print(f"{options.model}, {path.stat().st_size / 1e6:.0f} MB\n", flush=True)
        print("| | time | against cp | memory of its own | with mapped pages |\n|---|---:|---:|---:|---:|", flush=True)
        for task in options.tasks.split(";"):
            results["tasks"][task] = found = measured(task, path, options.repeat)
            print(row(task, found, results["tasks"].get("cp", {})), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def row(task: str, found: dict[str, Any], copy: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"| {task} | skipped: {found['skipped']} | | | |"
    if "seconds" in copy:
        found["ratio"] = found["seconds"] / copy["seconds"]
    own = task.startswith(("cp", "whole"))
    memory = ["", ""] if own else [f"{found[key] / 1e6:.0f} MB" for key in ("anonymous", "resident")]
    return f"| {task} | {found['seconds'] * 1e3:.0f} ms | {found.get('ratio', 0):.3g} | {' | '.join(memory)} |"


if __name__ == "__main__":
    main()
