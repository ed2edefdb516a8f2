"""Counts the collectives (communication between chips) in the text of a compiled program."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
REST = (
    "rest"  # the part for operations outside all modules: the loss, the optimizer, the sampler's arithmetic
)
# bytes per number
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
          "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
# An asynchronous collective is a pair of "-start" and "-done" operations; only the start is counted.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')
# The class of the module in which an operation was traced, without the method, and whether it belongs to a
# backward pass. Class names begin with a capital, unlike the names of jitted functions.
_MODULE = re.compile(r"(?:(transpose\()?jvp\(|/)([A-Z]\w+)(?:\.\w+)?[)/]")

# {kind: (count, bytes of the results)}
Counts = dict[str, tuple[int, int]]


def by_part(hlo: str) -> dict[str, Counts]:
    """Collectives of a program, {part: {kind: (count, bytes of the results)}}.

    A part is a class of modules, or its backward pass, which includes rematerialisation. Collectives that the
    compiler has combined count for the part of one of them.

    Args:
      hlo: text of the compiled program.
    """
    parts: dict[str, dict[str, list[int]]] = {}
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes, kind, started = match.groups()
        count = parts.setdefault(_part(line), collections.defaultdict(lambda: [0, 0]))[kind]
        count[0] += 1
        count[1] += _result_bytes(shapes, kind, bool(started))
    return {part: _ordered(counts) for part, counts in sorted(parts.items())}


def total(parts: dict[str, Counts]) -> Counts:
    """Counts of all parts together."""
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for counts in parts.values():
        for kind, (count, size) in counts.items():
            sums[kind][0] += count
            sums[kind][1] += size
    return _ordered(sums)


def _ordered(counts: dict[str, list[int]]) -> Counts:
    """Counts as tuples, in the order of `KINDS`."""
    return {kind: (counts[kind][0], counts[kind][1]) for kind in KINDS if kind in counts}


def _part(line: str) -> str:
    """The part that an operation belongs to."""
    name = _NAME.search(line)
    module = _MODULE.search(name[1]) if name else None
    if module is None:
        return REST
    # JAX names the operations of a backward pass "transpose(jvp(…))".
    return f"{module[2]}, backward" if module[1] else module[2]


def _result_bytes(shapes: str, kind: str, started: bool) -> int:
    """Bytes of the results of a collective, from the type of its operation."""
    # The type of a "-start" operation is a tuple that also has the operands.
    sizes = [
        math.prod(int(side) for side in sides.split(",") if side) * _BYTES[dtype]
        for dtype, sides in _SHAPE.findall(shapes)
        if dtype in _BYTES
    ]
    if started and kind == "collective-permute":  # (operand, result, two numbers)
        sizes = sizes[1:2]
    elif started and kind != "all-reduce":  # (operands, the same number of results)
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)
