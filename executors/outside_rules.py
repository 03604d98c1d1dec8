"""Which hosts may be asked, and at which addresses: DISPATCHER_HTTP_HOSTS, read anew for each request.

A name is allowed by name, and what it leads to by address: a name on the list could be pointed at anything by whoever
holds its DNS. So only public addresses count, unless the administrator has written an address or `internal:`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from dispatcher import Fail

from .lists import read_list

SETTING = "DISPATCHER_HTTP_HOSTS"
EXAMPLE = "api.example.com,*.example.org,http://10.1.2.3:8080,internal:http://svc.local:8080"

Address = IPv4Address | IPv6Address

_PORTS = {"https": 443, "http": 80}
_ENTRY = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]+)(?::([0-9]{1,5}))?/?", re.ASCII)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # in front of an IPv4 address, where a network has no IPv4 of its own
# Public by Python 3.11's list, and yet nobody's host: protocol assignments and relays, tunnels, documentation.
_NOBODY = [ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")]
# Where clouds hand out the host's own credentials: AWS, Alibaba, Azure. That of most, 169.254.169.254, is link-local.
_CLOUDS = [ip_network(text) for text in ("fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32")]


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's hosts."""
    plain = _unwrapped(address)
    if isinstance(plain, IPv6Address) and plain not in _GLOBAL_UNICAST:
        return False
    return plain.is_global and not (plain.is_multicast or plain.is_reserved or _is_special(plain))


def is_inside(address: Address) -> bool:
    """Whether an address may be one of the administrator's own hosts: private or loopback.

    Not link-local, nor what else is there to hand out the host's own credentials.
    """
    plain = _unwrapped(address)
    shared = plain.version == 4 and plain in ip_network("100.64.0.0/10")
    loopback = plain.is_loopback
    other = plain.is_link_local or plain.is_multicast or plain.is_unspecified or _is_special(plain)
    other = other or (plain.is_reserved and not loopback)
    return not other and (shared or loopback or (plain.is_private and str(plain) != "255.255.255.255"))


def _is_special(address: Address) -> bool:
    return any(address in network for network in (*_NOBODY, *_CLOUDS) if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked, taken apart once: what is checked is what is connected to."""

    url: str
    scheme: str
    host: str
    """As it stands in the Host header and in certificates; IPv6 without brackets."""
    port: int
    path: str
    """With the query."""
    address: Address | None
    """Where the administrator has written one."""
    internal: bool

    @property
    def origin(self) -> tuple[str, str, int]:
        """Who is asked."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def permits(self, address: Address) -> bool:
        """Whether a connection may go to what the name has led to."""
        if self.address is not None:
            return _mapped(address) == self.address
        return is_public(address) or (self.internal and is_inside(address))


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the list."""

    scheme: str
    host: str
    port: int
    address: Address | None
    internal: bool

    def matches(self, scheme: str, host: str, port: int, address: Address | None) -> bool:
        """Whether it is about this host. An address is matched by an address alone, never by a name or a star."""
        if (scheme, port) != (self.scheme, self.port):
            return False
        if address is not None or self.address is not None:
            return address == self.address
        return host == self.host or (self.host[0] == "*" and host.endswith(self.host[1:]) and host != self.host[1:])


def read_rules(setting: str = SETTING) -> list[Rule]:
    """The entries of a setting; raises Fail with what to do for one that cannot be read."""
    return [_rule(entry, setting) for entry in read_list(setting, EXAMPLE)]


def allow(url: str) -> Target:
    """The URL taken apart, if DISPATCHER_HTTP_HOSTS allows it; else Fail with what to do."""
    try:
        import httpx  # noqa: F401, PLC0415 - optional
    except ImportError as exc:
        raise Fail("a request to another host needs httpx: install pg-dispatcher[http]") from exc
    rules = read_rules()
    if not rules:
        raise Fail(f"requests to other hosts are off: set {SETTING} for the daemon, for example to {EXAMPLE}")
    target = parse(url)
    found = [rule for rule in rules if rule.matches(*target.origin, target.address)]
    if not found:
        raise Fail(f"{target.scheme}://{target.authority} may not be asked: {SETTING} has no entry for it")
    internal = any(rule.internal for rule in found)
    return Target(target.url, *target.origin, target.path, target.address, internal)


def parse(url: str) -> Target:
    """A URL taken apart, allowed or not; raises Fail for what is none, and for a password in it."""
    import httpx  # noqa: PLC0415 - optional

    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, UnicodeError, TypeError):
        raise Fail(f"{_shown(url)!r} is no URL") from None
    if parsed.scheme not in _PORTS or not host:
        raise Fail(f"{_shown(url)!r} is no URL that begins with https:// or http://")
    if parsed.userinfo:
        raise Fail("a URL must not hold a name or password: put them into a header, as a secret")
    port = parsed.port or _PORTS[parsed.scheme]
    if not 0 < port < 65536:
        raise Fail(f"{_shown(url)!r} has no port that exists")
    path = parsed.raw_path.decode("ascii")
    plain = str(parsed.copy_with(fragment=None))
    return Target(plain, parsed.scheme, host, port, path, _literal(host), internal=False)


def _rule(entry: str, setting: str) -> Rule:
    internal = entry.startswith("internal:")
    match = _ENTRY.fullmatch(entry.removeprefix("internal:"))
    star, bare = ("*", match[2][2:]) if match and (match[2] + ".").startswith("*.") else ("", match[2] if match else "")
    try:
        if match is None or "*" in bare or not (star or bare):
            raise Fail("no host")
        scheme = match[1] or "https"
        host = parse(f"{scheme}://{bare}").host if bare else ""
    except Fail:
        raise Fail(f"{setting}: {entry!r} is no host; write hosts like {EXAMPLE}") from None
    address = None if star else _literal(host)
    name = f"{star}.{host}" if star and host else star or host
    return Rule(scheme, name, int(match[3] or _PORTS[scheme]), address, internal)


def _literal(host: str) -> Address | None:
    try:
        return _mapped(ip_address(host))
    except ValueError:
        return None


def _mapped(address: Address) -> Address:
    """::ffff:10.0.0.1 is 10.0.0.1, to the kernel too."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _unwrapped(address: Address) -> Address:
    if isinstance(address, IPv6Address) and address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return _mapped(address)


def _shown(url: str) -> str:
    """Without a query or a password, which may be secret."""
    return str(url).partition("?")[0].rpartition("@")[2][:200]
