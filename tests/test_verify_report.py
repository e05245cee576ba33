"""The command ``bridge verify`` and its reports: text, JSON, HTML."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bridge
from bridge.cli.verify import verify
from bridge.layers import build_layer
from bridge.schema import Blob
from bridge.show.pictures import png
from bridge.verification.compare import bit_difference, metrics
from bridge.verification.report import Report
from tests.conftest import FASHION, ROOT, chromium, need

FILES = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]
RECORDED = str(FASHION / "io.npz")


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fashion model with one bit of layer conv3 changed."""
    data = bytearray(Path(FILES[1]).read_bytes())
    data[50000] ^= 1
    file = tmp_path_factory.mktemp("flipped") / "flipped.caffemodel"
    file.write_bytes(data)
    return file


@pytest.fixture(scope="module")
def failed(flipped: Path) -> Report:
    need("onnxruntime", "chainer")
    return bridge.verify(*FILES, against=flipped, recorded=RECORDED)


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bridge", "verify", *args], capture_output=True, text=True, check=False
    )


# -- the command ---------------------------------------------------------------------------------


def test_exit_status_0_and_a_last_line_with_counts() -> None:
    need("onnxruntime", "chainer")
    both = ("--readers", "protobuf,caffefunction", "--engines", "onnxruntime,chainer")
    done = command(*FILES, "--recorded", RECORDED, *both)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"PASSED: 10 blobs the same, 25 tops agree, 5 not compared, \d+ checks held", done.stdout.splitlines()[-1]
    )
    assert done.stderr == ""


def test_exit_status_1_and_the_first_difference_by_name(flipped: Path) -> None:
    done = command(*FILES, "--against", str(flipped), "--engines", "none", "--readers", "none")
    assert done.returncode == 1
    assert "layer 'conv3' (Convolution): blob 'weight' differs at [19, 4, 2, 1]" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1].startswith("FAILED: 1 of 10 blobs differ")
    assert "Traceback" not in done.stderr


def test_exit_status_2_and_one_line_for_a_truncated_file(tmp_path: Path) -> None:
    (tmp_path / "cut.caffemodel").write_bytes(Path(FILES[1]).read_bytes()[:70_000])
    done = command(FILES[0], str(tmp_path / "cut.caffemodel"))
    assert done.returncode == 2
    assert done.stdout == ""
    line, hint = done.stderr.splitlines()
    assert "past the end of file" in line
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize("readers", ["protobuf", "none"])
@pytest.mark.parametrize("engines", ["onnxruntime", "none"])
@pytest.mark.parametrize("checks", [[], ["--check", "finite"]])
def test_exit_status_2_where_nothing_was_compared(readers: str, engines: str, checks: list[str]) -> None:
    need("onnxruntime")
    done = command(*FILES, "--readers", readers, "--engines", engines, *checks)
    assert done.returncode == 2
    assert re.fullmatch(r"NOT DONE: nothing was compared, \d+ checks? held", done.stdout.splitlines()[-1])
    (line,) = done.stderr.splitlines()
    assert line == "bridge: nothing was compared: that takes two readers, two engines, --against or --recorded"


