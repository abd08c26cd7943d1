"""Commands in the words of the ways in."""

import msgspec

from agentd.model.api import ResultView
from agentd.model.characters import as_texts
from agentd.model.like import like
from agentd.model.result import Result
from agentd.sandbox.journal.journal import Journal

RUNNING, ENDED = "running", "ended"


def of_result(result: Result, process: str, stdout: bytes, stderr: bytes) -> ResultView:
    out, err, encoding = as_texts(stdout, stderr)
    return like(ResultView, result, stdout=out, stderr=err, encoding=encoding, process=process)


def lost_bytes(journal: Journal) -> dict[str, int]:
    """Count the bytes of each stream that the disk refused."""
    lost: dict[str, int] = {}
    for gap in journal.losses:
        lost[gap.stream] = lost.get(gap.stream, 0) + gap.length
    return lost


def bare(view: ResultView) -> ResultView:
    return msgspec.structs.replace(view, stdout="", stderr="", encoding="utf-8")
