"""What a suggestion must not offer, or only with a warning: secrets, and files that act later.

Pure. Rules
- Secrets are known by the names that tools give them, in any folder and any case. It is a list: a
  secret by another name is not seen, so suggestions are for reading, not for taking over blindly.
- Files that act later are those that a trusted tool executes or obeys afterwards (hooks, start files,
  build definitions, an editor's or agent's configuration).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from authority.kernel.policy_persist import persistent
from authority.kernel.resource_files import file_segments

if TYPE_CHECKING:
    from authority.kernel.policy import Policy
    from authority.kernel.suggest import Wish

_FOLDERS: Final = frozenset(
    {
        ".ssh",
        ".gnupg",
        ".aws",
        ".azure",
        ".kube",
        ".docker",
        ".password-store",
        "keyrings",
        "secrets",
    }
    | {".secrets", "gcloud", ".vault-token", ".terraform.d"}
)
_FILES: Final = frozenset(
    {".env", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".git-credentials", ".npmrc", ".pypirc"}
    | {".htpasswd", "shadow", "gshadow", "master.key", "credentials", "credentials.json", "token"}
    | {"secrets.yml", "secrets.yaml", "secrets.json", "secrets.toml", "service-account.json"}
    | {"wallet.dat", "login data", "cookies", "cookies.sqlite", "logins.json", "key4.db"}
    | {".credentials.json", "auth.json", "hosts.yml", ".boto", ".s3cfg", ".dockercfg"}
)
_BEGINNINGS: Final = ("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".env.")
_ENDINGS: Final = (
    *(".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".ppk", ".asc", ".gpg"),
    *(".env", ".age", ".ovpn", ".tfvars", ".tfstate"),
)
_EXAMPLES: Final = (".example", ".sample", ".template", ".dist")


def looks_secret(segments: tuple[str, ...]) -> bool:
    """Whether a path's names say that it holds a secret."""
    names = [name.lower() for name in segments]
    if any(name in _FOLDERS for name in names):
        return True
    last = names[-1] if names else ""
    if last.endswith(_EXAMPLES):
        return False
    return (
        last in _FILES
        or last.startswith(_BEGINNINGS)
        or (last.endswith(_ENDINGS) and not last.endswith(".pub"))
    )


def acts_later(effect: str, segments: tuple[str, ...]) -> str:
    """What a file is that a trusted tool later executes or obeys, when this effect changes it."""
    from authority.kernel.policy_files import WRITES

    found = persistent(effect, segments) if effect in WRITES else None
    return found.what if found is not None else ""


def warnings_of(
    policy: Policy, place: tuple[str, str], rule: str, wishes: Sequence[Wish]
) -> Iterator[str]:
    """What a person should think of before taking the rule over."""
    if place[0] == "filesystem":
        yield from _file_warnings(policy, place[1], rule, wishes)
    elif place == ("network", "allow"):
        yield "what goes through this tunnel is neither judged nor recorded"
        host, _, port = rule.rpartition(":")
        if port == "443":
            yield f"where it is HTTPS, narrower in http, and judged: GET https://{host}/PATH"
    elif place == ("network", "http"):
        verb, _, url = rule.partition(" ")
        if verb not in ("GET", "HEAD"):
            yield f"{verb} can carry data out of the run"
        if url.startswith("http:"):
            yield "not encrypted: whoever is on the way reads and changes it"
        if "?" in url:
            yield "the query belongs to the rule: does it hold a secret?"
        if all(wish.effect == "net.resolve" for wish in wishes):
            yield "only the name was asked for; with this rule it exists, and what is wanted shows next"


def _file_warnings(policy: Policy, key: str, rule: str, wishes: Sequence[Wish]) -> Iterator[str]:
    if key == "write":
        for wish in wishes:
            for text in filter(None, (wish.resource, wish.target)):
                if what := acts_later(wish.effect, file_segments(text, None)):
                    yield f"!!! DANGER !!! this is {what}: what stands there is executed or obeyed"
                    yield "!!! DANGER !!! later, by a trusted tool, outside of any run"
                    return
    if any(wish.folder for wish in wishes):
        yield "a folder: with this it may be entered and listed, and what is wanted in it shows next"
    base = file_segments(policy.layers[0].base, None)
    if any(file_segments(wish.resource, None)[: len(base)] != base for wish in wishes):
        yield "outside the policy's folder"
