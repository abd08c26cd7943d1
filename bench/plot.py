"""The results as one picture: a row of bars a case, agentd's in colour."""

from pathlib import Path
from typing import TYPE_CHECKING

from stats import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = "#c2410c", "#94a3b8"


def write(results: list[Case], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawn = [case for case in results if case.rows]
    if not drawn:
        return
    heights = [len(case.rows) + 1.5 for case in drawn]
    figure, axes = pyplot.subplots(
        len(drawn),
        1,
        figsize=(9, 0.34 * sum(heights)),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    for axis, case in zip(axes[:, 0], drawn, strict=True):
        _bars(axis, case)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axis: "Axes", case: Case) -> None:
    rows = case.rows[::-1]
    values = [max(row.median, 1e-3) for row in rows]
    colours = [OURS if row.name.startswith("agentd") else THEIRS for row in rows]
    # A cost below the machine's noise may come out negative: its bar is a stub, its label true.
    bars = axis.barh([row.name for row in rows], values, color=colours)
    axis.bar_label(bars, [f" {value:,.2f}" for value in (row.median for row in rows)], fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.set_title(f"{case.title} ({case.unit}, log scale)", fontsize=10, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
