"""The report of a preparation: counts of kept examples, and of dropped ones by reason."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "validation")
# Reasons for broken examples. They are an error only above a share of all examples.
BAD = {
    "truncated_file": "the file is truncated; the rest of it is lost",
    "repeated_key": "the key appears twice in its file",
    "unreadable_text": "the metadata is not a JSON object, or the caption is not UTF-8",
    "outside": "the image file is outside of the source's folder",
    "no_image": "there is no image",
    "no_caption": "there is no caption",
    "undecodable": "the image cannot be decoded",
    "truncated": "the image is truncated",
}
# Reasons for intact examples that a filter drops.
FILTERED = {
    "too_small": "the short side is too short",
    "too_elongated": "the long side is too long for the short one",
    "no_score": "there is no aesthetic score",
    "low_score": "the aesthetic score is too low",
    "short_caption": "the caption is too short",
    "long_caption": "the caption is too long",
}
_SHOWN = 3  # keys to show for each reason
_WIDTH = 120  # longest line of the text; keys may be long


@dataclasses.dataclass
class Report:
    """Counts of one part, or of the whole data set.

    Attributes:
      read: number of examples read.
      kept: {split: number of examples kept}.
      bytes: {split: size of the records}.
      dropped: {reason: count}.
      instances: {reason: the first few keys}.
    """

    read: int = 0
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    instances: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def keep(self, split: str, size: int) -> None:
        self.read += 1
        self.kept[split] = self.kept.get(split, 0) + 1
        self.bytes[split] = self.bytes.get(split, 0) + size

    def drop(self, reason: str, key: str) -> None:
        self.read += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        shown = self.instances.setdefault(reason, [])
        if len(shown) < _SHOWN:
            shown.append(key.encode("utf-8", "replace").decode())  # the key itself may be what is broken

    def add(self, other: "Report") -> None:
        """Add the counts of another part. Parts must be added in order, so that the first keys are shown."""
        self.read += other.read
        for mine, theirs in (
            (self.kept, other.kept),
            (self.bytes, other.bytes),
            (self.dropped, other.dropped),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        for reason, keys in other.instances.items():
            self.instances[reason] = (self.instances.get(reason, []) + keys)[:_SHOWN]

    @property
    def count(self) -> int:
        """Number of examples kept."""
        return sum(self.kept.values())

    @property
    def bad(self) -> int:
        """Number of broken examples."""
        return sum(self.dropped.get(reason, 0) for reason in BAD)

    @property
    def bad_share(self) -> float:
        """Share of broken examples among all examples read."""
        return self.bad / self.read if self.read else 0.0

    def worst(self) -> str:
        """The most frequent reason for broken examples, with an example, as a clause for an error message."""
        reason = max(BAD, key=lambda reason: self.dropped.get(reason, 0))
        return f"most often {BAD[reason]}, for example of '{self.instances[reason][0]}'"

    def to_json(self) -> dict[str, Any]:
        """The contents of report.json."""
        groups = {"bad": BAD, "filtered": FILTERED}
        dropped = {group: self._group(reasons) for group, reasons in groups.items()}
        return {
            "read": self.read, "kept": self.kept, "kept_count": self.count, "bytes": self.bytes,
            "bad_count": self.bad, "bad_share": self.bad_share, **dropped,
        }  # fmt: skip

    def _group(self, reasons: Mapping[str, str]) -> dict[str, Any]:
        return {
            reason: {"count": self.dropped[reason], "why": why, "instances": self.instances[reason]}
            for reason, why in reasons.items()
            if reason in self.dropped
        }

    # Names and counts in columns; the third column explains or gives a share.
    def text(self) -> str:
        """The report as text on one screen, with the most frequent reasons first."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.kept.items())
        size = sum(self.bytes.values()) / 1e6
        lines = [f"read     {self.read:>12,}", f"kept     {self.count:>12,}  {splits} ({size:,.1f} MB)"]
        for title, reasons in (("filtered", FILTERED), ("bad", BAD)):
            counts = {reason: self.dropped[reason] for reason in reasons if reason in self.dropped}
            total = sum(counts.values())
            lines.append(f"{title:9}{total:>12,}  {total / self.read if self.read else 0:.1%}")
            for reason in sorted(counts, key=lambda reason: counts[reason], reverse=True):
                instances = ", ".join(self.instances[reason])
                lines.append(f"{counts[reason]:>21,}  {reasons[reason]}: {instances}"[:_WIDTH])
        return "\n".join(lines)

    def dumps(self) -> str:
        """The report as JSON text for `loads`; each part is stored with its report."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Report":
        """Read a report; raise ValueError or TypeError if `dumps` did not write the text."""
        # A part's file may be damaged, or written by another version.
        report = cls(**json.loads(text))
        # `Report(**…)` checks no types, and a wrong count would show only in the totals.
        counts = [report.read, *report.kept.values(), *report.bytes.values(), *report.dropped.values()]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("counts must be whole numbers")
        if not (report.kept.keys() <= set(SPLITS) and report.instances.keys() >= report.dropped.keys()):
            raise ValueError("a split or a reason is unknown")
        return report
