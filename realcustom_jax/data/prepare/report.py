"""What became of the examples that were read: how many were kept, and why the others were not."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "validation")
# Reasons of examples that are broken: counted, and fatal only above a share.
BAD = {
    "torn_file": "the file ends too soon; what follows in it is lost",
    "repeated_key": "the key appears twice in its file",
    "unreadable_text": "the metadata is no JSON object, or the caption no UTF-8",
    "outside": "the file that is named lies outside of the source's folder",
    "no_image": "there is no image",
    "no_caption": "there is no caption",
    "undecodable": "the image cannot be decoded",
    "truncated": "the image ends too soon",
}
# Reasons of examples that are whole and not wanted.
FILTERED = {
    "too_small": "the short side is too short",
    "too_elongated": "the long side is too long for the short one",
    "no_score": "there is no aesthetic score",
    "low_score": "the aesthetic score is too low",
    "short_caption": "the caption is too short",
    "long_caption": "the caption is too long",
}
_SHOWN = 3  # keys that are kept as instances of each reason
_WIDTH = 120  # of the text, in which keys may be long


@dataclasses.dataclass
class Report:
    """Counts of a part or of the whole.

    Attributes:
      read: examples that were found.
      kept: examples by split.
      bytes: of the records by split.
      dropped: reason → count.
      instances: reason → the first few keys.
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
            shown.append(key.encode("utf-8", "replace").decode())  # it may be what is wrong

    def add(self, other: "Report") -> None:
        """Counts another part's examples too; parts are added in their order, for the instances."""
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
        """Examples that were kept."""
        return sum(self.kept.values())

    @property
    def bad(self) -> int:
        return sum(self.dropped.get(reason, 0) for reason in BAD)

    @property
    def bad_share(self) -> float:
        """Of what was read."""
        return self.bad / self.read if self.read else 0.0

    def worst(self) -> str:
        """The most frequent kind of bad example, with an instance, as a clause for an error."""
        reason = max(BAD, key=lambda reason: self.dropped.get(reason, 0))
        return f"most often {BAD[reason]}, for example of '{self.instances[reason][0]}'"

    def to_json(self) -> dict[str, Any]:
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

    def text(self) -> str:
        """One screen: what was kept and, by reason and most frequent first, what was not."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.kept.items())
        size = sum(self.bytes.values()) / 1e6
        lines = [f"read     {self.read:>12,}", f"kept     {self.count:>12,}  {splits} ({size:,.1f} MB)"]
        for title, reasons in (("filtered", FILTERED), ("bad", BAD)):
            counts = {reason: self.dropped[reason] for reason in reasons if reason in self.dropped}
            total = sum(counts.values())
            lines.append(f"{title:9}{total:>12,}  {total / self.read if self.read else 0:.1%}")
            for reason in sorted(counts, key=counts.get, reverse=True):
                instances = ", ".join(self.instances[reason])
                lines.append(f"{counts[reason]:>21,}  {reasons[reason]}: {instances}"[:_WIDTH])
        return "\n".join(lines)

    def dumps(self) -> str:
        """All of it, as `loads` reads it: how a part's report comes from another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Report":
        """Raises ValueError or TypeError for what `dumps` would not write."""
        report = cls(**json.loads(text))
        counts = [report.read, *report.kept.values(), *report.bytes.values(), *report.dropped.values()]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("counts must be whole numbers")
        if not (report.kept.keys() <= set(SPLITS) and report.instances.keys() >= report.dropped.keys()):
            raise ValueError("a split or a reason is unknown")
        return report
