"""What the packages hold, what starting costs, and the files that GitHub reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import bridge
from bridge.extras import pip
from tests.conftest import FASHION, ROOT, need

MODEL = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]


def tracked(*folders: str) -> set[str]:
    """The files of folders, without what running them leaves behind."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def contents(kind: str) -> set[str]:
    """The files that a build puts into a package, by their names in it."""
    need("hatchling")
    if kind == "wheel":
        from hatchling.builders.wheel import WheelBuilder as Builder
    else:
        from hatchling.builders.sdist import SdistBuilder as Builder  # type: ignore[assignment]

    return {Path(file.distribution_path).as_posix() for file in Builder(str(ROOT)).recurse_included_files()}


def test_the_wheel_holds_the_packages_and_the_model_of_the_demo() -> None:
    model = {f"bridge/demo_data/{Path(name).relative_to('fixtures/fashion')}" for name in tracked("fixtures/fashion")}
    assert contents("wheel") == tracked("bridge", "backends") | model


def test_the_wheel_has_the_data_that_the_code_reads() -> None:
    assert {"bridge/py.typed", "bridge/verification/report.schema.json"} <= contents("wheel")


def test_the_sdist_can_test_itself() -> None:
    found = contents("sdist")
    wanted = {"tox.ini", "README.md", ".ci/run", "constraints/build.txt", "docs/index.md", "docs/way.svg"}
    assert wanted | tracked("tests", ".github") | {".pre-commit-hooks.yaml"} <= found
    assert not [name for name in found if name.startswith((".tox", ".git/")) or name.endswith((".pyc", ".onnx~"))]


# -- what starting costs -------------------------------------------------------------------------


def loaded(*line: str) -> set[str]:
    code = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
    done = subprocess.run(
        [sys.executable, "-c", code + line[0], *line[1:]], capture_output=True, text=True, check=False
    )
    return set(done.stderr.rpartition("LOADED")[2].split())


def test_help_loads_click_and_the_command_line_alone() -> None:
    found = loaded("from bridge.cli import main; main()", "--help")
    own = {name for name in found if name.partition(".")[0] in ("bridge", "backends")}
    assert own == {"bridge", "bridge.lazy", "bridge.errors", "bridge.cli", "bridge.cli.manners", "bridge.cli.streams"}
    assert "click" in found
    assert not {"numpy", "onnx", "google", "rich", "chainer", "matplotlib", "onnxruntime"} & found


@pytest.mark.parametrize("name", ["verify", "export", "finetune", "plot", "migrate", "predict"])
def test_help_of_a_command_loads_no_numbers(name: str) -> None:
    found = loaded("from bridge.cli import main; main()", name, "--help")
    assert not {"numpy", "onnx", "rich", "chainer", "matplotlib", "onnxruntime"} & found


# -- files for others ----------------------------------------------------------------------------


def yaml_files() -> list[Path]:
    return sorted([*(ROOT / ".github").rglob("*.yml"), *ROOT.glob(".pre-commit*.yaml"), ROOT / "CITATION.cff"])


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_yaml(path: Path) -> None:
    need("yaml")
    import yaml

    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_tox_environment_of_a_workflow_exists() -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    known = {*re.findall(r"^\[testenv:([\w-]+)", tox, re.MULTILINE), "compat-oldest", "compat-newest"}
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    used = {name for line in re.findall(r"tox run -e ([\w,-]+)", text) for name in line.split(",")}
    used |= set(re.findall(r"environment: ([a-z][\w-]*)[}\n]", text)) - {"release", "github-pages"}
    assert used <= known
    assert "docs" in used


def test_the_citation_has_the_version() -> None:
    assert f"version: {bridge.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="bash of another system")
def test_the_action_runs_its_command(tmp_path: Path) -> None:
    need("yaml")
    import yaml

    action = yaml.safe_load((ROOT / ".github/actions/verify/action.yml").read_text(encoding="utf-8"))
    step = action["runs"]["steps"][-1]
    given = {"files": " ".join(MODEL), "against": MODEL[1], "options": "--readers none --engines none", "recorded": "",
             "report": str(tmp_path / "report.html")}  # fmt: skip
    variables = {name: given[re.findall(r"inputs\.(\w+)", text)[0]] for name, text in step["env"].items()}
    assert set(given) | {"extras"} == set(action["inputs"])
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-e", "-c", step["run"].replace("python -m", f"{sys.executable} -m")],
                          env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("::notice title=bridge verify%3A PASSED::")
    assert (tmp_path / "report.html").is_file()


def test_the_install_line_of_chainer_is_the_one_of_the_readme_and_of_tox() -> None:
    readme, tox = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "tox.ini"))
    for part in ("PIP_CONSTRAINT=build.txt PIP_BUILD_CONSTRAINT=build.txt", "setuptools<81"):
        assert part in readme
    assert "PIP_CONSTRAINT" in pip("chainer")
    for path in ("constraints/build.txt", "bridge/build-constraints.txt"):
        assert (ROOT / path).read_text(encoding="utf-8").strip().splitlines()[-1] == "setuptools<81"
    assert "PIP_BUILD_CONSTRAINT = constraints/build.txt" in tox


def hints_with_an_extra() -> list[str]:
    """Lines of code that spell out how to install an extra, in place of asking ``bridge.extras``."""
    files = [path for folder in ("bridge", "backends") for path in (ROOT / folder).rglob("*.py")]
    return [str(path) for path in files if path.name != "extras.py" and "weight-bridge[" in path.read_text("utf-8")]


def test_every_hint_about_an_extra_comes_from_one_place() -> None:
    assert hints_with_an_extra() == []


@pytest.mark.slow
@pytest.mark.process
def test_an_install_line_works_as_printed(tmp_path: Path) -> None:
    """In a fresh environment, with the shell that a person has; the installed package prints the same line again."""
    venv.create(tmp_path / "fresh", with_pip=True)
    programs = tmp_path / "fresh" / ("Scripts" if sys.platform == "win32" else "bin")
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = shell(pip("hdf5"))
    if any(words in done.stderr for words in ("NewConnectionError", "ConnectTimeoutError", "name resolution")):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    code = "import h5py, bridge.extras; print(bridge.__file__); print(bridge.extras.pip('hdf5'))"
    done = shell(f'python -c "{code}"')
    place, line = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert line == pip("hdf5")
