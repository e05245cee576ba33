"""Where the fixtures lie, what the tests may skip for, and how hard Hypothesis searches."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.processes import DEPLOY, WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
FASHION = FIXTURES / "fashion"
TRAINING = FIXTURES / "training"
GOLDEN = sorted(path.parent for path in (FIXTURES / "golden").glob("*/io.npz"))
ZOO = Path(os.environ.get("BRIDGE_ZOO", ROOT.parent / "shared" / "zoo"))

# Names of packages, or of other things below, that the environment promises to have.
REQUIRED = frozenset(filter(None, os.environ.get("BRIDGE_REQUIRE", "").replace(",", " ").split()))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job: the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, max_examples=50)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=25)
settings.register_profile(
    "nightly",
    deadline=timedelta(seconds=30),
    print_blob=True,
    max_examples=20_000,
    suppress_health_check=[HealthCheck.too_slow],
)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")
settings.load_profile(_PROFILE)
settings.register_profile("first_failure", settings(), phases=[Phase.generate])


@pytest.fixture
def first_failure() -> Iterator[None]:
    """The first failing example will do: Hypothesis looks for no smaller one. For tests that expect a failure."""
    settings.load_profile("first_failure")
    yield
    settings.load_profile(_PROFILE)


def missing(name: str, reason: str) -> None:
    """Skip the test for want of ``name``; fail it where BRIDGE_REQUIRE promises ``name``."""
    if name in REQUIRED:
        pytest.fail(f"BRIDGE_REQUIRE promises {name}, but {reason}", pytrace=False)
    pytest.skip(reason)


def need(*packages: str) -> None:
    """Skip the test unless each of these top-level packages is installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            missing(package, f"package {package} is not installed")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "net.caffemodel"


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """The small AlexNet's prototxt and weights, in a folder of the test's own."""
    files = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    for source, target in zip((DEPLOY, WEIGHTS), files, strict=True):
        target.write_bytes(source.read_bytes())
    return files


def zoo(name: str) -> Path:
    """The folder of a third party's model; skips the test where it is absent."""
    folder = ZOO / name
    if not folder.exists():
        missing("zoo", f"{name} is not in {ZOO} (set BRIDGE_ZOO)")
    return folder


def _lacks_gpu() -> str | None:
    from bridge.chain.devices import cuda_problem

    return cuda_problem() or None


def _lacks_caffe() -> str | None:
    command = os.environ.get("BRIDGE_PYCAFFE_PYTHON")
    if not command:
        return "BRIDGE_PYCAFFE_PYTHON names no interpreter with the real Caffe (tox run -e caffe makes one)"
    found = shutil.which(command) or shutil.which(shlex.split(command)[0])
    return None if found else f"BRIDGE_PYCAFFE_PYTHON={command} is not an executable"


def chromium() -> str | None:
    """The headless browser that the tests drive."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _lacks_browser() -> str | None:
    return None if chromium() else "no chromium on PATH"


LACKS: dict[str, Callable[[], str | None]] = {"gpu": _lacks_gpu, "caffe": _lacks_caffe, "browser": _lacks_browser}


def _functions(item: pytest.Function) -> Iterator[FunctionType]:
    """A test and its fixtures."""
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures else ()
    for function in (item.function, *(definition.func for several in definitions for definition in several)):
        function = inspect.unwrap(getattr(function, "__func__", function))
        if isinstance(function, FunctionType):
            yield function


@functools.cache
def _starts_process(function: FunctionType) -> bool:
    """Whether a function of the tests names ``subprocess``, or calls one of the tests' functions that does."""
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    if not function.__module__.startswith("tests."):
        return False
    called = [function.__globals__.get(name) for name in names if name != function.__name__]
    return "subprocess" in names or any(_starts_process(c) for c in called if isinstance(c, FunctionType))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `tox run -e quick` leaves out and what can be told from the code: training, other processes."""
    for item in items:
        if item.path.name.startswith("test_finetune"):
            item.add_marker("training")
        if isinstance(item, pytest.Function) and any(map(_starts_process, _functions(item))):
            item.add_marker("process")  # test_pycaffe.py marks itself: its processes are the reader's


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test where the thing its marker stands for is absent."""
    for marker, lacks in LACKS.items():
        if item.get_closest_marker(marker) and (reason := lacks()):
            missing(marker, reason)


@pytest.fixture
def chainer_installed() -> None:
    """Skip where Chainer is not installed."""
    need("chainer")
