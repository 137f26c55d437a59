"""The demo: two programs meet a letter with orders in it, under Authority.

`make demo`, or `python examples/demo/run.py [--act N] [--isolation vm [--emulate]] [--keep]`. The
first act's program speaks to the gate and obeys by itself; the second's knows nothing of Authority and
asks a model (the built-in obedient one, or `DEMO_MODEL`: see second_act.py).

Exit code 0 only if every expectation held; each that did not is printed. 125 if Authority itself
could not start.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import first_act
import second_act
from rich.markup import escape
from stage import Authority, Expectations, screen, step

ACTS = {1: first_act.play, 2: second_act.play}


def demo(place: Path, authority: Authority, acts: list[int]) -> int:
    expect = Expectations()
    made = authority("init", "--no-policy", cwd=place)
    if made.returncode:
        screen.print(escape(made.stdout + made.stderr))
        return 125
    for act in acts:
        if not ACTS[act](place, authority, expect):
            return 125
    step("Result")
    if expect.failed:
        for what in expect.failed:
            screen.print(f"[bold red]not as expected:[/] {escape(what)}")
        return 1
    screen.print(
        "[bold green]Everything was as expected.[/] The reports got written; nothing else."
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the folder there to look at")
    parser.add_argument("--act", type=int, choices=sorted(ACTS), help="this one alone")
    parser.add_argument(
        "--isolation", choices=["auto", "namespace", "vm"], help="where the programs live"
    )
    parser.add_argument(
        "--emulate", action="store_true", help="with --isolation vm: without KVM, slowly"
    )
    wanted = parser.parse_args()
    if wanted.emulate and wanted.isolation != "vm":
        parser.error("--emulate belongs to --isolation vm (EMULATE=1 to ISOLATION=vm)")
    second_act.model()  # a setting that can't work is said now, not after the first act
    place = Path(tempfile.mkdtemp(prefix="authority-demo-"))
    # The sandbox gives up root, so its user must be able to reach the program and the tool.
    place.chmod(0o755)
    isolation = ["--isolation", wanted.isolation] if wanted.isolation else []
    authority = Authority(place / "state", isolation + ["--emulate"] * wanted.emulate)
    try:
        return demo(place, authority, [wanted.act] if wanted.act else sorted(ACTS))
    finally:
        authority("gate", "stop", "--force", cwd=place)
        if wanted.keep:
            screen.print(f"kept: {place}  (AUTHORITY_STATE={place / 'state'})")
        else:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
