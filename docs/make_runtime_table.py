"""Write docs/runtimes.md: which runtimes load the exported files, and how far they agree with Caffe.

    python docs/make_runtime_table.py

measures the runtimes that are installed where it runs, keeps what was measured of the
others elsewhere (docs/runtimes.json), and writes the page. `tox run -e runtimes` and its
siblings make such places.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.detectors import SITUATIONS, detectors, judge_detector  # noqa: E402
from tests.runtimes import (  # noqa: E402
    AGREES,
    ATOL,
    DIFFERS,
    KNOWN,
    REFUSED,
    RTOL,
    RUNTIMES,
    STATIC,
    Result,
    Runtime,
    cases,
    judge,
    known,
)

PAGE = ROOT / "docs" / "runtimes.md"
HEAD = f"""# Exported files in other runtimes

Made by `docs/make_runtime_table.py`; `tests/test_runtimes.py` holds each runtime that is installed to it.

The files are what `bridge export` writes by default: opset 17, the batch open, height and width where that is cheap.
The cases are those recorded from the real Caffe in `fixtures/golden/`, and for types that BVLC Caffe does not have, a
second implementation in NumPy (`tests/references/`). *Agrees* means: loaded as it is, and every output is Caffe's
within rtol {RTOL:g}, atol {ATOL:g}; behind it stands the largest difference met. *If static*: only as exported
with `--static`, all extents fixed. *n of m*: so many of the type's cases agree; which do not is said below. A runtime
that is older than its neighbour is the oldest that the exporter is made for.

"""
SHORT = 120
"""Characters of a runtime's own words."""


def measure(runtime: Runtime) -> dict[str, Any]:
    """Run every case in one runtime: how many agree, by layer type and by model, and which do not."""
    types: dict[str, list[Any]] = {}
    models, other = {}, {}
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            result = judge(runtime, case, Path(folder))
        if case.trained:
            models[case.name] = _counted([0, 0, 0, 0.0], result)
        else:
            for kind in ("*", *sorted(case.types())):
                types[kind] = _counted(types.get(kind, [0, 0, 0, 0.0]), result)
        if result.verdict != AGREES:
            other[case.name] = [result.verdict, _words(result)]
    title = f"{runtime.title} {runtime.version}"
    return {
        "title": title,
        "types": dict(sorted(types.items())),
        "models": models,
        "cases": other,
        "detectors": measure_detectors(runtime),
    }


def measure_detectors(runtime: Runtime) -> dict[str, dict[str, str]]:
    """What comes of each detector in each situation."""
    found: dict[str, dict[str, str]] = {}
    for case in detectors():
        for situation in SITUATIONS:
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(case.name, {})[situation] = judge_detector(runtime, case, situation, Path(folder))
    return found


def _counted(sums: list[Any], result: Result) -> list[Any]:
    """Cases, those that agree, those that do if static, and the largest difference among these."""
    count, good, static, apart = sums
    fits = result.verdict in (AGREES, STATIC)
    apart = max(apart, float(f"{result.apart:.0e}")) if fits else apart
    return [count + 1, good + (result.verdict == AGREES), static + (result.verdict == STATIC), apart]


def _words(result: Result) -> str:
    """What is to be told of a case that does not agree."""
    text = result.said.split("error: ", 1)[-1].replace("> ", "").replace("`", "'")
    text = text[:SHORT] + ("..." if len(text) > SHORT else "")
    return text or f"differs by {result.apart:.2g}"


def page(measured: dict[str, Any]) -> str:
    """The whole page."""
    columns = [measured[key] for key in sorted(measured)]
    titles = [column["title"] for column in columns]
    types = sorted({kind for column in columns for kind in column["types"]} - {"*"}, key=str.lower)
    models = sorted({name for column in columns for name in column["models"]})
    rows = [[f"`{kind}`", *(cell(column["types"].get(kind)) for column in columns)] for kind in types]
    rows.append(["**all cases**", *(total(column["types"]["*"]) for column in columns)])
    trained = [[name, *(cell(column["models"].get(name)) for column in columns)] for name in models]
    return (
        HEAD
        + table(["Layer type", *titles], rows)
        + "\n## Trained models\n\n"
        + table(["Model", *titles], trained)
        + detector_section(columns)
        + "".join(reasons(column) for column in columns)
    )


DETECTORS = """
## Detectors

One file for all sizes, its height and width open, against ONNX Runtime on a file with fixed extents; rows are compared
as detections ([how](verify.md)). *Another size*: 64 rows more. *Nothing found*: a `confidence_threshold` that no score
reaches. *A full list*: more boxes than `keep_top_k`. OpenCV 4 gets a file for each size, made with `--target opencv4`,
whose boxes and scores are compared.

"""


def detector_section(columns: list[dict[str, Any]]) -> str:
    """The table of detectors, for the runtimes that they were run in."""
    known = [column for column in columns if "detectors" in column]
    names = sorted({(name, tried) for column in known for name in column["detectors"] for tried in SITUATIONS})
    rows = [
        [name, tried, *(column["detectors"].get(name, {}).get(tried, "") for column in known)] for name, tried in names
    ]
    return DETECTORS + table(["Detector", "Situation", *(column["title"] for column in known)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(sums: list[Any] | None) -> str:
    """What came of the cases of one type."""
    if sums is None:
        return ""
    count, good, static, apart = sums
    if good + static < count:
        return f"{good + static} of {count}" if count > 1 else "no"
    some = f" ({static} of {count} if static)" if static else ""
    return f"agrees{some}, {f'{apart:.0e}' if apart else 'exactly'}"


def total(sums: list[Any]) -> str:
    """How many of all cases agree."""
    count, good, static, _ = sums
    return f"{good + static} of {count}" + (f", {static} of them if static" if static else "")


def reasons(column: dict[str, Any]) -> str:
    """What does not agree in one runtime, and in its words why."""
    told = {STATIC: "agrees only if static", REFUSED: "refused", DIFFERS: "not the same"}
    lines = [f"- {name}: {told[verdict]}: `{said}`" for name, (verdict, said) in sorted(column["cases"].items())]
    return f"\n## What {column['title']} does not take as it is\n\n" + ("\n".join(lines) or "Nothing.") + "\n"


def store(measured: dict[str, Any]) -> str:
    """JSON with one line for each type, model and case."""
    text = json.dumps(measured, sort_keys=True, indent=1)
    return re.sub(r"\[\n.*?\n\s*\]", lambda found: json.dumps(json.loads(found[0])), text, flags=re.DOTALL) + "\n"


def main() -> None:
    """Measure what is installed here, and write both files."""
    measured = known()
    for runtime in RUNTIMES:
        if not runtime.missing:
            measured[runtime.key] = measure(runtime)
            print(f"{measured[runtime.key]['title']}: {total(measured[runtime.key]['types']['*'])}")
    KNOWN.write_text(store(measured), encoding="utf-8")
    PAGE.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
