"""The small setting that is searched: two runs, three capabilities and a few requests.

`p` is a run and `c` its child. `A` is minted for p, `B` for c, and `C` is A attenuated to one file
until the clock's second tick; `D` is minted for p later, `F` is A with a forged MAC. A generation is
one start of the gate: after a restart there are new runs of the same names, with new capabilities,
and the old ones can still be presented.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from authority.kernel import capabilities, resources
from authority.kernel.capabilities import MacKey, Token
from authority.kernel.facts import Request, request_digest
from authority.kernel.policy import Policy, load
from authority.kernel.policy_sections import Source
from authority.kernel.requests import EFFECTS, Connect, FsWrite
from authority.tokens import Restriction

TICK: Final = 1_000_000
START: Final = 1_700_000_000 * TICK
EXPIRES: Final = START + 2 * TICK
"""When C expires."""
LIMIT: Final = 3
LIMITED: Final = ("file_bytes", "network_bytes")
KEYS: Final = {kid: MacKey(kid, kid.encode() * 16) for kid in ("k1", "k2")}
SHARE: Final = {"p": {"file_bytes": LIMIT, "network_bytes": LIMIT}, "c": {"file_bytes": 2}}
_POLICY: Final = """
version = 1
[filesystem]
write = ["/w/**"]
[network]
allow = ["h.example:22"]
"""


class Ask(NamedTuple):
    """One request that may be made: who, with which capability of which generation, for what."""

    run: str
    cap: str
    effect: str
    raw: str
    size: int = 1

    @property
    def name(self) -> str:
        return f"{self.run} with {self.cap}: {self.effect} {self.raw} ({self.size})"


ASKS: Final = (
    Ask("p", "A", "fs.write", "/w/a"),
    Ask("p", "C", "fs.write", "/w/a"),
    Ask("p", "C", "fs.write", "/w/b"),
    Ask("c", "B", "fs.write", "/w/a", 2),
    Ask("c", "A", "fs.write", "/w/a"),
    Ask("p", "B", "fs.write", "/w/a"),
    Ask("p", "D", "fs.write", "/w/a"),
    Ask("p", "F", "fs.write", "/w/a"),
    Ask("p", "A", "net.connect", "h.example:22"),
)
PIECE: Final = 2
"""What each piece of a tunnel is charged."""
ORIGIN: Final = {"A": "p", "B": "c", "C": "p", "D": "p", "F": "p"}
"""The run that each capability is bound to."""


@cache
def policy() -> Policy:
    """The one policy of all worlds."""

    def read_parent(_base: str, name: str) -> Source:
        raise AssertionError(name)

    return load(_POLICY, format="toml", base="/", name="small.toml", read_parent=read_parent)


def _identity(letter: str, generation: int) -> str:
    return f"{ord(letter):02x}{generation:02x}".ljust(32, "0")


@cache
def raw_token(letter: str, generation: int) -> bytes:
    """A capability as bytes; keys rotate between generations only in what they are called."""
    if letter == "C":
        narrow = Restriction(resources=("fs:/w/a",), expires=EXPIRES)
        return capabilities.attenuate(raw_token("A", generation), narrow, nonce=b"n" * 16)
    if letter == "F":
        true = raw_token("A", generation)
        return true[:-1] + bytes((true[-1] ^ 1,))
    return capabilities.mint(
        KEYS["k1"],
        id=_identity(letter, generation),
        run=ORIGIN[letter],
        restriction=Restriction(),
    )


@cache
def token(letter: str, generation: int) -> tuple[Token, bool]:
    """The token as read, and whether its MAC holds: both by the real code."""
    read = capabilities.parse(raw_token(letter, generation))
    return read, capabilities.verify(read, KEYS.get(read.kid))


@cache
def request(ask: Ask, generation: int) -> Request:
    """What the gate's reader would hand to the kernel."""
    resource = resources.parse(ask.effect, ask.raw)
    arguments = FsWrite(b"x" * ask.size) if ask.effect == "fs.write" else Connect()
    assert type(arguments) is EFFECTS[ask.effect].arguments
    return Request(
        run=ask.run,
        stream=1,
        n=1,
        effect=ask.effect,
        shown=resource.text,
        digest=request_digest(ask.effect, resource.text, "", ask.name.encode()),
        resource=resource,
        arguments=arguments,
        token=token(ask.cap, generation)[0],
    )
