"""NVIDIA machine code as cuobjdump lists it: what a kernel uses, what must not be in it, how it branches.

Only code is looked at; no GPU is needed. Instructions are taken as text, so a kernel for any architecture will do.
"""

import bisect
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Code = list[tuple[int, str]]  # address and text of every instruction but NOP


def find_cuobjdump() -> Path | None:
    """The triton package's, else the CUDA toolkit's."""
    triton = importlib.util.find_spec("triton")
    places = [Path(triton.origin).parent / "backends" / "nvidia" / "bin"] if triton and triton.origin else []
    places += [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    found = [place / "cuobjdump" for place in places if (place / "cuobjdump").exists()]
    found += [Path(path)] if (path := shutil.which("cuobjdump")) else []
    return found[0] if found else None


FAULTS = {
    "local memory": "LDL|STL",
    "atomics": r"U?ATOM\w*|U?REDG?|SUATOM|SURED",
    "double precision": r"D(ADD|MUL|FMA|SETP|MNMX|MMA)",
}


@dataclass
class Kernel:
    name: str  # mangled
    target: str
    registers: int
    local: int  # bytes of stack and local memory: spills, and arrays that are indexed at run time
    shared: int
    code: Code

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, text)) for _, text in self.code)

    def faults(self) -> list[str]:
        """What no kernel of ours has a reason for."""
        found = [f"{self.local} bytes of local memory"] if self.local else []
        for what, pattern in FAULTS.items():
            if count := self.count(rf"^(@!?U?P\w+ )?({pattern})\b"):
                found.append(f"{count} instructions: {what}")
        return found


def read(cuobjdump: Path, file: Path | str) -> list[Kernel]:
    """The kernels of a cubin, or those for every architecture in a library."""
    command = [cuobjdump, "-res-usage", "-sass", file]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump: {done.stderr.strip()[-1000:]}")
    return kernels(done.stdout)


