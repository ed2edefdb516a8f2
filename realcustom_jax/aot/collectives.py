"""What the chips send each other, read off the text of a compiled program."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
REST = "rest"  # the part of operations outside of all modules: the loss, the optimizer, the sampler's algebra
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
          "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
# An operation that starts and one that ends are one collective; the second is not counted.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')
# The module that an operation was traced in, without its method, and whether it is of a backward pass. Its
# name begins with a capital, which those of jitted helpers do not.
_MODULE = re.compile(r"(?:(transpose\()?jvp\(|/)([A-Z]\w+)(?:\.\w+)?[)/]")

# {kind: (count, bytes of the results)}
Counts = dict[str, tuple[int, int]]


def by_part(hlo: str) -> dict[str, Counts]:
    """{part: {kind: (count, bytes of the results)}}; a part is a class of modules, or its backward pass.

    What a backward pass computes again (rematerialisation) is its own. Where the compiler has joined
    collectives, the name of one of them tells the part.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes, kind, started = match.groups()
        count = found.setdefault(_part(line), collections.defaultdict(lambda: [0, 0]))[kind]
        count[0] += 1
        count[1] += _result_bytes(shapes, kind, bool(started))
    return {part: _ordered(counts) for part, counts in sorted(found.items())}


def total(parts: dict[str, Counts]) -> Counts:
    """Of all parts together."""
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for counts in parts.values():
        for kind, (count, size) in counts.items():
            sums[kind][0] += count
            sums[kind][1] += size
    return _ordered(sums)


def _ordered(counts: dict[str, list[int]]) -> Counts:
    return {kind: (counts[kind][0], counts[kind][1]) for kind in KINDS if kind in counts}


def _part(line: str) -> str:
    name = _NAME.search(line)
    module = _MODULE.search(name[1]) if name else None
    if module is None:
        return REST
    return f"{module[2]}, backward" if module[1] else module[2]


def _result_bytes(shapes: str, kind: str, started: bool) -> int:
    """Of the results in an operation's type, which names operands too where it only starts the collective."""
    sizes = [
        math.prod(int(side) for side in sides.split(",") if side) * _BYTES[dtype]
        for dtype, sides in _SHAPE.findall(shapes)
        if dtype in _BYTES
    ]
    if started and kind == "collective-permute":  # operand, result, two numbers
        sizes = sizes[1:2]
    elif started and kind != "all-reduce":  # operands, then as many results
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)
