"""What a compiled program needs of a chip: memory, operations, exchanges between chips, and an estimate of its time.

Read from the compiler's own account and from the text of the optimized program, so that it can be told of a machine
that one does not have.
"""

import collections
import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

# The code's named scopes. The rest is LayerNorm, activations, dropout of states, residuals and embeddings.
SCOPES = ("masks", "attention", "cross_entropy", "vocabulary_max", "linear", "optimizer")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)")
_FUSED = re.compile(r" fusion\(.*calls=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_MEMORY_USED = re.compile(r"Used ([\d.]+)([GM]) of [\d.]+[GM] hbm")
_MEMORY_OF_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([GM])\) exceeds available HBM")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Exchanges of one kind.

    Attributes:
        count: how many the program has; those in a loop once.
        bytes: of a chip's results, all together.
    """

    count: int
    bytes: int


class Memory(NamedTuple):
    """Bytes of a chip's memory.

    Attributes:
        peak: the most at any time.
        arguments: state and batch.
        temporaries: what the program makes and drops.
    """

    peak: int
    arguments: int
    temporaries: int


def memory(program: jax.stages.Compiled) -> Memory:
    """The memory that a compiled program needs of each chip."""
    sizes: Any = program.memory_analysis()
    return Memory(sizes.peak_memory_in_bytes, sizes.argument_size_in_bytes, sizes.temp_size_in_bytes)


def wanted_memory(message: str, arguments: int) -> int | None:
    """Bytes that a TPU program would need of each chip, by the compiler's message that a chip has less.

    Args:
        message: of the error.
        arguments: bytes of state and batch, which one kind of message does not count.

    Returns:
        None if the error is another one.
    """
    found = _MEMORY_USED.search(message) or _MEMORY_OF_TEMPORARIES.search(message)
    if found is None:
        return None
    size = int(float(found[1]) * {"G": 2**30, "M": 2**20}[found[2]])
    return size if found.re is _MEMORY_USED else size + arguments


def flops(program: jax.stages.Compiled) -> float | None:
    """Operations of a chip as XLA counts them, the body of a loop once; None where it does not count."""
    costs = program.cost_analysis() or {}
    return costs.get("flops")


def exchanges(text: str) -> dict[str, Exchange]:
    """The exchanges between chips in the text of an optimized program, by kind."""
    count: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        found = _INSTRUCTION.match(line)
        if found and (kind := found[2].removesuffix("-start")) in COLLECTIVES:
            parts = [_size(*shape) for shape in _SHAPE.findall(found[1])]
            # What starts an exchange that another instruction ends has its argument among its results, but for a sum.
            whole = kind == found[2] or kind == "all-reduce"
            count[kind] += 1
            size[kind] += sum(parts) if whole else max(parts)
    return {kind: Exchange(count[kind], size[kind]) for kind in COLLECTIVES if count[kind]}


def largest_array(text: str) -> tuple[int, str]:
    """Bytes and shape of the largest array in memory, by the text of an optimized program.

    What is computed within a fused instruction is never in memory.
    """
    fused, shapes, in_fusion = set(_FUSED.findall(text)), set(), False
    for line in text.splitlines():
        if not line.startswith(" ") and (found := _COMPUTATION.match(line)):
            in_fusion = found[1] in fused
        elif not in_fusion:
            shapes.update(_SHAPE.findall(line))
    kind, dimensions = max(shapes, key=lambda shape: _size(*shape))
    return _size(kind, dimensions), f"{kind}[{dimensions}]"


def _size(kind: str, dimensions: str) -> int:
    return _BYTES[kind] * math.prod(int(number) for number in dimensions.split(",") if number)


def scope(instruction: str) -> str:
    """The innermost of `SCOPES` in the name of an instruction, of which the text is given; empty if there is none."""
    name = _NAME.search(instruction)
    steps = re.split(r"[/()]", name[1]) if name else []
    return next((step for step in reversed(steps) if step in SCOPES), "")


def estimated_cycles(text: str, trips: dict[str, float]) -> dict[str, float]:
    """Cycles of a TPU program by its compiler's own estimate of each instruction.

    Kernels that are not the compiler's, and exchanges, are not among them.

    Args:
        text: of the optimized program.
        trips: how often a loop's body runs, by a part of the loop's line in the text. The compiler counts it once, and
            so are loops that no part fits counted here.

    Returns:
        Cycles by scope, `rest` among them.
    """
    cycles: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    loops: dict[str, tuple[str, float]] = {}
    computation = ""
    for line in text.splitlines():
        if not line.startswith(" ") and (found := _COMPUTATION.match(line)):
            computation = found[1]
        for number in _CYCLES.findall(line):
            cycles[computation][scope(line) or "rest"] += int(number)
        if found := _LOOP.search(line):
            loops[found[1]] = computation, next((count for part, count in trips.items() if part in line), 1.0)

    def times(name: str) -> float:
        around, count = loops.get(name, ("", 1.0))
        return count * times(around) if around else count

    total: dict[str, float] = collections.defaultdict(float)
    for name, counts in cycles.items():
        for part, number in counts.items():
            total[part] += number * times(name)
    return dict(total)