def kernels(text: str) -> list[Kernel]:
    """The same from what `cuobjdump -res-usage -sass` printed."""
    found, used, target = [], {}, ""
    usage = re.compile(r"Function ([^\s:]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for part in re.split(r"(?=\t\tFunction : |Fatbin \w+ code:|^\tcode for )", text, flags=re.MULTILINE):
        for name, *numbers in usage.findall(part):
            used[name] = [int(number) for number in numbers]
        if match := re.match(r"\tcode for (\w+)", part):
            target = match[1]
        if match := re.match(r"\t\tFunction : (\S+)", part):
            registers, stack, shared, local = used[match[1]]
            found.append(Kernel(match[1], target, registers, stack + local, shared, instructions(part)))
    return found


def instructions(text: str) -> Code:
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", text)
    return [(int(address, 16), text) for address, text in lines if not text.startswith("NOP")]


def compiler(cuobjdump: Path, file: Path, folder: Path) -> str:
    """The release of the ptxas that wrote a library's kernels, which are extracted into a folder; '' if not noted."""
    subprocess.run([cuobjdump, "-xelf", "all", file.resolve()], cwd=folder, capture_output=True, check=True)
    for cubin in sorted(folder.glob("*.cubin")):
        if match := re.search(rb"Cuda compilation tools, release ([\d.]+)", cubin.read_bytes()):
            return match[1].decode()
    return ""


# ---- control flow


@dataclass
class Step:
    """Where an instruction may lead besides the next one."""

    target: int | None = None
    goes_on: bool = True


def step(text: str) -> Step:
    """BSYNC goes on behind itself, where its BSSY points; a called subroutine comes back."""
    guard, operation, operands = re.match(r"(@!?U?P\w+ )?(\w+)\S*\s*(.*)", text).groups()
    if operation in ("EXIT", "RET", "KILL"):
        return Step(goes_on=bool(guard))
    if operation == "BRA":
        *predicates, target = operands.split()
        return Step(int(target, 16), bool(guard or predicates))
    if operation in ("BRX", "BRXU", "JMP", "JMX", "JMXU"):
        raise ValueError(f"control flow that is not looked through: {text}")
    return Step()


class Flow:
    """A kernel's basic blocks, named by their first address, as far as they can be reached."""

    def __init__(self, code: Code):
        addresses = [address for address, _ in code]
        steps = [step(text) for _, text in code]
        starts = {addresses[0]}
        for i, leads in enumerate(steps):
            if leads.target is not None:  # a NOP has been left out: what follows it
                leads.target = addresses[bisect.bisect_left(addresses, leads.target)]
                starts.add(leads.target)
            if (leads.target is not None or not leads.goes_on) and i + 1 < len(code):
                starts.add(addresses[i + 1])
        self.entry = addresses[0]
        self.blocks: dict[int, list[str]] = {}
        self.edges: dict[int, list[int]] = {}
        for i, (address, text) in enumerate(code):
            if address in starts:
                block = address
                self.blocks[block], self.edges[block] = [], []
            self.blocks[block].append(text)
            if i + 1 == len(code) or addresses[i + 1] in starts:
                after = [steps[i].target] if steps[i].target is not None else []
                after += [addresses[i + 1]] if steps[i].goes_on and i + 1 < len(code) else []
                self.edges[block] = after
        reached = self.reachable()
        self.blocks = {block: lines for block, lines in self.blocks.items() if block in reached}
        self.loops = self._loops(reached)

    def reachable(self, without: int | None = None) -> set[int]:
        """The blocks that can be reached from the entry without passing one of them."""
        found, left = set(), [self.entry]
        while left:
            block = left.pop()
            if block != without and block not in found:
                found.add(block)
                left += self.edges[block]
        return found

    def _loops(self, reached: set[int]) -> dict[int, set[int]]:
        """The natural loops: all blocks of each by its head."""
        before = {block: [other for other in reached if block in self.edges[other]] for block in reached}
        loops: dict[int, set[int]] = {}
        for head in reached:
            latches = [block for block in before[head] if block >= head]
            if latches:
                others = self.reachable(without=head)
                latches = [latch for latch in latches if latch not in others]
            if latches:
                body, left = {head}, latches
                while left:
                    block = left.pop()
                    if block not in body:
                        body.add(block)
                        left += before[block]
                loops[head] = body
        return loops

    def lines(self, blocks: set[int]) -> list[str]:
        return [line for block in sorted(blocks) for line in self.blocks[block]]


# What tells ways through the same code apart, the most important first.
Rank = Callable[[str], tuple[int, ...]]


@dataclass
class Pass:
    """One way through some blocks."""

    rank: tuple[int, ...]  # summed over it
    instructions: int
    blocks: tuple[int, ...] = ()

    def order(self) -> tuple[int, ...]:
        return (*self.rank, -self.instructions)


def passes(flow: Flow, blocks: set[int], head: int, rank: Rank) -> dict[tuple[int, int], Pass]:
    """The ways from `head` back to it, or out of the kernel, by how many MUFU.EX2 and SHFL are executed on them.

    Of all ways with the same numbers, the one with the largest sums of `rank`, and of these the one with the fewest
    instructions. Inner loops are passed through once.
    """
    inner = {at: body for at, body in flow.loops.items() if at in blocks and at != head and body < blocks}

    @cache
    def ways(block: int) -> dict[tuple[int, int], Pass]:
        lines = flow.blocks[block]
        exp2, shuffles = (sum(bool(re.search(name, line)) for line in lines) for name in (r"MUFU\.EX2", r"\bSHFL\b"))
        sums = [sum(column) for column in zip(*map(rank, lines), strict=True)]
        after: list[tuple[tuple[int, int], Pass]] = []
        if head in flow.edges[block] or not flow.edges[block]:
            after.append(((0, 0), Pass((0,) * len(sums), 0)))
        for target in flow.edges[block]:
            again = target in inner and block in inner[target]
            if target in blocks and target != head and not again:
                after += ways(target).items()
        best: dict[tuple[int, int], Pass] = {}
        for counts, rest in after:
            key = counts[0] + exp2, counts[1] + shuffles
            summed = tuple(a + b for a, b in zip(sums, rest.rank, strict=True))
            way = Pass(summed, len(lines) + rest.instructions, (block, *rest.blocks))
            if key not in best or way.order() > best[key].order():
                best[key] = way
        return best

    return ways(head)
