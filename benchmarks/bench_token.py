"""A capability checked from its bytes, beside a JWT and a pymacaroons macaroon.

Each does in one turn what a server does with what it was handed: read the bytes, check the MAC,
check what it allows (resource, method, time), look up revocation. Ours carries two attenuations (so
three links); the macaroon has three caveats; the JWT has its three claims checked. Nothing that was
verified is remembered. Turns are interleaved; of each the least counts, since noise only adds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from authority.kernel.capabilities import (
    MacKey,
    Restriction,
    attenuate,
    mint,
    parse,
    scope,
    verify,
)
from authority.kernel.labels import CLEAN
from authority.kernel.resources import parse as resource_of

TARGET = 4.0
NOW = 1_800_000_000_000_000
LATER = NOW + 3_600_000_000


def ours() -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Checking one token; checking tokens whose restrictions were never seen; attenuating."""
    key = MacKey("k1", os.urandom(32))

    def make() -> bytes:
        token = mint(
            key,
            id=os.urandom(16).hex(),
            run="run-1",
            restriction=Restriction(resources=("fs:/data/**",), methods=("fs.*",), expires=LATER),
        )
        token = attenuate(token, Restriction(resources=("fs:/data/in/**",)), nonce=os.urandom(16))
        return attenuate(
            token, Restriction(methods=("fs.read",), expires=LATER - 1), nonce=os.urandom(16)
        )

    resource = resource_of("fs.read", "fs:/data/in/a.txt")
    revoked = {os.urandom(16).hex() for _ in range(1000)}

    def check(raw: bytes) -> None:
        token = parse(raw)
        refused = not verify(token, key) or not revoked.isdisjoint(token.ids)
        refused = refused or (
            scope(
                token,
                effect="fs.read",
                resource=resource,
                run="run-1",
                now=NOW,
                numbers={},
                label=CLEAN,
            )
            is not None
        )
        if refused:
            raise AssertionError("the token must be good")

    token = make()
    fresh = iter([make() for _ in range(6000)])
    narrower = Restriction(methods=("fs.read",), expires=LATER - 2)
    nonce = os.urandom(16)
    return (
        lambda: check(token),
        lambda: check(next(fresh)),
        lambda: _used(attenuate(token, narrower, nonce=nonce)),
    )


def _used(_value: object) -> None:
    """So that a lambda can give back nothing."""


def pyjwt() -> Callable[[], None]:
    import jwt

    key = os.urandom(32)
    claims = {"sub": "run-1", "jti": "id", "path": "/data/in/", "method": "read"}
    token = jwt.encode({**claims, "exp": int(time.time()) + 3600}, key, algorithm="HS256")
    revoked = {os.urandom(16).hex() for _ in range(1000)}

    def check() -> None:
        found = jwt.decode(token, key, algorithms=["HS256"])
        good = "/data/in/a.txt".startswith(found["path"]) and found["method"] == "read"
        if not good or found["jti"] in revoked:
            raise AssertionError("the token must be good")

    return check


def pymacaroons() -> Callable[[], None]:
    from pymacaroons import Macaroon, Verifier

    key = os.urandom(32).hex()
    made = Macaroon(location="", identifier="id", key=key)
    for caveat in ("path = /data/in/", "method = read", f"before = {LATER}"):
        made.add_first_party_caveat(caveat)
    text = made.serialize()
    revoked = {os.urandom(16).hex() for _ in range(1000)}

    def allowed(caveat: str) -> bool:
        name, _, value = caveat.partition(" = ")
        if name == "path":
            return "/data/in/a.txt".startswith(value)
        if name == "before":
            return int(value) > NOW
        return name == "method" and value == "read"

    def check() -> None:
        macaroon = Macaroon.deserialize(text)
        verifier = Verifier()
        verifier.satisfy_general(allowed)
        if not verifier.verify(macaroon, key) or macaroon.identifier in revoked:
            raise AssertionError("the token must be good")

    return check


def timed(call: Callable[[], None], times: int) -> float:
    """Microseconds a call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def run(quick: bool) -> list[dict[str, Any]]:
    """Ratios to the peers (at least 4), and the figures behind them."""
    rounds, times = (60, 25) if quick else (200, 25)
    check, cold, narrow = ours()
    calls = {"ours": check, "cold": cold, "attenuate": narrow}
    rows = []
    for name, make in (("PyJWT HS256", pyjwt), ("pymacaroons", pymacaroons)):
        try:
            calls[name] = make()
        except ModuleNotFoundError as error:
            rows.append(_row(f"verify, times faster than {name}", None, "x", detail=str(error)))
    times_of: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times_of[name].append(timed(call, times))
    least = {name: min(found) for name, found in times_of.items()}
    for name in calls:
        if name in {"ours", "cold", "attenuate"}:
            continue
        ratio = least[name] / least["ours"]
        detail = f"{least['ours']:.1f} us beside {least[name]:.1f} us"
        rows.append(_row(f"verify, times faster than {name}", ratio, "x", TARGET, detail))
    rows.append(_row("verify, two attenuations, scope, revocation", least["ours"], "us"))
    rows.append(
        _row(
            "the same, restrictions seen for the first time",
            least["cold"],
            "us",
            detail="decoded and compiled, then remembered by their bytes; MACs are never remembered",
        )
    )
    rows.append(_row("attenuate", least["attenuate"], "us"))
    return rows


def _row(
    name: str, value: float | None, unit: str, least: float | None = None, detail: str = ""
) -> dict[str, Any]:
    return {
        "name": name,
        "value": None if value is None else round(value, 2),
        "unit": unit,
        "target": "" if least is None else f">= {least:g}",
        "ok": None if least is None or value is None else value >= least,
        "detail": detail,
    }
