"""How results are printed: medians, their spread, and the first queue's ratio to each other one."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenarios import Metric

Results = dict[str, dict[str, list[float]]]
"""Queue -> name of a number -> its value in each round."""


def table(results: Results, metrics: dict[str, Metric]) -> str:
    """A table with a row for each metric that has at least one value."""
    queues = list(results)
    subject, others = queues[0], queues[1:]
    lines = [["", *queues, *(f"{subject} vs {other}" for other in others)]]
    for name, metric in metrics.items():
        values = {queue: results[queue].get(name, []) for queue in queues}
        if any(values.values()):
            ratios = [_ratio(metric, values[subject], values[other]) for other in others]
            lines.append([f"{metric.label}, {metric.unit}", *(_cell(values[queue]) for queue in queues), *ratios])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = cells
    numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
    return "   ".join([first.ljust(widths[0]), *numbers])


def _cell(values: list[float]) -> str:
    """The median, and the least and the greatest value when there are several."""
    if not values:
        return "-"
    if len(values) == 1:
        return _short(values[0])
    return f"{_short(median(values))} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(metric: Metric, ours: list[float], theirs: list[float]) -> str:
    """Above 1 the subject is better, whichever direction better is."""
    if not ours or not theirs:
        return "-"
    dividend, divisor = median(ours), median(theirs)
    if metric.lower_is_better:
        dividend, divisor = divisor, dividend
    return f"x {dividend / divisor:.2f}" if divisor else "-"
