"""What a RUN runs: words as they are, a text for the shell, or a script of its own."""

from agentd.image.oci.building.running import SCRIPT
from agentd.image.oci.building.state import StageState
from agentd.image.oci.building.syntax import Instructed


def command_of(state: StageState, instruction: Instructed) -> tuple[tuple[str, ...], str]:
    """Return the words, and the script that lies at SCRIPT: a heredoc that names its interpreter.
    Raises DockerfileError."""
    words = instruction.words
    if words is not None:
        if not words:
            raise state.wrong(instruction, "RUN [] runs nothing", "name a program")
        return words, ""
    docs = instruction.heredocs
    if len(docs) == 1 and instruction.text == docs[0].word:
        script = docs[0].content
        return ((SCRIPT,), script) if script.startswith("#!") else ((*state.shell, script), "")
    text = instruction.text
    for doc in docs:
        text += f"\n{doc.content}{doc.name}"
    return (*state.shell, text), ""
