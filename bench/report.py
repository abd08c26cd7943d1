"""The results as JSON, as text, and as Markdown."""

from collections.abc import Mapping
from typing import Any

from stats import Case, Row

HEADINGS = ("", "median", "p95", "to the first", "n", "isolates")

# Of the README's table: a case's key, what it says there, its digits after the point, and each
# contender's row in the case.
CONTENDERS = ("agentd", "bubblewrap", "nsjail", "runc", "gVisor")
SHORT = (
    ("fresh", "a fresh sandbox, one command, all of it gone (ms)", 1,
     ("agentd", "bubblewrap", "nsjail", "runc", "runsc")),
    ("cli", "the same by the command line, the whole process (ms)", 1,
     ("agentd run", "bubblewrap", "", "runc", "runsc")),
    ("warm", "a command in a sandbox that is there (ms)", 1,
     ("agentd", "", "", "runc exec", "runsc exec")),
    ("stdout", "output to the host (MiB/s)", 0,
     ("agentd", "bubblewrap", "", "runc", "runsc")),
    ("idle", "memory of an idle sandbox (MB, PSS)", 1,
     ("agentd PSS", "bubblewrap PSS", "", "runc PSS", "runsc PSS")),
)  # fmt: skip


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
    worst = 0.05 if case.unit.endswith("/s") else 0.95  # the slow end, where more is better too
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
    numbers = (_number(row["median"]), _number(row["p95"]), ratio, str(row["n"]))
    return (row["name"], *numbers, row["isolates"])


def _number(value: float) -> str:
    """Memory by what the whole machine has left may come out below zero, which tells nothing."""
    return f"{value:,.2f}" if value >= 0 else "not measurable"


def _remarks(case: Mapping[str, Any]) -> list[str]:
    targets = [
        f"  target: {t['text']}: {_value(t['value'])}, {t['verdict']}" for t in case["targets"]
    ]
    skipped = [f"  skipped: {name}: {why}" for name, why in case["skipped"].items()]
    return [*([f"  {case['note']}"] if case["note"] else []), *targets, *skipped]


def _value(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def as_markdown(document: Mapping[str, Any]) -> str:
    """For docs/benchmarks.md, from what ``results.json`` holds."""
    parts = []
    for case in document["cases"]:
        lines = [_line(_cells(row)) for row in case["rows"]]
        head = [_line((f"{case['title']} ({case['unit']})", *HEADINGS[1:])), "|-|-:|-:|-:|-:|-|"]
        parts.append("\n".join([*head, *lines]))
        parts.append("\n".join(f"-{remark[1:]}" for remark in _remarks(case)))
    machine = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    return "\n\n".join([f"Taken on: {machine}.", *filter(None, parts)])


def as_short(document: Mapping[str, Any]) -> str:
    """For the README: medians of the cases that other tools have, too."""
    lines = [_line(("", *CONTENDERS)), f"|-|{'-:|' * len(CONTENDERS)}"]
    cases = {case["key"]: case["rows"] for case in document["cases"]}
    for key, said, digits, names in SHORT:
        medians = {row["name"]: row["median"] for row in cases.get(key, ())}
        cells = [f"{medians[name]:,.{digits}f}" if name in medians else "-" for name in names]
        lines.append(_line((said, *cells)))
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
