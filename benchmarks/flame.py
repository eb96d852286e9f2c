"""Profile of an echoed message: ``python benchmarks/flame.py``.

``twistd -n echod --quiet`` gets a load of ``speed.py``, and py-spy samples its stacks, in Python
and in C. The kernel cannot be sampled: the whole time of a system call counts for the function of
the C library that made it.

py-spy runs on the server's own core, with a higher priority (sched(7)), which needs root. So it
stops the server exactly where it is. From another core, the server would run on until py-spy's
signal arrives, usually at the end of a system call: less than a thousandth of the time was seen in
Python.

The output is a table in reST: the share of each part, and its CPU time of a message. The CPU time
is measured in the same process before and after the sampling. ``--svg`` writes a flame graph, with
its data in the same file; ``--read`` prints the table again from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from loads import Load, figures, measured
from losses import exit_in_one_line, give_up_after, table
from report import quiet
from servers import LOAD_CORE, SERVER_CORE, Server, build, end_children
from speed import SCENARIOS, machine, target, versions, whole
from units import number

LOAD: Final = "message-50"
SECONDS: Final = 10  # of sampling
RATE: Final = 500  # samples a second
RUNS: Final = 6  # before the sampling, and again after it
WHOLE: Final = 120  # seconds after which the benchmark gives up

# The rows of the table.
SEND, RECEIVE, EPOLL = "kernel, send", "kernel, recv", "kernel, epoll_wait"
MODULES, PYTHON = "socket and select, in C", "the interpreter in echod"
REACTOR, OTHER = "the reactor's turn", "other"
COLOURS: Final = {
    SEND: "#d8433f",
    RECEIVE: "#e88a5a",
    EPOLL: "#efc05f",
    MODULES: "#8fb3d9",
    PYTHON: "#5b8db8",
    REACTOR: "#8fb58a",
    OTHER: "#b9a3c4",
}

# The C library has several names for each call.
CALLS: Final = re.compile(r"(?:__)?(?:libc_)?(send|recv|epoll_wait|poll) \(libc\)")
KERNEL: Final = {"send": SEND, "recv": RECEIVE, "epoll_wait": EPOLL, "poll": EPOLL}
TURN: Final = "ReactorBase.mainLoop (twisted/internet/base.py)"


def shortened(frame: str) -> str:
    """Return a frame without the parts that are specific to this machine.

    These are the directory of a file, the version and the processor in its name, and an address
    in place of a function's name.
    """
    found = re.fullmatch(r"(.*) \((.*)\)", frame)
    if not found:
        return frame
    name, path = found.groups()
    inside = re.search(r"(?:^|/)((?:echod|twisted)/.*)", path)
    file = inside[1] if inside else path.rpartition("/")[2]
    file = re.sub(r"(?:[.]cpython-.*|-[\d.]+)?[.]so[.\d]*$", "", file)
    return f"{re.sub('^0x[0-9a-f]+$', '?', name)} ({file})"


def stacks_of(raw: str) -> dict[str, int]:
    """Return the number of samples of each stack in py-spy's output; outermost frames first.

    A stack starts with the loop of the reactor, because the frames around it are always the same.
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [shortened(frame) for frame in stack.split(";")]
        if TURN in frames:
            frames = frames[frames.index(TURN) :]
        counts[";".join(frames)] += int(count)
    return dict(sorted(counts.items()))


def part_of(stack: str) -> str:
    """Return the row of the table in which a stack is counted."""
    frames = stack.split(";")
    call = CALLS.fullmatch(frames[-1])
    if call:
        return KERNEL[call[1]]
    if "(echod/" in stack:
        return PYTHON if frames[-1].endswith(".py)") else MODULES
    return REACTOR if TURN in frames else OTHER


def shares(stacks: dict[str, int]) -> dict[str, float]:
    """Return the share of each part; their sum is 1."""
    counts = dict.fromkeys(COLOURS, 0)
    for stack, count in stacks.items():
        counts[part_of(stack)] += count
    total = sum(counts.values())
    return {part: count / total for part, count in counts.items()}


def profiler() -> str:
    """Return the path of py-spy."""
    found = shutil.which("py-spy") or shutil.which("py-spy", path=Path(sys.executable).parent)
    if not found:
        raise RuntimeError("no py-spy is installed; `pip install py-spy` does it")
    return found


