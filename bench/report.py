"""The results as JSON, as text, and as Markdown."""

from collections.abc import Mapping
from typing import Any

from stats import Case, Row

HEADINGS = ("", "median", "p95", "to the first", "n", "isolates")


def as_json(results: list[Case], machine: Mapping[str, str]) -> dict[str, Any]:
    return {"machine": dict(machine), "cases": [_case(case) for case in results]}


def _case(case: Case) -> dict[str, Any]:
    return {
        "key": case.key,
        "title": case.title,
        "unit": case.unit,
        "note": case.note,
        "rows": [_row(case, row) for row in case.rows],
        "skipped": case.skipped,
        "targets": [
            {"text": t.text, "value": t.value, "bound": t.bound, "verdict": t.verdict}
            for t in case.targets
        ],
    }


def _row(case: Case, row: Row) -> dict[str, Any]:
    worst = 0.05 if case.unit == "MiB/s" else 0.95  # the slow end, where more is better too
    first = case.rows[0].median
    return {
        "name": row.name,
        "median": round(row.median, 3),
        "p95": round(row.percentile(worst), 3),
        "ratio": round(row.median / first, 3) if case.unit != "MB" else None,
        "n": len(row.samples),
        "isolates": row.isolates,
    }


def as_text(results: list[Case], machine: Mapping[str, str]) -> str:
    """Aligned columns, for a terminal."""
    blocks = []
    for case in (_case(case) for case in results):
        lines = [HEADINGS, *(_cells(row) for row in case["rows"])]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
        table = ["  " + _aligned(line, widths) for line in lines]
        blocks.append("\n".join([f"{case['title']} ({case['unit']})", *table, *_remarks(case)]))
    return "\n\n".join([*blocks, ", ".join(f"{k} {v}" for k, v in machine.items())])


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    first, *numbers = zip(line[:-1], widths[:-1], strict=True)
    cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in numbers), line[-1]]
    return "  ".join(cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    numbers = (f"{row['median']:,.2f}", f"{row['p95']:,.2f}", ratio, str(row["n"]))
    return (row["name"], *numbers, row["isolates"])


def _remarks(case: Mapping[str, Any]) -> list[str]:
    targets = [
        f"  target: {t['text']}: {_value(t['value'])}, {t['verdict']}" for t in case["targets"]
    ]
    skipped = [f"  skipped: {name}: {why}" for name, why in case["skipped"].items()]
    return [*([f"  {case['note']}"] if case["note"] else []), *targets, *skipped]


def _value(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def as_markdown(document: Mapping[str, Any]) -> str:
    """For the README, from what ``results.json`` holds."""
    parts = []
    for case in document["cases"]:
        lines = [_line(_cells(row)) for row in case["rows"]]
        head = [_line((f"{case['title']} ({case['unit']})", *HEADINGS[1:])), "|-|-:|-:|-:|-:|-|"]
        parts.append("\n".join([*head, *lines]))
        parts.append("\n".join(f"-{remark[1:]}" for remark in _remarks(case)))
    machine = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    return "\n\n".join([f"Taken on: {machine}.", *parts])


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
