"""Reports drawn as PNG images: speed over streams, and how times are distributed.

matplotlib is loaded only here and only when something is drawn; `pip install 'naiad[plot]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naiad.bench.figures import CURVE, Spread, Summary
from naiad.errors import ConfigError

#: Report lines by the name of the server they are about.
Series = Mapping[str, Sequence[Summary]]
#: One panel's curves: server -> points (x, y).
Curves = dict[str, list[tuple[float, float]]]

#: Stands for the line with the most streams at once.
LARGEST = "*"
TTFT_LINES = (
    *("consecutive", LARGEST, "shared prefix, cold", "shared prefix, warm"),
    *("multi-turn, from turn 2", "history, trimmed", "after the restart"),
)
GAP_LINES = ("consecutive", LARGEST, "running streams")

#: Fewer times than these are no distribution.
MIN_TIMES = 4

_COLUMNS = 4
_PANEL_INCHES = (3.0, 2.4)
_LONE_INCHES = (5.2, 3.4)
_DPI = 100
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Image:
    """One PNG: panels by name, and what the axes show. is_count: x counts streams, not time."""

    name: str
    panels: Mapping[str, Curves]
    x: str
    y: str
    is_count: bool = False


def streams_of(line: Summary) -> int | None:
    """How many streams a line of concurrent or sweep ran at once; None for any other line."""
    kind, _, number = line.name.rpartition(" ")
    return int(number) if kind in {"concurrent", "sweep"} and number.isdigit() else None


def throughput(series: Series) -> Curves:
    """Tokens per second over streams at once; servers with fewer than two points are left out."""
    found: Curves = {}
    for server, lines in series.items():
        points = {n: line.tokens_per_s for line in lines if (n := streams_of(line)) is not None}
        if len(points) > 1:
            found[server] = sorted((float(n), speed) for n, speed in points.items())
    return found


def distributions(
    series: Series, names: Sequence[str], times: Callable[[Summary], Spread | None]
) -> dict[str, Curves]:
    """Of each named line, the share of times that are at most so many milliseconds, per server.

    Lines with fewer than MIN_TIMES times are left out.
    """
    panels: dict[str, Curves] = {}
    most = max((streams_of(line) or 0 for lines in series.values() for line in lines), default=0)
    for name in names:
        title = f"{most} streams at once" if name == LARGEST else name
        for server, lines in series.items():
            for line in lines:
                spread = times(line)
                is_wanted = streams_of(line) == most if name == LARGEST else line.name == name
                if is_wanted and spread is not None and spread.n >= MIN_TIMES:
                    points = [(ms, p / 100) for ms, p in zip(spread.curve, CURVE, strict=True)]
                    panels.setdefault(title, {})[server] = points
    return panels


def draw(series: Series, folder: Path) -> list[Path]:
    """Draw what the lines hold into the folder: throughput.png, ttft.png, gaps.png.

    Returns the images written; one for which there is nothing to draw is not.

    Raises:
        ConfigError: matplotlib is not installed, or the folder cannot be written.
    """
    speed = {"all streams together": curves} if (curves := throughput(series)) else {}
    ttfts = distributions(series, TTFT_LINES, lambda line: line.ttft)
    gaps = distributions(series, GAP_LINES, lambda line: line.gap)
    images = [
        Image("throughput.png", speed, "streams at once", "tokens per second", is_count=True),
        Image("ttft.png", ttfts, "time to first token, ms", "share of streams"),
        Image("gaps.png", gaps, "time between two tokens, ms", "share of gaps"),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_draw(image, folder, list(series)) for image in images if image.panels]
    except OSError as error:
        raise ConfigError(f"cannot draw into {folder}: {error.strerror}", param="plot") from error


def _draw(image: Image, folder: Path, servers: Sequence[str]) -> Path:
    rows = -(-len(image.panels) // _COLUMNS)
    columns = -(-len(image.panels) // rows)  # as even as can be: six panels are two rows of three
    is_lone = len(image.panels) == 1
    size = _LONE_INCHES if is_lone else (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
    figure = _figure_class()(figsize=size, layout="constrained")
    for place, (name, curves) in enumerate(image.panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        _panel(axes, servers, curves, is_count=image.is_count)
        axes.set_title(name, fontsize=9)
    figure.supxlabel(image.x, fontsize=9)
    figure.supylabel(image.y, fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1 and is_lone:
        figure.axes[0].legend(fontsize=8)
    elif len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=_COLUMNS, fontsize=8)
    path = folder / image.name
    figure.savefig(path, dpi=_DPI)
    return path


def _panel(axes: Any, servers: Sequence[str], curves: Curves, *, is_count: bool) -> None:
    """A curve for each server, which has the same colour in every panel."""
    for i, server in enumerate(servers):
        xs, ys = zip(*curves.get(server, [(float("nan"), float("nan"))]), strict=True)
        style = _STYLES[i % len(_STYLES)]
        axes.plot(xs, ys, style, color=f"C{i}", marker="o" if is_count else "", ms=3, label=server)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
    if is_count:
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    elif _spans_decades(curves):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def _spans_decades(curves: Curves) -> bool:
    """True when the times differ so much that a straight scale would hide the small ones."""
    known = [x for points in curves.values() for x, _ in points if x > 0]
    return bool(known) and max(known) > 30 * min(known)


def _figure_class() -> Any:
    """matplotlib's Figure: drawing straight onto it needs no display and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plots need matplotlib: pip install 'naiad[plot]'", param="plot"
        ) from error
    return Figure