def test_exit_status_2_where_nothing_was_compared_with_what_was_asked_for(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    np.savez(tmp_path / "io.npz", **{"in:data": np.zeros((1, 1, 28, 28)), "other": np.zeros(1)})
    both = ("--readers", "protobuf,caffefunction", "--engines", "onnxruntime,chainer")
    done = command(*FILES, "--recorded", str(tmp_path / "io.npz"), *both)
    assert done.returncode == 2
    assert "15 tops agree" in done.stdout.splitlines()[-1]
    assert done.stderr.splitlines() == [
        f"bridge: output 'prob' not compared with {tmp_path / 'io.npz'}: {tmp_path / 'io.npz'} does not show it"
    ]


def test_an_error_of_a_check_counts_where_nothing_was_compared(tmp_path: Path) -> None:
    net = bridge.load(*FILES)
    first = net.layers[1].blobs.blob("weight").numpy() * np.float32(np.nan)
    layer = build_layer(net.layers[1].definition, [Blob.of(first), net.layers[1].blobs.blob("bias")])
    bridge.save(net.replace(layers=(net.layers[0], layer, *net.layers[2:])), tmp_path / "nan.caffemodel")
    done = command(str(tmp_path / "nan.caffemodel"), "--readers", "none", "--engines", "none")
    assert done.returncode == 1


def test_json_on_stdout_is_alone_there() -> None:
    done = command(*FILES, "--engines", "none", "--json", "-")
    assert json.loads(done.stdout)["passed"] is (done.returncode == 0)


def test_lists_the_checks_without_files() -> None:
    result = CliRunner().invoke(verify, ["--list-checks"])
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert {"shapes", "finite", "batch-norm", "spread-groups"} <= set(names)


def test_a_name_out_of_a_file_steers_no_terminal(tmp_path: Path) -> None:
    net = bridge.load(*FILES)
    odd = net.layers[1].definition.copy()
    odd.set("name", "conv\x1b[31m1")
    layers = (*net.layers, build_layer(odd, [blob for _, blob in net.layers[1].blobs.entries()]))
    bridge.save(net.replace(layers=layers), tmp_path / "odd.caffemodel")
    done = command(str(tmp_path / "odd.caffemodel"), "--against", FILES[1], "--readers", "none", "--engines", "none")
    assert done.returncode == 1
    assert "conv\\x1b[31m1" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--rtol", "much", "expected numbers"),
        ("--rtol", "-1", "rtol -1 is negative"),
        ("--atol", "1,prob:nan", "atol nan is negative, infinite or no number"),
        ("--atol", "prob:inf", "atol inf is negative, infinite or no number"),
        ("--rtol", "0,1", "--rtol 0,1: gives two numbers for all blobs"),
        ("--rtol", "nope:1", "rtol for 'nope': no layer writes that blob"),
        ("--atol", "1,data:1", "atol for 'data': no layer writes that blob"),
        ("--range", "1,0", "is not two numbers in order"),
        ("--input", "data", "expected NAME=1,3,224,224 or NAME=FILE"),
        ("--input", "date=1,1,28,28", "no input 'date'"),
        ("--input", "data=1,1,28,-28", "input 'data': (1, 1, 28, -28) is not a list of extents"),
        ("--input", "data=0, 1, 28, 28", "input 'data' would be 0 x 1 x 28 x 28: it has no values"),
        ("--engines", "torch", "no engine 'torch'"),
        ("--readers", "torch", "no reader 'torch'"),
        ("--skip-check", "spelling", "no check 'spelling'"),
    ],
)
def test_bad_usage_is_one_line(option: str, value: str, problem: str) -> None:
    done = command(*FILES, option, value)
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--json", "--html", "--record", "--save-inputs"])
def test_what_is_read_is_not_written_over(tmp_path: Path, option: str) -> None:
    need("onnxruntime")
    weights, link, recorded = (tmp_path / name for name in ("w.caffemodel", "link", "io.npz"))
    weights.write_bytes(Path(FILES[1]).read_bytes())
    recorded.write_bytes(Path(RECORDED).read_bytes())
    link.symlink_to(weights)
    for target in (weights, link, recorded):
        done = command(FILES[0], str(weights), "--recorded", str(recorded), option, str(target))
        assert done.returncode == 2
        assert done.stderr.splitlines()[0].endswith("would be written over: it is what is read")
    assert weights.read_bytes() == Path(FILES[1]).read_bytes()
    assert recorded.read_bytes() == Path(RECORDED).read_bytes()
    if option in ("--record", "--save-inputs"):
        with pytest.raises(bridge.BridgeError, match="would be written over"):
            bridge.verify(FILES[0], weights, **{option[2:].replace("-", "_"): link})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("target", ["nowhere/report", ""])
def test_a_report_that_cannot_be_written_is_printed_first(tmp_path: Path, option: str, target: str) -> None:
    done = command(*FILES, "--engines", "none", option, str(tmp_path / target) if target else "")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert " checks held" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("what", ["--readers", "--engines"])
def test_one_under_its_name_twice_is_no_second_one(what: str) -> None:
    need("onnxruntime")
    names = {"--readers": "protobuf", "--engines": "onnxruntime"}
    names[what] += f",{names[what]}"
    done = command(*FILES, *(text for pair in names.items() for text in pair))
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("NOT DONE: nothing was compared")


