"""fs.write.v1: a whole file, or nothing of it."""

from agentd.capability.builtin import fs, text
from agentd.capability.port import Call, Inside
from agentd.capability.shape import boolean, choice, parameters, string
from agentd.model.capability import About, Bounds, Example, Needs, Outcome

_SCHEMA = parameters(
    ["path", "content"],
    path=fs.PATH,
    content=string(),
    encoding=choice(["utf-8", "base64"], "utf-8"),
    mode=string(default="0644", description="its permissions, in octal", pattern="^0?[0-7]{3}$"),
    parents=boolean("make the directories that are missing", default=False),
)
_EXAMPLES = (
    Example("a new file", {"path": "a.txt", "content": "hello\n"}, value={"size": 6}),
    Example(
        "in directories that are made for it",
        {"path": "src/pkg/run.sh", "content": "#!/bin/sh\n", "mode": "0755", "parents": True},
        value={"size": 10},
    ),
    Example("bytes", {"path": "a.bin", "content": "AAEC", "encoding": "base64"}, value={"size": 3}),
    Example(
        "over a directory", {"path": "d", "content": ""}, files={"d/a": ""}, error="is_directory"
    ),
    Example("in a directory that is not there", {"path": "x/a", "content": ""}, error="not_found"),
)


class FsWrite:
    about = About(
        name="fs.write.v1",
        summary="write a file: all of it or nothing",
        schema=_SCHEMA,
        needs=Needs(writes=True),
        bounds=Bounds(timeout=30.0, output=1 << 10),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        path = fs.place(inside, asked["path"])
        data = text.decoded(asked["content"], asked["encoding"])
        with fs.refusals():
            size = inside.files.write(
                path, data, mode=int(asked["mode"], 8), parents=asked["parents"]
            )
        return Outcome({"size": size})


CAPABILITY = FsWrite()
