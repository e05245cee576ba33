"""How many small faults the tests find: mutations of named modules, each run against the tests that cover it.

Usage: python benchmarks/mutate.py [--modules FILE ...] [--count N] [--seed N] [--limit SECONDS] [--jobs N]

A mutation changes one place: a constant (12 to 13), a comparison (``>`` to ``>=``), ``and`` to ``or``, ``+`` to ``-``,
a condition to its opposite, a returned value to None, or it removes a statement. It is killed if a test fails, or if
the tests take longer than the limit. The tree is copied to a temporary folder first; the clone is not touched.

Example: ``python benchmarks/mutate.py --modules bridge/onnx_export/fuse.py --count 20 --seed 1`` prints each of 20
mutations with its verdict, the score, and the lines that survived. The same seed draws the same mutations.

Tools such as mutmut and cosmic-ray try every mutation of a file against one command for all files. For this tree that
is days. Here a sample is drawn by a seed, spread over the modules, and each module has the few test files of the table
below, so that an answer takes minutes; ast and pytest are all it needs.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("backends", "benchmarks", "bridge", "docs", "fixtures", "tests", "*.toml", "*.ini", "*.md")
VERIFY = ("verify_bounds", "verify_weights", "verify", "layer_contract")
FINETUNE = ("finetune_cache", "finetune")
TABLE: dict[str, tuple[str, ...]] = {
    "bridge/verification/tolerance.py": VERIFY,
    "bridge/verification/compare.py": VERIFY,
    "bridge/verification/weights.py": ("verify_weights", "verify", "equivalence"),
    "bridge/verification/checks.py": ("verify_checks",),
    "bridge/onnx_export/fuse.py": ("export_graph", "export_half", "graphs", "golden"),
    "bridge/finetuning/cache.py": FINETUNE,
    "bridge/finetuning/logfile.py": (*FINETUNE, "finetune_faults"),
    "bridge/chain/freezing.py": ("freezing", "freezing_costs"),
    "backends/safetensors.py": ("readers",),
    "backends/wire.py": ("wire", "protobuf_reader", "protobuf_damage"),
}
"""Module -> X of each tests/test_X.py that covers it, those that find most first."""

COMPARED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
COMPUTED = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One change: the text from ``start`` to ``end`` of a module, in bytes, becomes ``text``."""

    module: str
    start: int
    end: int
    text: str
    line: int
    before: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before} -> {self.text.strip()}"