def test_an_input_is_given_once() -> None:
    done = command(*FILES, "--input", "data=1,1,28,28", "--input", "data=2,1,28,28")
    assert (done.returncode, done.stderr) == (2, "bridge: --input data: is given twice\n")


def test_saved_inputs_are_inputs(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    file = tmp_path / "in.npz"
    first = bridge.verify(*FILES, readers=(), seed=5, value_range=(0, 255), save_inputs=file, draws=1)
    with np.load(file) as arrays:
        assert 0 <= arrays["in:data"].min() < arrays["in:data"].max() <= 255
    again = bridge.verify(*FILES, readers=(), inputs={"data": file})
    assert first.inputs == again.inputs


# -- text ----------------------------------------------------------------------------------------


def test_text_is_80_columns_wide(failed: Report) -> None:
    lines = str(failed).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == failed.summary()


@pytest.mark.parametrize("width", [60, 100])
def test_text_is_as_wide_as_asked(failed: Report, width: int) -> None:
    text = failed.text(width)
    *lines, last = text.splitlines()
    assert max(map(len, lines)) <= width
    assert last == failed.summary()
    assert " ".join(text.split()).count("layer 'conv3' (Convolution): blob 'weight' differs at [19, 4, 2, 1]")


@pytest.mark.parametrize(
    ("tops", "blobs", "counts"),
    [
        (["same"], ["same"], "1 blob the same, 1 top agrees"),
        (["same"] * 2, ["same"] * 2, "2 blobs the same, 2 tops agree"),
        (["different"], ["different"], "1 of 1 blob differs, 1 of 1 top differs"),
        (["different"] * 2, ["different", "same"], "1 of 2 blobs differs, 2 of 2 tops differ"),
        (["same", "not compared"], ["not compared"], "1 top agrees, 2 not compared"),
    ],
)
def test_counts_are_in_their_grammatical_number(tops: list[str], blobs: list[str], counts: str) -> None:
    from bridge.verification.results import BlobResult, OutputsResult, TopResult, WeightsResult

    weights = WeightsResult("a", "b", tuple(BlobResult("c", "C", "weight", status=status) for status in blobs))
    outputs = OutputsResult("a", "b", tuple(TopResult("c", "C", "c", status=status) for status in tops))
    assert Report(("net",), weights=(weights,), outputs=(outputs,)).summary().split(": ", 1)[1] == counts


# -- JSON ----------------------------------------------------------------------------------------


def documented(schema: dict[str, Any], data: Any, path: str = "report") -> None:
    """Hold data against the part of JSON Schema that docs/verify.md uses."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    fits = any(data is None if kind == "null" else isinstance(data, types[kind]) for kind in kinds)  # type: ignore[arg-type]
    assert fits, f"{path}: {data!r} is no {kinds}"
    if isinstance(data, dict) and "properties" in schema:
        assert set(data) == set(schema["properties"]), path
        for name, entry in data.items():
            documented(schema["properties"][name], entry, f"{path}.{name}")
    if isinstance(data, list):
        for index, entry in enumerate(data):
            documented(schema["items"], entry, f"{path}[{index}]")
    if "enum" in schema:
        assert data in schema["enum"], path


def test_json_is_as_documented(failed: Report) -> None:
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    (schema,) = re.findall(r"```json\n(\{\s*\"\$schema\".*?)```", text, re.DOTALL)
    documented(json.loads(schema), json.loads(failed.to_json()))


def test_json_has_the_difference(failed: Report) -> None:
    data = json.loads(failed.to_json())
    assert data["status"] == 1
    (blob,) = [blob for result in data["weights"] for blob in result["blobs"] if blob["status"] == "different"]
    assert (blob["layer"], blob["blob"], blob["index"], blob["differing"]) == ("conv3", "weight", [19, 4, 2, 1], 1)
    assert data["outputs"][0]["tops"][2]["metrics"]["psnr"] > 100


# -- HTML ----------------------------------------------------------------------------------------


def test_html_is_one_page_without_network_or_script(failed: Report, tmp_path: Path) -> None:
    failed.write_html(tmp_path / "report.html")
    report_page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in report_page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", report_page)
    assert "http" not in report_page.replace("http-equiv", "")
    assert report_page.index('id="verdict"') < report_page.index("<table")
    assert report_page.count("<svg") > 20
    assert 'src="data:image/png;base64,' in report_page


def test_html_escapes_names() -> None:
    from bridge.verification.html import report_page
    from bridge.verification.results import BlobResult, OutputsResult, TopResult, WeightsResult

    evil = "<script>alert('x')</script>"
    report = Report(
        (evil,),
        weights=(WeightsResult(evil, evil, (BlobResult(evil, evil, evil, why=evil),)),),
        outputs=(OutputsResult(evil, evil, (TopResult(evil, evil, evil, why=evil, status="different"),)),),
        remarks=(evil,),
        versions={evil: evil},
    )
    assert "<script" not in report_page(report)
    assert html.escape(evil) in report_page(report)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_verdict_and_the_rows(failed: Report, tmp_path: Path, width: int) -> None:
    """Chromium lays the page out, and nothing is wider than the screen."""
    file = tmp_path / "report.html"
    failed.write_html(file)
    # A frame of the wanted width around the page measures it; the page itself has no script.
    measure = tmp_path / "measure.html"
    measure.write_text(
        f'<iframe id="f" style="border:0;width:{width}px;height:900px" src="report.html"></iframe><pre id="o"></pre>'
        "<script>f.onload = () => { const d = f.contentDocument; o.textContent = JSON.stringify({"
        "verdict: d.getElementById('verdict').innerText, first: d.getElementById('first').innerText,"
        "row: d.querySelector('tbody tr').innerText, wide: d.documentElement.scrollWidth,"
        "bars: d.querySelectorAll('svg.bar').length, picture: d.querySelector('img').naturalWidth}); };</script>"
    )
    done = subprocess.run(
        [
            str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--enable-logging=stderr",
            "--dump-dom", measure.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    match = re.search(r'<pre id="o">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr
    found = json.loads(html.unescape(match.group(1)))
    assert found["verdict"] == "FAILED"
    assert "layer 'conv3' (Convolution): blob 'weight' differs" in found["first"]
    assert "conv1" in found["row"]
    assert found["wide"] <= width
    assert found["bars"] >= 25
    assert found["picture"] > 0
    assert "CONSOLE" not in done.stderr


def test_png_is_read_by_another_decoder() -> None:
    need("PIL")
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(pixels)))) == pixels).all()


# -- metrics -------------------------------------------------------------------------------------


def test_metrics_of_a_known_difference() -> None:
    a, b = np.float32([[1, 2], [3, -4]]), np.float32([[1, 2], [3, -5]])
    found = metrics(a, b, 0.5)
    assert (found.count, found.mismatches, found.max_abs, found.max_rel) == (4, 1, 1.0, 0.2)
    assert (found.index, found.a, found.b, found.bound, found.ratio) == ((1, 1), -4.0, -5.0, 0.5, 2.0)
    assert found.max_ulps == 2**21
    assert found.cosine == pytest.approx(34 / (np.sqrt(30) * np.sqrt(39)))
    assert found.psnr == pytest.approx(20 * np.log10(4 / 0.5))
    assert sum(found.spread) == 4
    assert (found.spread[0], found.spread[-1]) == (3, 1)


@pytest.mark.parametrize(
    ("a", "b", "mismatches"),
    [
        (np.nan, np.nan, 0),
        (np.inf, np.inf, 0),
        (np.inf, -np.inf, 1),
        (np.nan, 1.0, 1),
        (1.0, np.inf, 1),
        (0.0, -0.0, 0),
    ],
)
def test_nan_and_infinity_compare_by_place(a: float, b: float, mismatches: int) -> None:
    x, y = np.float32([a, 1, 2]), np.float32([b, 1, 2.1])
    found = metrics(x, y, 0.5)
    assert found.mismatches == mismatches
    assert (found.max_abs == np.inf) is bool(mismatches)


def test_arrays_without_values_are_the_same() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert metrics(empty, empty, 0.0).count == 0
    assert bit_difference(empty, empty) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulps_count_across_zero(dtype: Any) -> None:
    tiny = np.nextafter(dtype(0), dtype(1))
    found = bit_difference(np.array([tiny]), np.array([-tiny]))
    assert found is not None
    assert found.ulps == 3  # tiny, 0.0, -0.0, -tiny
