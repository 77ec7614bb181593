"""Memory that a compiled program takes as it runs and the compiler's account leaves out.

On a CPU, XLA hands chains of element-wise operations that end in a sum to the library YNNPACK, as one instruction
whose operands and results are counted. What stands in between is allocated by the library, and freed memory stays
with the thread that freed it. Found by running (`benchmarks/planner_memory.py`): each such instruction takes about two
arrays of the largest that it computes on the way.
"""

import math
import re

_KIND = '"kind":"__ynn_fusion"'
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_COMPUTATION = re.compile(r"^%?([\w.\-]+) .*\{$")
_RESULT = re.compile(r"^\s+(ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
#: Instructions that need no array of their own.
_FREE = {"parameter", "constant", "broadcast", "bitcast", "iota", "tuple", "get-tuple-element", "transpose", "reshape"}


def uncounted_memory(program: str) -> int:
    """Bytes that the kernels of a compiled program, given as text, allocate for themselves."""
    called = [m[1] for line in program.splitlines() if _KIND in line and (m := _CALLS.search(line))]
    if not called:
        return 0
    inside = _computations(program)
    return sum(2 * max(inside.get(name, []), default=0) for name in called)


def _computations(program: str) -> dict[str, list[int]]:
    """Of each computation, the bytes of what it computes on the way to its result."""
    found: dict[str, list[int]] = {}
    sizes: list[int] = []
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            sizes = found.setdefault(head[1], [])
        elif (result := _RESULT.match(line)) and not result[1] and result[3] not in _FREE:
            sizes.append(_bytes(result[2]))
    return found


def _bytes(shape: str) -> int:
    """Of a shape as it is written, such as `f32[2,300]{1,0}`, or a tuple of them."""
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) * max(int(bits or 8) // 8, 1)
        for _, bits, dims in _ARRAY.findall(shape)
    )
