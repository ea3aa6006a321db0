"""The bytes behind an http or https URL, fetched so that nobody can make this machine talk to its own network.

    check the text of the URL -> look up its host -> check every address -> connect to the very address that was checked
                 ^                                                                                              |
                 +---------------------------------- a redirect, at most a few ---------------------------------+

One parser, so that two cannot disagree; no second look-up between check and connection; no proxies, no cookies, no
compression; one deadline for everything. What went wrong inside is told in fixed sentences.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import NoReturn

from gemlens.errors import InputError, PictureError

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-\"$-\[\]-~]*)?(?:#[!-~]*)?",
    re.IGNORECASE,
)
# Besides what Python's ipaddress calls private: ways to write an IPv4 address in another one, and relays of them.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "192.88.99.0/24", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
        "2002::/16", "fec0::/10", "5f00::/16",
    )
]  # fmt: skip


@dataclass(frozen=True)
class UrlRules:
    """How URLs are fetched.

    Args:
        seconds: for everything together: looking up, connecting, redirects, the whole answer.
        redirects: how many are followed; each is checked like the first URL.
        private_hosts: hosts, as `"name:port"`, that are meant to be reached although they are not public.
    """

    seconds: float = 20.0
    redirects: int = 3
    private_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.seconds < 1e6 or self.redirects < 0 or isinstance(self.private_hosts, str):
            raise InputError(f"{self} makes no sense; seconds must be positive, private_hosts a tuple of 'name:port'.")


@dataclass(frozen=True)
class _Place:
    """A URL that may be asked for, in parts."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def fetch(url: str, most_bytes: int, rules: UrlRules) -> bytes:
    """The body that the server answers, after at most `rules.redirects` redirects.

    Raises:
        PictureError: the URL is of a form or leads to an address that is refused, the server does not answer with a
            file in time, or the file has more than `most_bytes`.
    """
    deadline = time.monotonic() + rules.seconds
    place = _parse(url)
    for _ in range(rules.redirects + 1):
        answer = _ask(place, most_bytes, rules, deadline)
        if isinstance(answer, bytes):
            return answer
        follower = _parse(urllib.parse.urljoin(place.url, answer))
        if (place.scheme, follower.scheme) == ("https", "http"):
            raise PictureError("The URL redirects from https to http; pass the http URL itself if that is meant.")
        place = follower
    raise PictureError(f"The URL redirects more than {rules.redirects} times; pass the URL of the picture itself.")


def _parse(url: str) -> _Place:
    match = _URL.fullmatch(url)
    if match is None:
        raise PictureError(
            "The URL is not one that is fetched; it must read 'https://host/path' in ASCII, without user names, "
            "backslashes or spaces."
        )
    scheme, host = match["scheme"].lower(), match["host"].lower().strip("[]")
    last = host.rstrip(".").split(".")[-1]
    try:
        if match["host"].startswith("["):
            host = str(ipaddress.IPv6Address(host))
        elif re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last):  # every form that a system could take for an IPv4 address
            host = str(ipaddress.IPv4Address(host))
    except ValueError:
        raise PictureError("The host of the URL is a number, but no plainly written address; pass a name.") from None
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not 0 < port < 65536 or ".." in host or len(host) > 253:
        raise PictureError("The URL names a host or a port that cannot exist.")
    target = match["target"] or "/"
    return _Place(scheme, host, port, target if target.startswith("/") else f"/{target}")


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, and does not merely wrap another one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # such as an IPv6 address with a zone
        return False
    wrapped = any(found.version == network.version and found in network for network in _NOT_PUBLIC)
    return found.is_global and not found.is_multicast and not found.is_reserved and not wrapped


def _addresses(place: _Place, rules: UrlRules, deadline: float) -> list[str]:
    """What the host's name stands for, all of it public. The look-up has no time limit of its own: hence the thread."""
    found: list[str] = []

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    addresses = list(found)
    if not addresses:
        raise PictureError("The host of the URL was not found; check its spelling and the connection.")
    trusted = f"{place.host}:{place.port}" in rules.private_hosts
    if not trusted and not all(map(is_public, addresses)):
        raise PictureError("The URL leads to an address that is not public; such addresses are never asked.")
    return addresses


def _ask(place: _Place, most_bytes: int, rules: UrlRules, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
    connection = http.client.HTTPConnection(place.host, place.port)
    cut: threading.Timer | None = None
    try:
        stream = connection.sock = _connect(place, _addresses(place, rules, deadline), deadline)
        # A server that sends one byte now and then never meets the time limit of a single read.
        cut = threading.Timer(_left(deadline), socket.socket.shutdown, (stream, socket.SHUT_RDWR))
        cut.daemon = True
        cut.start()
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "gemlens"}
        connection.request("GET", place.target, headers={"Host": place.authority, **headers})
        return _read(connection.getresponse(), most_bytes, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        _left(deadline)
        raise PictureError("The server of the URL cannot be reached or does not speak HTTP properly.") from None
    finally:
        if cut is not None:
            cut.cancel()
        connection.close()


def _connect(place: _Place, addresses: list[str], deadline: float) -> socket.socket:
    """A connection to the first address that answers, the host's certificate checked."""
    for address in addresses:
        try:
            stream = socket.create_connection((address, place.port), timeout=_left(deadline))
        except OSError:
            continue
        if place.scheme == "http":
            return stream
        try:
            stream.settimeout(_left(deadline))
            return ssl.create_default_context().wrap_socket(stream, server_hostname=place.host)
        except OSError as error:
            stream.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise PictureError("The server of the URL shows no certificate that is valid for it.") from None
            raise
    raise OSError


def _read(answer: http.client.HTTPResponse, most_bytes: int, deadline: float) -> bytes | str:
    _left(deadline)  # who was cut off looks like an answer that ended
    if answer.status in _REDIRECTS and (place := answer.getheader("Location")):
        return place
    if answer.status != 200:
        raise PictureError(f"The server of the URL answers {answer.status}, not with a picture.")
    if answer.getheader("Content-Encoding", "identity").lower() != "identity":
        raise PictureError("The server of the URL sends the picture compressed although nobody asked for that.")
    chunks, size = [], 0
    while chunk := (answer.read1(1 << 16) if (answer.length or 0) <= most_bytes else _too_large(most_bytes)):
        chunks.append(chunk)
        size += len(chunk)
        if size > most_bytes:
            _too_large(most_bytes)
        _left(deadline)
    _left(deadline)
    if answer.length:
        raise PictureError("The server of the URL broke off in the middle of the picture; try again.")
    return b"".join(chunks)


def _too_large(most_bytes: int) -> NoReturn:
    raise PictureError(
        f"The picture of the URL has more than {most_bytes} bytes; make it smaller, or pass "
        "limits=PictureLimits(bytes=...)."
    )


def _left(deadline: float) -> float:
    """Seconds until the deadline."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise PictureError("The picture of the URL did not come in time; try again, or allow more seconds.")
    return seconds
