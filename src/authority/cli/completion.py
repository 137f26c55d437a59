"""`authority completion SHELL`: a script for bash, zsh or fish that completes commands and options."""

from __future__ import annotations

from collections.abc import Sequence

from authority.cli.main import COMMANDS
from authority.cli.usage import Parser

WORDS = {
    "audit": "verify bundle show tail query prove export",
    "token": "mint attenuate inspect revoke",
    "key": "rotate --grace --state --json",
    "approvals": "list show approve deny --wait --watch --state --json",
    "policy": "prove diff dead recheck",
    "incident": "show timeline evidence cause patch prove test deploy resume report",
    "canary": "plant remove list",
    "image": "build show prune --force --kernel --policy --days --state --json --",
    "dry": "list show apply discard --state --json",
    "why": "--lineage --state --json",
    "replay": "--bundle --key --until --from --live --step --env --quiet --state --json",
    "rejudge": "--policy --state --json",
    "mcp": "--policy --name --grant --accept-policy --state --json --",
    "drill": "--json",
    "gate": "status start stop clock --force --state --json",
    "completion": "bash zsh fish",
    "run": "--policy --state --json --isolation --emulate --accept-policy --grant --files --quiet "
    "--tty --no-tty --suggest --write --dry-run --",
    "attach": "--policy --state --json --accept-policy --grant",
    "suggest": "--exact --write --state --json",
    "init": "--for --policy --no-policy --state --json",
    "check": "--policy --verb --state --json",
    "matrix": "--json --against --isolation --emulate",
    "halt": "--reason --state --json",
    "resume": "--reason --state --json",
}

_BASH = """\
_authority() {{
    local current=${{COMPWORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
        case ${{COMPWORDS[1]}} in
{cases}
            *) words="--state --json" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "${{#COMPREPLY[@]}}" -eq 0 ] && COMPREPLY=($(compgen -f -- "$current"))
    return 0
}}
complete -F _authority authority
"""


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
        print("complete -c authority -f")
        for name, text in COMMANDS.items():
            quoted = text.replace("'", "\\'")
            print(f"complete -c authority -n __fish_use_subcommand -a {name} -d '{quoted}'")
        for name, words in WORDS.items():
            print(f"complete -c authority -n '__fish_seen_subcommand_from {name}' -a '{words}' -F")
        return 0
    cases = "\n".join(f'            {n}) words="{w}" ;;' for n, w in WORDS.items())
    script = _BASH.format(commands=" ".join(COMMANDS), cases=cases)
    if shell == "zsh":
        script = "autoload -U +X bashcompinit && bashcompinit\n" + script
    print(script, end="")
    return 0
