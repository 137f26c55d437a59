"""Hosts and addresses: one spelling for each, and which addresses are not public.

Pure. Rules
- A host is an IPv4 address, an IPv6 address in brackets, or a DNS name. Nothing else.
- IPv4 is four decimal numbers without leading zeros. Every other spelling that some resolver takes
  for an address (`2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`) is refused, not translated: whoever
  means an address can write it. The test is the WHATWG one: a last label that is a number.
- IPv6 is written in the compressed lower-case form of RFC 5952. Zone ids are refused, and so are
  the IPv4-mapped and -compatible forms: they name an IPv4 address that has a spelling already.
- A DNS name is lower case, without the one trailing dot it may have, at most 253 characters in
  labels of 1 to 63. ASCII labels hold letters, digits, `-` (not at the ends) and `_` (real hosts
  have it). Other names go through IDNA 2008 with UTS 46 mapping and are kept in their `xn--` form,
  so a look-alike never equals what it looks like. An `xn--` label must be what IDNA would write.
- Percent signs, control characters, blanks and invisible format characters are refused.

`judge_address` follows the IANA special-purpose address registries (RFC 6890 and its updates),
written out here so that the verdict does not change with the version of Python.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from authority.errors import AuthorityError
from authority.kernel.canonical import printable

MAX_HOST = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_PLAIN_IPV4 = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


class ResourceError(AuthorityError):
    """The text does not name a resource in a way that has exactly one meaning."""


def shown(text: str | bytes, limit: int = 120) -> str:
    """Foreign text for a message: made printable, and cut after `limit` characters."""
    return printable(text[: limit + 1], limit)


def canonical_host(raw: str) -> str:
    """The one spelling of a host; IPv6 without its brackets. Raises `ResourceError`."""
    if raw.startswith("["):
        return _ipv6(raw)
    if not raw:
        raise ResourceError("the host is empty", "write a host name or an address")
    if len(raw) > 4 * MAX_HOST:
        raise ResourceError("the host is longer than a host can be")
    host = raw.lower() if raw.isascii() else _mapped(raw)
    if host.endswith("."):
        host = host[:-1]
    if not host or len(host) > MAX_HOST:
        raise ResourceError(
            f"the host {shown(raw)!r} is empty or longer than {MAX_HOST} characters"
        )
    labels = host.split(".")
    if _NUMBER.match(labels[-1]):
        return _ipv4(host, raw)
    for label in labels:
        if not _LABEL.match(label):
            raise ResourceError(
                f"the host {shown(raw)!r} has a label that no host name has: {shown(label)!r}",
                "use letters, digits and hyphens between single dots",
            )
        if label.startswith("xn--"):
            _check_punycode(label)
    return host


def canonical_port(raw: str) -> int:
    """A port from 1 to 65535 in plain decimal. Raises `ResourceError`."""
    if not _PORT.match(raw) or int(raw) > 65535:
        raise ResourceError(f"{shown(raw)!r} is not a port", "write a number from 1 to 65535")
    return int(raw)


def split_host_port(raw: str) -> tuple[str, int | None]:
    """`host`, `host:port`, `[v6]` or `[v6]:port`, made canonical. Raises `ResourceError`."""
    if raw.startswith("["):
        head, bracket, tail = raw.partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ResourceError(f"{shown(raw)!r} is not an address in brackets")
        host = canonical_host(head + "]")
        return host, canonical_port(tail[1:]) if tail else None
    head, colon, tail = raw.partition(":")
    if ":" in tail:
        raise ResourceError(
            f"{shown(raw)!r} has too many colons", "write an IPv6 address in brackets"
        )
    return canonical_host(head), canonical_port(tail) if colon else None


def host_text(host: str) -> str:
    """A canonical host as it stands in a URL: IPv6 gets its brackets back."""
    return f"[{host}]" if ":" in host else host


def is_address(host: str) -> bool:
    """Whether a canonical host is an address and not a name."""
    return ":" in host or bool(_PLAIN_IPV4.match(host))


def _ipv4(host: str, raw: str) -> str:
    if not _PLAIN_IPV4.match(host) or any(int(part) > 255 for part in host.split(".")):
        raise ResourceError(
            f"the host {shown(raw)!r} is a number but not a plain address",
            "write an IPv4 address as four decimal numbers from 0 to 255",
        )
    return host


def _ipv6(raw: str) -> str:
    if not raw.endswith("]") or not raw.isascii():
        raise ResourceError(f"the host {shown(raw)!r} is not an IPv6 address in brackets")
    if "%" in raw:
        raise ResourceError(
            f"the address {shown(raw)!r} has a zone id", "zone ids name a link of this machine"
        )
    try:
        address = ipaddress.IPv6Address(raw[1:-1])
    except ValueError:
        raise ResourceError(f"the host {shown(raw)!r} is not an IPv6 address") from None
    value = int(address)
    if value >> 32 in (0, 0xFFFF) and value > 1:
        raise ResourceError(
            f"the address {shown(raw)!r} is an IPv4 address in IPv6 form",
            f"write {ipaddress.IPv4Address(value & 0xFFFFFFFF)}",
        )
    # Hexadecimal groups only: Python 3.13 writes some addresses with a dotted tail.
    return address.compressed if "." not in address.compressed else _groups(value)


def _groups(value: int) -> str:
    return ":".join(f"{value >> shift & 0xFFFF:x}" for shift in range(112, -16, -16))


def _mapped(raw: str) -> str:
    for char in raw:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"):
            raise ResourceError(f"the host {shown(raw)!r} holds an invisible or control character")
    import idna  # large tables, wanted by few requests

    try:
        return idna.encode(raw, uts46=True, std3_rules=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        raise ResourceError(f"the host {shown(raw)!r} is not a valid international name") from None


def _check_punycode(label: str) -> None:
    import idna

    try:
        again = idna.encode(idna.decode(label)).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        again = ""
    if again != label:
        raise ResourceError(f"the label {shown(label)!r} is not valid punycode")


_V4_RANGES = tuple(
    (ipaddress.IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "reserved (this network)"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "private (shared address space)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "metadata"),
        ("169.254.169.254/32", "metadata"),
        ("169.254.170.2/32", "metadata"),
        ("169.254.170.23/32", "metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.192/32", "metadata"),
        ("192.0.0.0/24", "reserved (protocol assignments)"),
        ("192.0.2.0/24", "reserved (documentation)"),
        ("192.88.99.0/24", "reserved (6to4 relay)"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved (benchmarking)"),
        ("198.51.100.0/24", "reserved (documentation)"),
        ("203.0.113.0/24", "reserved (documentation)"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "reserved (broadcast)"),
        ("240.0.0.0/4", "reserved"),
    )
)
_V6_RANGES = tuple(
    (ipaddress.IPv6Network(network), why)
    for network, why in (
        ("::/128", "reserved (unspecified)"),
        ("::1/128", "loopback"),
        ("fd00:ec2::254/128", "metadata"),
        ("fd00:ec2::23/128", "metadata"),
        ("fd20:ce::254/128", "metadata"),
        ("64:ff9b:1::/48", "private (local NAT64)"),
        ("100::/64", "reserved (discard)"),
        ("100:0:0:1::/64", "reserved (dummy)"),
        ("2001:db8::/32", "reserved (documentation)"),
        ("3fff::/20", "reserved (documentation)"),
        ("2001::/23", "reserved (protocol assignments)"),
        ("5f00::/16", "reserved (segment routing)"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private (site-local)"),
        ("ff00::/8", "multicast"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def judge_address(ip: str) -> str | None:
    """Why the address is not a public one, or None.

    `loopback`, `private …`, `link-local`, `metadata` (of a cloud), `multicast`, `reserved …`,
    `embedded …` (an IPv6 address that carries an IPv4 one that is not public, or through a
    deprecated tunnel), `not an address …` for anything that is none.
    NAT64 (RFC 6052, `64:ff9b::/96`) around a public IPv4 address counts as public.
    """
    if "%" in ip:
        return "not an address (zone id)"
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "not an address"
    if isinstance(address, ipaddress.IPv4Address):
        return next((why for network, why in _V4_RANGES if address in network), None)
    return _judge_v6(address)


def _judge_v6(address: ipaddress.IPv6Address) -> str | None:
    value = int(address)
    if value > 1 and value >> 32 in (0, 0xFFFF):
        inner = judge_address(str(ipaddress.IPv4Address(value & 0xFFFFFFFF)))
        # A mapped address is dialled as IPv4 by the kernel; the compatible form is long dead.
        if value >> 32 == 0:
            return f"embedded (IPv4-compatible) {inner or 'address'}"
        return f"embedded (IPv4-mapped) {inner}" if inner else None
    if address in _NAT64:
        inner = judge_address(str(ipaddress.IPv4Address(value & 0xFFFFFFFF)))
        return f"embedded (NAT64) {inner}" if inner else None
    if address in _SIX_TO_FOUR:
        inner = judge_address(str(ipaddress.IPv4Address(value >> 80 & 0xFFFFFFFF)))
        return f"embedded (6to4) {inner or 'address'}"
    if address in _TEREDO:
        # RFC 4380: the client's address is stored inverted.
        inner = judge_address(str(ipaddress.IPv4Address(~value & 0xFFFFFFFF)))
        return f"embedded (Teredo) {inner or 'address'}"
    for network, why in _V6_RANGES:
        if address in network:
            return why
    return None if address in _GLOBAL_UNICAST else "reserved (outside global unicast)"
