"""`authority completion SHELL`: a script for bash, zsh or fish that completes commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from authority.cli.main import COMMANDS

_WORDS = {
    "audit": "verify show tail query prove export",
    "token": "mint attenuate inspect revoke",
    "key": "rotate",
    "approvals": "list approve deny",
    "gate": "status start stop clock",
    "completion": "bash zsh fish",
    "run": "--policy --state --json --isolation --accept-policy --quiet --tty --no-tty --suggest "
    "--exact --write --",
    "attach": "--policy --state --json --accept-policy",
    "suggest": "--exact --write --state --json",
    "init": "--for --policy --no-policy --state --json",
    "check": "--policy --verb --json",
    "matrix": "--json --against --state",
    "halt": "--reason --state --json",
    "resume": "--reason --state --json",
}

_BASH = """\
_authority() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
        case ${{COMP_WORDS[1]}} in
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
    made = argparse.ArgumentParser(prog="authority completion", description=__doc__)
    made.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = made.parse_args(arguments).shell
    if shell == "fish":
        print("complete -c authority -f")
        for name, text in COMMANDS.items():
            quoted = text.replace("'", "\\'")
            print(f"complete -c authority -n __fish_use_subcommand -a {name} -d '{quoted}'")
        for name, words in _WORDS.items():
            print(f"complete -c authority -n '__fish_seen_subcommand_from {name}' -a '{words}' -F")
        return 0
    cases = "\n".join(f'            {n}) words="{w}" ;;' for n, w in _WORDS.items())
    script = _BASH.format(commands=" ".join(COMMANDS), cases=cases)
    if shell == "zsh":
        script = "autoload -U +X bashcompinit && bashcompinit\n" + script
    print(script, end="")
    return 0
