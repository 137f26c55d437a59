"""What a run finds on its own loopback, and what answers there.

Rules
- Which endpoints a run has follows from its policy alone: without a section that needs one there is no
  loopback and nothing to reach. A run that is watched, to suggest a policy for it, has those of the
  network always: what it asks for there is refused, and known.
- The ports are fixed: the run's network is its own, so nobody else can be there first.
- What is made for a run (its certificate authority, its placeholders) lives here, in the gate's memory,
  and is gone with it. The program gets it as variables and small files.
- What answers is loaded when the first run needs it: a gate that was started for a run which reaches no
  host and mediates no calls does not wait for the code that would.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import TYPE_CHECKING

from authority.compat import environment, trust
from authority.compat.base import Door, Folder, Places, Service
from authority.compat.credentials import Keyring
from authority.compat.models import ModelService
from authority.compat.models import environment as model_environment
from authority.compat.mount import Mounts
from authority.effects.tree import Files
from authority.kernel.policy import Policy
from authority.protocol import Service as Kind

if TYPE_CHECKING:
    from authority.compat.ca import RunCA
    from authority.compat.calls import Calls

PROXY_PORT = 48101
MODEL_PORT = 48102
MCP_PORT = 48103
NAMES_PORT = 53

Listener = tuple[int, bool, int]
"""(service, datagrams, port)"""


class Endpoints:
    """One run's: `listeners` on its loopback, variables and files that lead its program there.

    `secrets` are the run's credentials by name, `random` ends their placeholders. `environment`
    wins over what the policy sets. `answers_mounts` says whether a service for mounts is among
    them; the gate sets `places` to what was mounted before it asks for the services.
    """

    answers_mounts = True

    def __init__(
        self,
        policy: Policy,
        secrets: Mapping[str, str],
        mcp: Callable[[Door], Service] | None = None,
        *,
        watch: bool = False,
        random: Callable[[], str] = lambda: token_hex(16),
    ) -> None:
        self.secrets = secrets
        self._mcp = mcp
        self.listeners: list[Listener] = []
        self.environment: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.places = Places()
        self.keyring = Keyring(policy, secrets, random)
        self.ca: RunCA | None = None
        self.anchors = b""
        """Certificates, as PEM, by which servers outside are verified."""
        self.bundle = b""
        """What programs of the run trust: these and the run's own; empty without an authority."""
        self.mounts: Mounts | None = None
        self.by_call = False
        """Whether files are mediated call by call: then `mediation` answers, and no mount is served."""
        self.open_files: Callable[[Folder], Files] | None = None
        """Where mounts keep their changes, when not in their folders (a dry run)."""
        if policy.needs_network or watch:
            self._listen(Kind.PROXY, PROXY_PORT)
            self._listen(Kind.NAMES, NAMES_PORT, datagrams=True)
            self._lead(policy)
        if policy.models.allow:
            self._listen(Kind.MODEL, MODEL_PORT)
            self.environment |= model_environment(policy, MODEL_PORT)
        self.environment |= self.keyring.environment
        if mcp is not None:
            self._listen(Kind.MCP, MCP_PORT)
            self.environment["AUTHORITY_MCP_URL"] = f"http://127.0.0.1:{MCP_PORT}/mcp"

    def _listen(self, service: Kind, port: int, *, datagrams: bool = False) -> None:
        self.listeners.append((int(service), datagrams, port))

    def _lead(self, policy: Policy) -> None:
        """Variables and files that lead a program to the proxy and the resolver, and let it trust
        what the proxy says."""
        self.anchors = trust.system_bundle() + trust.extra_certificates(policy.network.ca)
        if hosts := policy.reach.judged_hosts():
            from authority.compat.ca import RunCA

            now = datetime.datetime.now(datetime.UTC)
            self.ca = RunCA(hosts, now=now, lifetime_us=policy.budgets["wall_time"])
            self.bundle = self.ca.bundle(self.anchors)
        self.environment |= environment.variables(
            proxy_port=PROXY_PORT,
            trust=self.ca is not None,
            own=policy.process.env,
        )
        self.files |= environment.files(self.bundle)

    def services(self, door: Door) -> Mapping[int, Service]:
        """What answers, by kind of raw stream; each asks at the run's door."""
        found: dict[int, Service] = {}
        if any(service == Kind.NAMES for service, _, _ in self.listeners):
            from authority.compat.names import Names
            from authority.compat.proxy import Proxy
            from authority.compat.proxy_desk import Desk

            names = Names(door)
            proxy = Proxy(door, Desk(door, self.keyring, self.ca, self.anchors), names)
            found |= {int(Kind.NAMES): names, int(Kind.PROXY): proxy, int(Kind.DIRECT): proxy}
        if self.listeners:
            found[int(Kind.MODEL)] = ModelService(door, self.secrets)
        if self._mcp is not None:
            found[int(Kind.MCP)] = self._mcp(door)
        if self.places.folders and not self.by_call:
            self.mounts = Mounts(door, self.places, self.open_files)
            found[int(Kind.MOUNT)] = self.mounts
        return found

    def mediation(self, door: Door, end: Callable[[str], None]) -> Calls | None:
        """What answers the calls about files of a run without mounts; `end` ends the run."""
        if not (self.by_call and self.places.folders):
            return None
        from authority.compat.calls import Calls

        return Calls(door, self.places, end)