def started_before(*command: str) -> subprocess.Popen[str]:
    """Start a command that has priority over the server, on the server's core."""
    os.sched_setaffinity(0, SERVER_CORE)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except PermissionError:
        raise RuntimeError("sampling a server on its own core needs root") from None
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, LOAD_CORE)


def measure(seconds: int) -> dict[str, Any]:
    """Return the sampled stacks, and the CPU time of a message."""
    spy = profiler()
    if not shutil.which("cc"):
        raise RuntimeError("the load is a C program, and no cc is installed")
    os.sched_setaffinity(0, LOAD_CORE)
    scenario = replace(SCENARIOS[LOAD], runs=RUNS)
    with tempfile.TemporaryDirectory() as tools, ExitStack() as stack:
        build("load.c", f"{tools}/load")
        server = Server("echod", tools, "--quiet")
        stack.callback(server.close)
        server.ready()
        load = Load(tools, server, scenario, scenario.connections)
        stack.callback(load.close)
        load.ready()
        runs = [measured(load, server, scenario) for _ in range(scenario.runs)]
        raw = Path(tools, "raw")
        sampled = []
        with started_before(
            *(spy, "record", "--pid", str(server.process.pid), "--native", "--nolineno"),
            *("--rate", str(RATE), "--duration", str(seconds)),
            *("--format", "raw", "--output", str(raw)),
        ) as process:
            while not sampled or process.poll() is None:
                sampled.append(measured(load, server, scenario))
            assert process.stderr is not None
            errors = process.stderr.read().strip()
        if process.returncode or not raw.exists():
            raise RuntimeError(f"py-spy: {(errors or 'nothing was seen').splitlines()[0]}")
        runs += [measured(load, server, scenario) for _ in range(scenario.runs)]
        return {
            "stacks": stacks_of(raw.read_text()),
            "figures": figures(scenario, runs),
            "sampled": figures(scenario, sampled),
            "rate": RATE,
            "size": scenario.size,
            "connections": scenario.connections,
            "profiler": subprocess.run(
                [spy, "--version"], capture_output=True, text=True, check=True
            ).stdout.strip(),
            "versions": versions(["echod"]),
            "machine": machine(),
            "command": " ".join(["python benchmarks/flame.py", *sys.argv[1:]]),
        }


