"""Variables and small files that lead a program to its run's own endpoints.

Pure. They are a help and no boundary: a program that ignores all of them meets the same judgement
behind the resolver's addresses, or no route at all. Rules
- A variable that the policy sets in `process.env` is the person's, and stays as it is. One that
  `process.pass_env` passes from the caller gives way to ours: a proxy or a bundle of the host is
  not there in the run.
- The placeholder of a credential always stands under its variable's name. A policy that sets the
  same variable is refused when it is loaded.
- All proxy variables name the HTTP form. The same port speaks SOCKS 5 (`socks5h://`), but a program
  without a SOCKS library stops at the mere sight of such a variable.
- Every bundle holds the system's certificates too: tunnels to other hosts end at those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BUNDLE: Final = "/run/authority/ca.pem"

TRUST: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
    "CARGO_HTTP_CAINFO",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "PERL_LWP_SSL_CA_FILE",
    "BUNDLE_SSL_CA_CERT",
    "YARN_HTTPS_CA_FILE_PATH",
    "CONDA_SSL_VERIFY",
    "NIX_SSL_CERT_FILE",
)
"""Each names a file of certificates for some family of clients; `docs/network.md` says which."""

PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NOT_PROXIED: Final = "localhost,127.0.0.1"

_RESOLVER: Final = b"nameserver 127.0.0.1\noptions timeout:10 attempts:1\n"
_SWITCH: Final = b"passwd: files\ngroup: files\nhosts: files dns\n"


def variables(*, proxy_port: int, trust: bool, own: Mapping[str, str]) -> dict[str, str]:
    """What is set beside the policy's `own` variables, and over those that the caller passes.

    `trust`: the run has an authority of its own.
    """
    proxy = f"http://127.0.0.1:{proxy_port}"
    ours = {"NO_PROXY": NOT_PROXIED, "no_proxy": NOT_PROXIED, "NODE_USE_ENV_PROXY": "1"}
    for name in PROXIES:
        ours[name] = ours[name.lower()] = proxy
    if trust:
        ours |= dict.fromkeys(TRUST, BUNDLE)
    return {name: value for name, value in ours.items() if name not in own}


def files(bundle: bytes) -> dict[str, bytes]:
    """Small files of the run by path. `bundle` is empty for a run without an authority."""
    found = {"/etc/resolv.conf": _RESOLVER, "/etc/nsswitch.conf": _SWITCH}
    if bundle:
        found[BUNDLE] = bundle
    return found
