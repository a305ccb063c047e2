"""Draws results of the benchmarks as SVG, for docs/benchmarks.md.

python -m benchmarks.queue_scale --growth --json growth.json
python -m benchmarks.plot growth.json docs/plots/queue-growth.svg
python -m benchmarks.relay --json relay.json
python -m benchmarks.plot relay.json docs/plots/relay.svg
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 220, 20, 40
_COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#b7791f")


def document(parts: Sequence[str]) -> str:
    """An SVG that is readable on light and on dark paper."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join(
        [head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>", ""]
    )


def file_name(comparison: str, interpreter: str) -> str:
    """Of a drawing of `make bench`: "list-post.svg", "list-post-pypy.svg". No interpreter's replaces another's.

    `interpreter` is as `twisted_mta.service.interpreter` tells it: "PyPy 7.3.19 (Python 3.11.11)".
    """
    words = comparison.split()
    implementation = interpreter.partition(" ")[0].lower()
    if implementation != "cpython":
        words.append(implementation)
    return f"{'-'.join(words)}.svg"


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#333") -> str:
    """Some words."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def line(x: float, y: float, to_x: float, to_y: float, colour: str = "#ddd") -> str:
    """A thin line."""
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def growth(results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Milliseconds of each operation by the length of the queue, both in powers of ten."""
    lengths = sorted(int(length) for length in results)
    values = [value for one in results.values() for value in one.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    across = (_WIDTH - _LEFT - _RIGHT) / max(len(lengths) - 1, 1)
    up = (_HEIGHT - _TOP - _BOTTOM) / (high - low)
    bottom = _HEIGHT - _BOTTOM
    for power in range(low, high + 1):
        y = bottom - (power - low) * up
        yield line(_LEFT, y, _WIDTH - _RIGHT, y)
        yield text(_LEFT - 8, y + 4, f"{10.0**power:g} ms", "end")
    for number, length in enumerate(lengths):
        yield text(_LEFT + number * across, bottom + 18, f"{length:,}", "middle")
    yield text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 34, "recipients in the queue", "middle")
    for colour, name in zip(_COLOURS, results[str(lengths[0])], strict=False):
        points = [
            (_LEFT + number * across, bottom - (math.log10(results[str(length)][name]) - low) * up)
            for number, length in enumerate(lengths)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield text(points[-1][0] + 8, points[-1][1] + 4, name, colour=colour)


def rates(results: Mapping[str, Mapping[str, Sequence[float]]], ours: str = "twisted_mta") -> Iterator[str]:
    """Messages a second: a bar for the median of each server, `ours` in a colour of its own, and a dot for each round."""
    highest = max(rate for servers in results.values() for found in servers.values() for rate in found)
    bars = [(mode, server, found) for mode, servers in results.items() for server, found in servers.items()]
    left, right = 240, 20
    height = (_HEIGHT - _TOP - _BOTTOM) / len(bars)
    scale = (_WIDTH - left - right) / highest
    for number, (mode, server, found) in enumerate(bars):
        y = _TOP + number * height
        median = statistics.median(found)
        colour = _COLOURS[server != ours]
        yield (
            f'<rect x="{left}" y="{y + 4:.1f}" width="{median * scale:.1f}" height="{height - 8:.1f}" '
            f'fill="{colour}" opacity="0.6"/>'
        )
        yield text(left - 8, y + height / 2 + 4, f"{mode}, {server}", "end")
        yield text(left + 6, y + height / 2 + 4, f"{median:.0f}/s")
        for rate in found:
            yield f'<circle cx="{left + rate * scale:.1f}" cy="{y + height / 2:.1f}" r="3" fill="{colour}"/>'
    yield text(left, _HEIGHT - 12, "messages a second: the median, and each round")


def main() -> None:
    """Draw whatever the results hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("drawing", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    parts = growth(results["growth"]) if "growth" in results else rates(results["rates"])
    options.drawing.write_text(document(list(parts)), encoding="utf-8")


if __name__ == "__main__":
    main()
