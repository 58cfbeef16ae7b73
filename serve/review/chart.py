"""The rates as a picture: a point for each, and a line for its interval.

Knows what is drawn; not where the rates come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serve.review import stats
from serve.review.stats import Group, Rate, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
MOST = 20  # groups of one kind; those with the most verdicts
_RATES = (
    ("agreement", "Agreement"),
    ("overcall", "Over-call rate"),
    ("miss", "Miss rate"),
    ("wrong_side", "Wrong-side rate"),
)
_ROW_INCHES = 0.28
_HEADS = {"finding": "Finding", "template": "Template", "model": "Model"}


def draw(report: Report, path: Path) -> None:
    """Draws the rates of every group, a panel for each rate.

    Args:
        report: at least one group.
        path: a file to write, named by one of FORMATS.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import
    from matplotlib.figure import Figure

    rows = list(_rows(report))
    height = 1.5 + _ROW_INCHES * len(rows)
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_RATES), sharey=True)
    for panel, (name, title) in zip(panels, _RATES, strict=True):
        _panel(panel, title, [None if row is None else getattr(row, name) for _, row in rows])
    panels[0].set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for tick, (_, row) in zip(panels[0].get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row is None else "normal")
    closed = report.signed_off + report.amended + report.rejected
    figure.suptitle(f"{closed} reviewed drafts; points with 95 % intervals (Wilson)", fontsize=11)
    figure.savefig(path, dpi=150)


def _rows(report: Report) -> list[tuple[str, Group | None]]:
    """Labels from the top; a heading has no group."""
    rows: list[tuple[str, Group | None]] = []
    for kind, groups in stats.by_kind(report.groups):
        if kind in _HEADS:
            rows.append((_HEADS[kind], None))
        for group in groups[:MOST]:
            label = group.name.replace("_", " ") or "All"
            rows.append((f"{label}  (n = {group.verdicts})", group))
    return rows


def _panel(panel: Axes, title: str, rates: list[Rate | None]) -> None:
    for place, rate in enumerate(rates):
        if rate is None or rate.rate is None or rate.low is None or rate.high is None:
            continue
        panel.hlines(place, rate.low, rate.high, color="0.35", linewidth=1.6)
        panel.plot(rate.rate, place, "o", color="#0a5ea8", markersize=5)
    panel.set_title(title, fontsize=10)
    panel.set_xlim(-0.02, 1.02)
    panel.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"], fontsize=9)
    panel.grid(axis="x", color="0.9")
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