def shown(result: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return for each part its share, and its CPU time of a message, as text."""
    cost = result["figures"]["cpu"] * 1000
    return {
        part: (f"{share * 100:.1f} %", f"{share * cost:,.0f} ns")
        for part, share in shares(result["stacks"]).items()
    }


def tables(result: dict[str, Any]) -> str:
    """Return the whole output: the table, and the notes."""
    rows = [[part, *words] for part, words in shown(result).items()]
    rows.append(["a message", "100 %", f"{result['figures']['cpu'] * 1000:,.0f} ns"])
    count = sum(result["stacks"].values())
    return "\n".join(
        [
            table([["part", "share", "CPU time"]], rows),
            "",
            f"{result['connections']} connections, {result['size']} B a message; {count:,} samples,"
            f" {result['rate']} a second.",
            f"During the sampling, a message took {number(result['sampled']['cpu'])} µs.",
            quiet([{LOAD: {"echod": result["figures"]}}]),
            f"{result['machine']}.",
            f"{result['versions']}, {result['profiler']}.",
            f"Measured with ``{result['command']}``.",
        ]
    )


# The drawing.

WIDTH: Final = 1000
HEIGHT: Final = 18  # of a frame
LETTER: Final = 6.1  # width of a letter
LEAST: Final = 0.002  # the share below which a frame is not drawn
COLUMNS: Final = 3  # of the legend


class Frame:
    """A frame, the number of its samples, and the frames that it called."""

    def __init__(self, name: str, colour: str) -> None:
        self.name = name
        self.colour = colour
        self.count = 0
        self.calls: dict[str, Frame] = {}

    def add(self, frames: Sequence[str], below: int, count: int) -> None:
        """Count a stack, of which ``below`` frames lie below this one."""
        self.count += count
        if len(frames) > below:
            stack = frames[: below + 1]
            if stack[-1] not in self.calls:
                colour = COLOURS[part_of(";".join(stack))]
                self.calls[stack[-1]] = Frame(stack[-1], colour)
            self.calls[stack[-1]].add(frames, below + 1, count)

    def height(self, least: float) -> int:
        if self.count < least:
            return 0
        return 1 + max((called.height(least) for called in self.calls.values()), default=0)

    def draw(self, left: float, level: int, whole: int, cost: float) -> Iterator[str]:
        """Yield the SVG of this frame, and above it those of the frames that it called."""
        share = self.count / whole
        if share < LEAST:
            return
        width = share * WIDTH
        y = -level * HEIGHT
        letters = int((width - 4) / LETTER)
        name = self.name if len(self.name) <= letters else f"{self.name[: letters - 1]}…"
        yield (
            f"<g><title>{escape(self.name)}: {share * 100:.1f} %, {share * cost:,.0f} ns</title>"
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{HEIGHT - 1}" '
            f'fill="{self.colour}" stroke="white" stroke-width="0.5"/>'
        )
        if letters >= 3:
            yield f'<text x="{left + 3:.1f}" y="{y + 12}">{escape(name)}</text>'
        yield "</g>"
        for called in sorted(self.calls.values(), key=lambda one: -one.count):
            yield from called.draw(left, level + 1, whole, cost)
            left += called.count / whole * WIDTH


def legend(result: dict[str, Any]) -> Iterator[str]:
    for at, (part, words) in enumerate(shown(result).items()):
        x, y = at % COLUMNS * WIDTH / COLUMNS, HEIGHT * (1.5 + at // COLUMNS)
        text = escape(f"{part}: {', '.join(words)}")
        yield f'<rect x="{x:.0f}" y="{y:.0f}" width="11" height="11" fill="{COLOURS[part]}"/>'
        yield f'<text x="{x + 15:.0f}" y="{y + 9:.0f}">{text}</text>'


def graph(result: dict[str, Any]) -> str:
    """Return a flame graph in SVG.

    The width of a frame is its time. The frames that it called lie above it. Its colour is
    that of the row in which its own time is counted.
    """
    message = Frame("a message", "#d9d9d9")
    for stack, count in result["stacks"].items():
        message.add(stack.split(";"), 0, count)
    top = (message.height(LEAST * message.count) - 1) * HEIGHT
    size = (WIDTH, top + HEIGHT * (2 + ceil(len(COLOURS) / COLUMNS)))
    box = f"0 {-top} {size[0]} {size[1]}"
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'width="{size[0]}" height="{size[1]}" viewBox="{box}" '
            'font-family="DejaVu Sans Mono, monospace" font-size="10">',
            f"<metadata>{escape(json.dumps(result))}</metadata>",
            f'<rect y="{-top}" width="{size[0]}" height="{size[1]}" fill="white"/>',
            *message.draw(0, 0, message.count, result["figures"]["cpu"] * 1000),
            *legend(result),
            "</svg>\n",
        ]
    )


def drawn_from(path: Path) -> Any:
    """Return the data that a flame graph was drawn from."""
    return json.loads(ET.parse(path).findtext("{http://www.w3.org/2000/svg}metadata", ""))


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Return the data that a flame graph was drawn from, and its table."""
    try:
        result = drawn_from(path)
        return result, tables(result)
    except (
        *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
        SyntaxError,  # of ElementTree
    ):
        raise RuntimeError(f"{path} was not drawn by flame.py") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Profile an echoed message: run echod, print a reST table."
    )
    parser.add_argument("--seconds", type=whole, default=SECONDS, help="of sampling, 10 by default")
    parser.add_argument("--svg", type=target, metavar="FILE", help="draw a flame graph")
    parser.add_argument("--read", type=Path, metavar="FILE", help="read a graph, measure nothing")
    arguments = parser.parse_args()
    give_up_after(WHOLE)
    with exit_in_one_line(), ExitStack() as stack:
        stack.callback(end_children)
        if arguments.read:
            result, output = read(arguments.read)
        else:
            result = measure(arguments.seconds)
            output = tables(result)
        print(output, flush=True)
        if arguments.svg:
            arguments.svg.write_text(graph(result))


if __name__ == "__main__":
    main()
