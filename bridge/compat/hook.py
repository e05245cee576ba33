"""The import hook: finds Chainer's modules as Python would, and compiles them rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from bridge.compat.table import Patch


class Finder(MetaPathFinder):
    """Stands first on ``sys.meta_path``, and passes on every module that has no patch."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self.patches: dict[str, list[Patch]] = {}
        for patch in patches:
            self.patches.setdefault(patch.module, []).append(patch)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module whose source is to be rewritten; None for all others."""
        wanted = [patch for patch in self.patches.get(fullname, ()) if patch.wanted()]
        spec = PathFinder.find_spec(fullname, path, target) if wanted else None
        if spec is None or type(spec.loader) is not SourceFileLoader:
            for patch in wanted:
                patch.status = "not found"
            return None
        spec.loader = PatchedLoader(spec.loader.name, spec.loader.path, wanted)
        return spec


class PatchedLoader(SourceFileLoader):
    """Loads a module from its rewritten source.

    Compiled code is neither read nor written: what lies in ``__pycache__`` is that of
    the unchanged source, and stays so.
    """

    def __init__(self, fullname: str, path: str, patches: Sequence[Patch]) -> None:
        super().__init__(fullname, path)
        self.patches = patches

    def get_code(self, fullname: str) -> CodeType:
        """The code of the rewritten module; tracebacks show the file's own lines."""
        source = self.get_source(fullname) or ""
        for patch in self.patches:
            source = patch.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)
