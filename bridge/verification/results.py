"""What a verification finds, as plain data: blobs, tops and remarks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bridge.schema import Shape

SAME, DIFFERENT, SKIPPED = "same", "different", "not compared"
"""The verdicts on a blob or a top."""

RATIOS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, float("inf"))
"""Upper ends of the classes by which differences are counted, as parts of the bound."""

ULPS = (1, 16, 256, 4096, 65536, 2**20, float("inf"))
"""Upper ends of the classes by which values of different weights are counted."""

NAMED = 4
"""So many layers that stand behind a difference are named; of more the first and their number."""

ERROR, NOTE = "error", "note"
"""The severities of a finding; a note never fails a verification."""


def plural(number: int, noun: str) -> str:
    """``1 blob``, ``2 blobs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class BlobResult:
    """One stored blob on two sides.

    Attributes:
        layer, type, role: Which blob.
        shape: Its shape.
        dtype: Its type, as stored on the first side.
        status: SAME, DIFFERENT or SKIPPED.
        why: Why it was not compared, or how, or what differs if not the values.
        index: Place of the first value that differs.
        values: The two values there, as text.
        differing: How many values differ.
        ulps: Distance of the two values in units in the last place; ``None`` if one is NaN.
        spread: How many values are equal, and how many are apart by each of ULPS.
    """

    layer: str
    type: str
    role: str
    shape: Shape = ()
    dtype: str = ""
    status: str = SAME
    why: str = ""
    index: Shape | None = None
    values: tuple[str, str] = ("", "")
    differing: int = 0
    ulps: int | None = None
    spread: tuple[int, ...] = ()

    def __str__(self) -> str:
        subject = f"layer '{self.layer}' ({self.type}): blob '{self.role}'"
        if self.status == DIFFERENT and self.index is not None:
            count = int(np.prod(self.shape, dtype=object))
            distance = "" if self.ulps is None else f", {self.ulps} ulp"
            return (
                f"{subject} differs at {list(self.index)}: {self.values[0]} against {self.values[1]} "
                f"({self.differing} of {plural(count, 'value')}{distance})"
            )
        verdict = {SAME: "is the same", DIFFERENT: "differs", SKIPPED: "was not compared"}[self.status]
        return f"{subject} {verdict}: {self.why}" if self.why else f"{subject} {verdict}"


@dataclass(frozen=True)
class Compared:
    """Two sides, of which single things were compared; a base of what a verification finds.

    Attributes:
        a, b: Names of the sides.
    """

    a: str
    b: str

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The status of each thing: SAME, DIFFERENT or SKIPPED."""
        return ()

    def count(self, status: str) -> int:
        """How many have that status."""
        return self.verdicts.count(status)

    @property
    def compared(self) -> int:
        """How many were compared."""
        return len(self.verdicts) - self.count(SKIPPED)


@dataclass(frozen=True)
class WeightsResult(Compared):
    """All stored blobs of two sides.

    Attributes:
        a, b: Names of the sides.
        blobs: In the order of the net.
        why: Why nothing was compared; empty if it was.
    """

    blobs: tuple[BlobResult, ...] = ()
    why: str = ""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The status of each blob."""
        return tuple(blob.status for blob in self.blobs)


@dataclass(frozen=True)
class Metrics:
    """How far two float arrays of one shape are apart.

    Attributes:
        count: Number of values.
        mismatches: How many differ by more than the bound.
        max_abs: Largest absolute difference; infinite where only one is finite.
        max_rel: Largest difference relative to the larger of the two magnitudes.
        max_ulps: Largest distance in units in the last place of float32.
        cosine: Cosine of the angle between the two; 1 where both are zero.
        psnr: Largest magnitude over the root of the mean squared difference, in dB.
        index: Where the difference is largest against the bound; ``None`` if nothing differs.
        a, b: The two values there.
        bound: The bound there.
        ratio: The difference there, divided by the bound; above 1 it is a mismatch.
        spread: How many values are equal, and how many differ by each of RATIOS of the bound.
        rows: For detections, how many were matched, and which were not; else empty.
    """

    count: int = 0
    mismatches: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulps: int = 0
    cosine: float = 1.0
    psnr: float = float("inf")
    index: Shape | None = None
    a: float = 0.0
    b: float = 0.0
    bound: float = 0.0
    ratio: float = 0.0
    spread: tuple[int, ...] = ()
    rows: str = ""