class Mutator:
    """Finds every mutation of one module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.source = (ROOT / module).read_bytes()
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def all(self) -> list[Mutation]:
        found = dict.fromkeys(self._within(ast.parse(self.source)))
        return [mutation for mutation in found if self._compiles(mutation)]

    def _compiles(self, mutation: Mutation) -> bool:
        try:
            compile(mutation.apply(self.source), self.module, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
        return True

    def _within(self, node: ast.AST) -> Iterator[Mutation]:
        for child in _children(node):
            yield from self._of(child)
            yield from self._within(child)

    def _of(self, node: ast.AST) -> Iterator[Mutation]:
        match node:
            case ast.Constant(value=bool(value)):
                yield self._change(node, str(not value))
            case ast.Constant(value=int(value)):
                yield self._change(node, str(value + 1))
            case ast.Constant(value=float(value)):
                yield self._change(node, repr(value * 2 or 1.0))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARED:
                yield self._between(left, right, COMPARED[type(op)])
            case ast.BoolOp(op=op, values=[first, second, *_]):
                yield self._between(first, second, "or" if isinstance(op, ast.And) else "and")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED:
                yield self._between(left, right, COMPUTED[type(op)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._change(node, f"({self._text(operand)})")
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield self._change(test, f"(not ({self._text(test)}))")
            case ast.Return(value=ast.expr()):
                yield self._change(node, "return None")
            case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.AugAssign() | ast.Delete():
                yield self._change(node, "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Continue() | ast.Break():
                yield self._change(node, "pass")

    def _text(self, node: ast.AST) -> str:
        return ast.unparse(node)

    def _change(self, node: ast.AST, text: str) -> Mutation:
        start, end = self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)
        return self._mutation(start, end, text, node.lineno)

    def _between(self, left: ast.expr, right: ast.expr, operator: str) -> Mutation:
        """Another operator between two operands; brackets around these stay where they are."""
        start, end = self._at(left.end_lineno, left.end_col_offset), self._at(right.lineno, right.col_offset)
        between = self.source[start:end].decode()
        closing, opening = between[: len(between) - len(between.lstrip(" \n)"))], ""
        rest = between[len(closing) :]
        opening = rest[len(rest.rstrip(" \n(")) :]
        return self._mutation(start, end, f"{closing or ' '}{operator}{opening or ' '}", left.end_lineno)

    def _at(self, line: int | None, column: int | None) -> int:
        return self.starts[(line or 1) - 1] + (column or 0)

    def _mutation(self, start: int, end: int, text: str, line: int | None) -> Mutation:
        before = " ".join(self.source[start:end].decode().split())
        return Mutation(self.module, start, end, text, line or 0, before)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that bear on what is computed: no annotations, no ``TYPE_CHECKING``, no texts."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.AST) and not typing and not isinstance(child, ast.JoinedStr):
                yield child


def draw(modules: Iterable[str], count: int, seed: int) -> list[Mutation]:
    """``count`` mutations, spread evenly over the modules."""
    rng = random.Random(seed)
    pools = {}
    for module in modules:
        pools[module] = Mutator(module).all()
        rng.shuffle(pools[module])
    chosen: list[Mutation] = []
    while len(chosen) < count and any(pools.values()):
        chosen += [pool.pop() for pool in pools.values() if pool]
    return chosen[:count]


class Bench:
    """A copy of the tree in which mutations are tried, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for pattern in COPIED:
            for path in ROOT.glob(pattern):
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, folder / path.name)
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment |= {"HYPOTHESIS_PROFILE": "ci", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def run(self, tests: tuple[str, ...], limit: float | None) -> tuple[int | None, str]:
        """Pytest's exit status, ``None`` past the limit; and the last lines that it printed."""
        line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        line += [f"tests/test_{name}.py" for name in tests]
        try:
            done = subprocess.run(
                line, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, "\n".join(done.stdout.splitlines()[-3:])

    def survives(self, mutation: Mutation, limit: float) -> bool:
        """Whether all tests pass with the mutation."""
        path = self.folder / mutation.module
        original = path.read_bytes()
        path.write_bytes(mutation.apply(original))
        try:
            return self.run(TABLE[mutation.module], limit)[0] == 0
        finally:
            path.write_bytes(original)


def limits(bench: Bench, modules: Iterable[str], least: float) -> dict[str, float]:
    """Per module three times what its tests take, and ``least`` seconds at least."""
    known: dict[tuple[str, ...], float] = {}
    for module in modules:
        tests = TABLE[module]
        if tests not in known:
            start = time.monotonic()
            status, output = bench.run(tests, None)
            known[tests] = time.monotonic() - start
            if status != 0:
                raise SystemExit(f"the tests of {module} do not pass without a mutation:\n{output}")
    return {module: max(least, 3 * known[TABLE[module]]) for module in modules}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modules", nargs="+", choices=list(TABLE), default=list(TABLE), metavar="FILE")
    parser.add_argument("--count", type=int, default=60, help="number of mutations (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="for the choice of mutations (default: 0)")
    parser.add_argument("--limit", type=float, default=30, help="shortest time limit, in seconds (default: 30)")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time, each in its own copy (default: 1)")
    return parser.parse_args()


def main() -> int:
    """Print every verdict, the score of each module, and the survivors."""
    options = arguments()
    chosen = draw(options.modules, options.count, options.seed)
    modules = list(dict.fromkeys(mutation.module for mutation in chosen))
    with tempfile.TemporaryDirectory() as folder:
        free: Queue[Bench] = Queue()
        for number in range(options.jobs):
            place = Path(folder) / str(number)
            place.mkdir()
            free.put(Bench(place))
        first = free.get()
        most = limits(first, modules, options.limit)
        free.put(first)

        def attempt(mutation: Mutation) -> bool:
            bench = free.get()
            try:
                survived = bench.survives(mutation, most[mutation.module])
            finally:
                free.put(bench)
            print(f"{'survived' if survived else 'killed':8}  {mutation}", flush=True)
            return survived

        with ThreadPoolExecutor(options.jobs) as pool:
            verdicts = dict(zip(chosen, pool.map(attempt, chosen), strict=True))
    report(verdicts, modules)
    return 0


def report(verdicts: dict[Mutation, bool], modules: list[str]) -> None:
    """The score of each module and of all, and what survived."""
    print()
    for module in modules:
        own = [survived for mutation, survived in verdicts.items() if mutation.module == module]
        print(f"{own.count(False):4} of {len(own):3} killed  {module}")
    killed = list(verdicts.values()).count(False)
    print(f"{killed:4} of {len(verdicts):3} killed: {100 * killed / max(1, len(verdicts)):.0f} %")
    for mutation, survived in verdicts.items():
        if survived:
            print(f"survived  {mutation}")


if __name__ == "__main__":
    sys.exit(main())
