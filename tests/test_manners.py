"""Terminal manners: how much a command says, how options are listed, and reports for CI."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

import bridge
from bridge import cli
from bridge.cli import manners
from bridge.verification.ci import junit, markdown, workflow_commands
from bridge.verification.report import Report
from tests.conftest import FASHION, ROOT, need
from tests.processes import ends, on_terminal

MODEL = [str(FASHION / "deploy.prototxt"), str(FASHION / "fashion_alexnet.caffemodel")]
SILENT = ("--readers", "none", "--engines", "none")


@pytest.fixture
def flipped(tmp_path: Path) -> str:
    """The model with a bit of layer conv3 changed."""
    data = bytearray(Path(MODEL[1]).read_bytes())
    data[50000] ^= 1
    (tmp_path / "flipped.caffemodel").write_bytes(data)
    return str(tmp_path / "flipped.caffemodel")


# -- commands and options ------------------------------------------------------------------------


def test_a_misspelt_command_has_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = ends(capfd, "verfy", *MODEL)
    assert (status, out) == (2, "")
    assert err.startswith("bridge: there is no command 'verfy'\n  hint: did you mean 'verify'")
    assert "lists the commands" in ends(capfd, "xyzzy")[2]


def test_a_misspelt_option_has_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    assert "'--engines'" in ends(capfd, "verify", *MODEL, "--enginez", "x")[2]


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_can_say_more_and_less(name: str) -> None:
    command: click.Command = getattr(importlib.import_module(f"bridge.cli.{name}"), name)
    assert isinstance(command, manners.Command)
    given = {word for parameter in command.params for word in parameter.opts}
    assert {"-v", "--verbose", "-q", "--quiet"} <= given
    repeated = [word for parameter in command.params for word in parameter.opts if word.startswith("-")]
    assert len(repeated) == len(set(repeated))


@pytest.mark.parametrize("width", ["60", "80"])
@pytest.mark.parametrize("name", ["export", "finetune", "verify"])
def test_help_lists_options_in_sections(
    name: str, width: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    _, out, _ = ends(capfd, name, "--help")
    assert max(map(len, out.splitlines())) <= int(width)
    titles = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert titles[0] == manners.FIRST
    assert titles[-2:] == [manners.READING, manners.LAST]
    assert len(titles) > 4
    first = out.split(f"{manners.FIRST}:\n")[1].splitlines()[0]
    if name != "verify":
        assert first.lstrip().startswith("-o")  # what must be given comes first
    assert "\n  FILES" not in out.split(f"{manners.FIRST}:")[1]


def test_quiet_leaves_out_notes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "a" type: "Nowhere" bottom: "x" top: "y" }')
    assert "note:" in ends(capfd, "info", str(path))[2]
    assert ends(capfd, "info", str(path), "-q")[::2] == (0, "")
    assert ends(capfd, "-q", "info", str(path))[2] == ""
    assert "note:" in ends(capfd, "info", str(path))[2]  # one command's silence is not the next one's


def test_quiet_leaves_out_progress(capfd: pytest.CaptureFixture[str]) -> None:
    manners.VOICE.reset()
    manners.VOICE.progress("one of two")
    manners.VOICE.level = -1
    manners.VOICE.progress("two of two")
    manners.VOICE.reset()
    assert capfd.readouterr().err == "one of two\n"


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize("plain", [False, True], ids=["colour", "NO_COLOR"])
def test_a_verdict_has_a_colour_on_a_terminal(plain: bool, flipped: str) -> None:
    line = ["verify", *MODEL, "--against", flipped, *SILENT, "--format", "summary"]
    status, text = on_terminal(*line, plain=plain)
    assert status == 1
    assert (b"\x1b[1;31mFAILED" in text) != plain
    assert (b"\x1b" in text) != plain


def test_verbose_says_steps_and_times(capfd: pytest.CaptureFixture[str]) -> None:
    _, quiet_out, _ = ends(capfd, "info", *MODEL)
    _, out, err = ends(capfd, "info", "-v", *MODEL)
    assert out == quiet_out
    steps = err.splitlines()
    assert all(re.match(r" +\d+\.\d\d s  ", step) for step in steps)
    assert "by the reader protobuf" in steps[1]
    assert steps[-1].partition("s  ")[2].startswith("done")


def test_the_version_comes_with_what_is_installed(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ends(capfd, "--version")
    assert status == 0
    assert out.startswith(f"weight-bridge {bridge.__version__}\npython 3.")
    assert re.search(r"^numpy \d", out, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = ends(capfd, "--completion", shell)
    assert status == 0
    assert set(re.findall(r"_[A-Z_]*BRIDGE_COMPLETE=", out)) == {"_BRIDGE_COMPLETE="}
    assert "weight-bridge" in out
    monkeypatch.setenv("_BRIDGE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "bridge ver")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert ends(capfd)[1] == "plain,verify\n"


def test_exit_statuses_are_documented(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ends(capfd, "--help")
    assert all(word in " ".join(out.split()) for word in ("0 it holds", "1 a difference", "2 it could", "130 inter"))


# -- reports for people in a hurry, and for machines -----------------------------------------------


def test_a_summary_is_what_differs_and_the_verdict(flipped: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ends(capfd, "verify", *MODEL, "--against", flipped, *SILENT, "--format", "summary")
    assert status == 1
    assert out.splitlines()[-1].startswith("FAILED: 1 of 10 blobs differ")
    assert out.startswith("* layer 'conv3' (Convolution): blob 'weight' differs at [19, 4, 2, 1]")
    status, out, _ = ends(capfd, "verify", *MODEL, "--against", MODEL[1], *SILENT, "--format", "summary")
    assert status == 0
    assert out.count("\n") == 1


def test_reports_are_written_when_it_could_not_be_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.caffemodel"
    cut.write_bytes(Path(MODEL[1]).read_bytes()[:70_000])
    reports = ("--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
    status, out, err = ends(capfd, "verify", MODEL[0], str(cut), *reports)
    assert (status, out) == (2, "")
    assert "past the end of file" in err
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["passed"], found["status"]) == (False, 2)
    assert "past the end of file" in found["undone"][0]
    page = (tmp_path / "r.html").read_text()
    assert "NOT DONE" in page
    assert "past the end of file" in page


def test_an_output_that_is_an_input_is_not_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.caffemodel"
    copy.write_bytes(Path(MODEL[1]).read_bytes())
    status, _, err = ends(capfd, "verify", MODEL[0], str(copy), "--html", str(copy))
    assert status == 2
    assert "would be written over" in err
    assert copy.read_bytes() == Path(MODEL[1]).read_bytes()


@pytest.fixture
def failed(flipped: str) -> Report:
    return bridge.verify(*MODEL, against=flipped, readers=(), engines=())


def test_junit_has_a_case_for_each_blob(failed: Report) -> None:
    root = ElementTree.fromstring(junit(failed))
    suite = next(suite for suite in root if suite.attrib["name"].startswith("weights"))
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("10", "1", "0")
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert case.attrib["name"] == "conv3/weight"
    checks = next(suite for suite in root if suite.attrib["name"].startswith("checks"))
    assert int(checks.attrib["tests"]) > 10


def test_junit_says_what_could_not_be_done_and_is_xml_whatever_files_are_called() -> None:
    text = junit(Report(("a\x00<&\ud800.caffemodel",), undone=("no \x1b & <here>",)))
    (case,) = ElementTree.fromstring(text).iter("error")
    assert case.attrib["message"] == "no \ufffd & <here>"


def test_annotations_cannot_be_steered_by_names(failed: Report) -> None:
    first, notice = workflow_commands(failed)
    assert first.startswith("::error title=bridge verify::layer 'conv3'")
    assert notice.startswith("::notice title=bridge verify%3A FAILED::FAILED: 1 of 10")
    (line, _) = workflow_commands(Report(("x",), undone=("50 %\n::set-output name=a::b",)))
    assert line == "::error title=bridge verify::50 %25%0A::set-output name=a::b"
    assert "and 13 problems more" in workflow_commands(Report(("x",), undone=("no",) * 22))[9]


def test_github_gets_annotations_and_a_summary(
    flipped: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    status, out, _ = ends(capfd, "verify", *MODEL, "--against", flipped, *SILENT, "--format", "github")
    assert status == 1
    assert out.startswith("::error ")
    text = summary.read_text()
    assert text.startswith("before\n### FAILED: 1 of 10 blobs differ")
    assert "| 9 | 1 | 0 |" in text


def test_markdown_shows_names_as_they_are() -> None:
    text = markdown(Report(("a",), undone=("layer <b>x</b> | `y` *z*",)))
    assert r"- layer \<b\>x\</b\> \| \`y\` \*z\*" in text


def test_the_schema_is_a_file_of_the_package(failed: Report) -> None:
    need("jsonschema")
    import jsonschema

    schema = json.loads((ROOT / "bridge" / "verification" / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in (failed, Report(("a",), undone=("no",))):
        jsonschema.validate(json.loads(report.to_json()), schema)


def test_the_schema_in_the_docs_is_that_file() -> None:
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    (schema,) = re.findall(r"```json\n(\{\s*\"\$schema\".*?)```", text, re.DOTALL)
    assert schema == (ROOT / "bridge" / "verification" / "report.schema.json").read_text(encoding="utf-8")