@dataclass(frozen=True)
class TopResult:
    """One top of one layer on two sides.

    Attributes:
        layer, type, top: Which top.
        shape: Its shape on the first side.
        status: SAME, DIFFERENT or SKIPPED.
        why: What else is to be said: why it was not compared, or why a difference passes.
        metrics: The two sides after their own run of the whole net.
        alone: The layer alone on the other side's inputs; ``None`` if that was not needed.
        bound: The tolerance in words, with its reason.
        since: The layers before it whose results cannot be seen, so that the verdict is on them too.
        inputs: Bottoms of the layer, each with shape and range, where it differs.
    """

    layer: str
    type: str
    top: str
    shape: Shape = ()
    status: str = SAME
    why: str = ""
    metrics: Metrics | None = None
    alone: Metrics | None = None
    bound: str = ""
    since: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``layer 'conv2' (Convolution)``, for messages, with the layers that stand behind it."""
        names = ", ".join(f"'{name}'" for name in self.since)
        if len(self.since) > NAMED:
            names = f"{len(self.since)} layers from '{self.since[0]}' on"
        return f"layer '{self.layer}' ({self.type})" + (f", or one of {names} before it" if names else "")

    @property
    def decisive(self) -> Metrics | None:
        """The metrics that the verdict rests on."""
        return self.alone or self.metrics

    def __str__(self) -> str:
        subject = f"{self.label}: top '{self.top}'"
        found = self.decisive
        if self.status == DIFFERENT and found is not None and found.index is not None:
            alone = " on equal inputs" if self.alone else ""
            return (
                f"{subject} differs{alone} at {list(found.index)}: {found.a:.7g} against {found.b:.7g} "
                f"({found.mismatches} of {plural(found.count, 'value')}, at most {found.max_abs:.3g} apart; "
                f"bound {found.bound:.2g})"
            )
        verdict = {SAME: "agrees", DIFFERENT: "differs", SKIPPED: "was not compared"}[self.status]
        why = found.rows if self.status == DIFFERENT and found is not None and found.rows else self.why
        return f"{subject} {verdict}: {why}" if why else f"{subject} {verdict}"


@dataclass(frozen=True)
class OutputsResult(Compared):
    """All tops of two sides on the same inputs.

    Attributes:
        a, b: Names of the sides.
        tops: In the order of the net.
        why: Why nothing was compared; empty if it was.
    """

    tops: tuple[TopResult, ...] = ()
    why: str = ""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The status of each top."""
        return tuple(top.status for top in self.tops)


@dataclass(frozen=True)
class PartResult:
    """One part of a model or a recording, compared with the other side's: not its values, but that it is there.

    Attributes:
        kind: What it is: ``input``, ``output``, ``layer``, ``array`` or ``graph``.
        name: Its name.
        status: SAME, DIFFERENT or SKIPPED.
        why: What differs, or why it was not compared.
    """

    kind: str
    name: str
    status: str = SAME
    why: str = ""

    def __str__(self) -> str:
        verdict = {SAME: "is the same", DIFFERENT: "differs", SKIPPED: "was not compared"}[self.status]
        subject = f"{self.kind} '{self.name}'" if self.name else self.kind
        return f"{subject} {verdict}: {self.why}" if self.why else f"{subject} {verdict}"


@dataclass(frozen=True)
class PartsResult(Compared):
    """All parts of two sides: inputs, outputs and layers of models, arrays of a recording.

    Attributes:
        a, b: Names of the sides.
        parts: In the order of the first side, then those that only the second has.
    """

    parts: tuple[PartResult, ...] = ()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The status of each part."""
        return tuple(part.status for part in self.parts)


@dataclass(frozen=True)
class Finding:
    """What a consistency check found.

    Attributes:
        check: The check's name.
        severity: ERROR or NOTE.
        layer: The layer's name; empty for the net as a whole.
        message: What is wrong or unusual.
        hint: What to do about it.
    """

    check: str
    severity: str
    layer: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"layer '{self.layer}': " if self.layer else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class Checked:
    """Which checks ran on what, and what they found.

    Attributes:
        source: The net's files.
        ran: Names of the checks.
        findings: In order of the checks.
    """

    source: str
    ran: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    def count(self, severity: str) -> int:
        """How many findings have that severity."""
        return sum(finding.severity == severity for finding in self.findings)
