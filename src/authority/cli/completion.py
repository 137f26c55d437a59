"""`authority completion SHELL`: a script for bash, zsh or fish that completes commands and options.

The words stand here and not with the commands, so that a shell that starts loads none of them; a test
holds both together.
"""

from __future__ import annotations

from collections.abc import Sequence

from authority.cli.main import COMMANDS
from authority.cli.usage import Parser

WORDS = {
    "run": "--policy --accept-policy --grant --isolation --emulate --suggest --write "
    "--dry-run --files --quiet --tty --no-tty",
    "init": "--policy --for --no-policy",
    "why": "--lineage",
    "suggest": "--exact --write",
    "check": "--policy --verb",
    "policy": "prove diff dead recheck",
    "policy prove": "--policy --statement --certificate --record",
    "policy diff": "--prove --except --certificate --record",
    "policy recheck": "--entry --policy",
    "replay": "--bundle --key --until --from --live --step --env --quiet",
    "rejudge": "--policy",
    "dry": "list show apply discard",
    "audit": "verify bundle show tail query prove export",
    "audit verify": "--key --witness --log --rejudge --store --bundle --proof",
    "audit bundle": "--output --with-keys --alone",
    "audit tail": "--follow",
    "audit query": "--run --kind --effect --code --resource --since --until",
    "audit export": "--output",
    "token": "mint attenuate inspect revoke",
    "token mint": "--resource --method --expires --count --rate --quota --approval --run-only",
    "token attenuate": "--resource --method --expires --count --rate --quota --approval --run-only",
    "token revoke": "--reason",
    "key": "rotate --grace",
    "approvals": "list show approve deny --wait --watch",
    "halt": "--reason",
    "incident": "show timeline evidence cause patch prove test deploy resume report",
    "incident evidence": "--output",
    "incident cause": "--text --entry",
    "incident patch": "--policy --version",
    "incident test": "--junit --depth",
    "incident deploy": "--policy",
    "incident resume": "--reason",
    "incident report": "--what --detail --run",
    "canary": "plant remove list",
    "canary plant": "--file --host --credential",
    "resume": "--reason",
    "attach": "--policy --accept-policy --grant",
    "mcp": "--policy --accept-policy --grant --name",
    "gate": "status start stop clock --force",
    "matrix": "--against --isolation --emulate",
    "image": "build show prune --force --kernel --policy --days",
    "completion": "bash zsh fish",
}
"""What may stand behind a command, or behind a part of one, beside `--state` and `--json`."""
PARENTS = frozenset({"audit", "token", "policy", "incident", "canary"})
"""Commands that have nothing but parts."""
STATELESS = frozenset({"drill", "matrix"})
VALUES = {
    "--isolation": "auto namespace vm",
    "--for": "python node mcp coding-agent",
    "--files": "mount calls requests bind",
}
"""Options with values that are known. Behind any other word that nothing fits, files are offered."""

_BASH = """\
_authority() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{parts}
            *) case ${{COMP_WORDS[1]}} in
{cases}
            esac ;;
        esac
        case $before in
{values}
            --policy|--state|--write|--output|--log|--store|--bundle|--proof|--certificate) words="" ;;
        esac
        # Behind -- stand the words of the program, which are none of ours.
        for before in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
            [ "$before" = -- ] && words=""
        done
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "${{#COMPREPLY[@]}}" -eq 0 ] && COMPREPLY=($(compgen -f -- "$current"))
    return 0
}}
complete -o filenames -F _authority authority
"""


def words_of(name: str) -> str:
    """All words behind a command (`run`) or a part of one (`audit verify`)."""
    if name in PARENTS or name == "completion":
        return WORDS[name]
    common = "--json" if name in STATELESS else "--state --json"
    return f"{WORDS[name]} {common}" if name in WORDS else common


def parts_of(name: str) -> list[str]:
    """The parts of a command that has parts."""
    return [f"{name} {part}" for part in WORDS[name].split()] if name in PARENTS else []


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority completion",
        description="A script that completes commands and options. For bash, for example: "
        'eval "$(authority completion bash)"',
    )
    shells = ("bash", "zsh", "fish")
    made.add_argument("shell", choices=shells, metavar="bash|zsh|fish", help="whose it is")
    shell = made.parse_args(arguments).shell
    if shell == "fish":
        _fish()
        return 0
    parts = [part for name in COMMANDS for part in parts_of(name)]
    script = _BASH.format(
        commands=" ".join(COMMANDS),
        parts="\n".join(f'            "{p}") words="{words_of(p)}" ;;' for p in parts),
        cases="\n".join(f'                {n}) words="{words_of(n)}" ;;' for n in COMMANDS),
        values="\n".join(f'            {o}) words="{v}" ;;' for o, v in VALUES.items()),
    )
    if shell == "zsh":
        script = "autoload -U +X bashcompinit && bashcompinit\n" + script
    print(script, end="")
    return 0


def _fish() -> None:
    print("complete -c authority -f")
    for name, text in COMMANDS.items():
        quoted = text.replace("'", "\\'")
        print(f"complete -c authority -n __fish_use_subcommand -a {name} -d '{quoted}'")
        seen = f"__fish_seen_subcommand_from {name}"
        print(f"complete -c authority -n '{seen}' -a '{words_of(name)}' -F")
        for part in parts_of(name):
            inner = f"{seen}; and __fish_seen_subcommand_from {part.split()[1]}"
            print(f"complete -c authority -n '{inner}' -a '{words_of(part)}' -F")
