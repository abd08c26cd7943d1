"""``agentd completion``: what a shell asks when Tab is pressed.

The scripts ask this command for the words: it has the parsers, so that no list has to be kept.
"""

import argparse
from importlib import import_module

from agentd.client.cli.parser import Parser

_EXAMPLES = """\
examples:
  source <(agentd completion bash)                 in ~/.bashrc
  source <(agentd completion zsh)                  in ~/.zshrc
  agentd completion fish > ~/.config/fish/completions/agentd.fish
"""
_BASH = """\
_agentd() {
    local IFS=$'\\n'
    COMPREPLY=($(agentd completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _agentd agentd
"""
_ZSH = f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}"
_FISH = """\
function __agentd_words
    agentd completion words -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c agentd -a '(__agentd_words)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.action == "words":
        print("\n".join(candidates(options.word or [""])))
    else:
        print(_SCRIPTS[options.action], end="")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="agentd completion",
        description="Print what lets a shell complete agentd's commands, actions and options.",
        epilog=_EXAMPLES,
    )
    scripts = {shell: f"print the script for {shell}" for shell in _SCRIPTS}
    parser.action(scripts | {"words": "print what such a script asks for"})
    parser.add_argument("word", metavar="WORD", nargs="*", help=argparse.SUPPRESS)
    return parser


def candidates(words: list[str]) -> list[str]:
    """List what the last of ``words`` may become; nothing where a file may stand."""
    from agentd.client.cli.main import COMMANDS

    *before, last = words
    if not before:
        return _matching([*COMMANDS, "help", "--help", "--version"], last)
    if before == ["help"]:
        return _matching(list(COMMANDS), last)
    if before[0] not in COMMANDS or "--" in before:
        return []
    found: argparse.ArgumentParser = import_module(COMMANDS[before[0]][0])._parser()
    for word in before[1:]:
        found = _actions(found).get(word) or found
    if last.startswith("-"):
        return _matching(_options(found), last)
    wanted = _choices(found, before)
    return _matching(wanted, last)


def _choices(parser: argparse.ArgumentParser, before: list[str]) -> list[str]:
    """List the choices of the option that stands before, else of a first positional."""
    for action in parser._actions:
        if before[-1] in action.option_strings:
            return _values(action)
    given = [word for word in before[1:] if not word.startswith("-")]
    if _actions(parser):
        return list(_actions(parser))
    positional = [action for action in parser._actions if not action.option_strings]
    if positional and not given:
        return list(map(str, positional[0].choices or []))
    return []


def _values(option: argparse.Action) -> list[str]:
    """List its choices, or those that its help names: ``none|host``, ``root|sandbox|UID``."""
    from agentd.model.isolation import IsolationLevel
    from agentd.sandbox import backends

    if option.choices:
        return list(map(str, option.choices))
    if option.dest == "isolation":
        return [level.label for level in IsolationLevel]
    if option.dest == "backend":
        return list(backends.names())
    named = str(option.metavar or "").split("|")
    return [word for word in named if word.islower()] if all(map(str.isalpha, named)) else []


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [name for action in shown for name in action.option_strings if name.startswith("--")]


def _matching(words: list[str], begin: str) -> list[str]:
    return [word for word in words if word.startswith(begin)]
