"""text.wordcount.v1: how many lines, words and bytes a file of the sandbox has."""

from agentd.capability.port import Call, Inside
from agentd.model.capability import About, Bounds, CallFailed, Example, Outcome
from agentd.model.errors import OperationFailed

MAX_BYTES = 4 << 20

ABOUT = About(
    name="text.wordcount.v1",
    summary="count the lines, words and bytes of a file",
    schema={
        "type": "object",
        "required": ["path"],
        "additionalProperties": False,
        "properties": {"path": {"type": "string", "minLength": 1, "maxLength": 4095}},
    },
    bounds=Bounds(timeout=10.0, output=1024),
    examples=(
        Example(
            "a poem",
            {"path": "poem.txt"},
            files={"poem.txt": "roses are red\nviolets are blue\n"},
            value={"lines": 2, "words": 6, "bytes": 31},
        ),
        Example("a file that is not there", {"path": "gone.txt"}, error="not_found"),
    ),
)


class WordCount:
    about = ABOUT

    def run(self, call: Call, inside: Inside) -> Outcome:
        path = inside.path(call.parameters["path"])
        try:
            # The file is the sandbox's: one byte more than we take tells that it is too large.
            data = b"".join(inside.files.read_iter(path, 0, MAX_BYTES + 1))
        except OperationFailed as error:
            raise CallFailed("not_found", error.message, remediation="check the path") from None
        if len(data) > MAX_BYTES:
            raise CallFailed("too_large", f"the file is over {MAX_BYTES} bytes")
        words = len(data.split())
        return Outcome({"lines": data.count(b"\n"), "words": words, "bytes": len(data)})


CAPABILITY = WordCount()
