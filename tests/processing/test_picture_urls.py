"""URLs of pictures: what is never asked, what is asked, and how long it may take. All servers are on loopback."""

import http.server
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pictures import encoded, noise
from transformers.image_utils import load_image

from gemlens.errors import InputError, PictureError
from gemlens.processing.pictures import picture_urls
from gemlens.processing.pictures.picture_urls import UrlRules, fetch, is_public
from gemlens.processing.pictures.pictures import PictureLimits, open_picture

PNG = encoded(noise(6, 4))

REFUSED = [
    "http://127.0.0.1/a.png", "http://localhost/a.png", "http://[::1]/a.png", "http://0.0.0.0/", "http://10.0.0.1/",
    "http://172.16.0.1/", "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/",
    "http://100.127.255.255/", "http://192.0.0.1/", "http://198.18.0.1/", "http://192.0.2.1/", "http://224.0.0.1/",
    "http://240.0.0.1/", "http://255.255.255.255/", "http://192.88.99.1/",
    "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://017700000001/", "http://0177.0.0.1/",
    "http://127.1/", "http://127.0.1/", "http://1/", "http://0/", "http://127.0.0.1./", "http://00127.0.0.1/",
    "http://0x7f.1/", "http://127.0.0.0x1/", "http://256.256.256.256/", "http://1.2.3.4.5/",
    "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:8.8.8.8]/", "http://[::ffff:7f00:1]/",
    "http://[::7f00:1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::8.8.8.8]/", "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/", "http://[2002:808:808::1]/", "http://[2001::1]/", "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[fc00::1]/", "http://[fd12::1]/", "http://[fec0::1]/",
    "http://[ff02::1]/", "http://[2001:db8::1]/", "http://[::127.0.0.1]/", "http://[127.0.0.1]/", "http://[1]/",
    "http://user@127.0.0.1/", "http://user:word@example.com/", "http://example.com@127.0.0.1/", "http://@example.com/",
    "http://good.example\\@evil.example/", "http://good.example\\.evil.example/", "http://good.example#@127.0.0.1/ x",
    "http:///a.png", "http://", "http://:80/", "http://example.com:0/", "http://example.com:99999/",
    "http://example.com:8a/", "http://example.com:/a b", "http://exa mple.com/", "http://example.com/a b",
    "http://example.com/\r\nHost: evil", "http://example.com/%0d%0a\n", "http://example.com/\tx", " http://example.com/",
    "http://ex\u00e4mple.com/", "http://example.com/\u00fc", "http://\uff11\uff12\uff17.0.0.1/",
    "http://127\u30020\u30020\u30021/",
    "http://a..b/", "http://.example.com/", "http://-example.com/", "http://%31%32%37.0.0.1/", "http://exam%70le.com/",
    "http://[::1", "http://::1/", "http://[::1]x/", "http://" + "a" * 300 + ".com/",
    "http:\\\\127.0.0.1\\", "http:/127.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_urls_that_are_never_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it connected"))
    for allow in (False, True):
        with pytest.raises(PictureError, match=r"\.$"):
            open_picture(url, allow_urls=allow)


def test_the_address_behind_a_name_is_not_told() -> None:
    with pytest.raises(PictureError) as caught:
        open_picture("http://localhost/a.png", allow_urls=True)
    assert not set("0123456789") & set(str(caught.value))


@pytest.mark.parametrize(
    "url", ["ftp://example.com/a", "file:///etc/passwd", "gopher://x/", "s3://b/k", "jar:http://x!/"]
)
def test_other_schemes_are_never_asked(url: str) -> None:
    for allow in (False, True):
        with pytest.raises(PictureError, match=r"are never read|does not exist"):
            open_picture(url, allow_urls=allow)


def test_no_network_where_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looked up a name"))
    for url in ("http://example.com/a.png", "HTTPS://example.com/a.png"):
        with pytest.raises(PictureError, match="allow_urls=False forbids to ask"):
            open_picture(url, allow_urls=False)


def test_public_addresses() -> None:
    for address in ("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::1"):
        assert is_public(address)
    for address in ("", "x", "fe80::1%eth0", "010.0.0.1", "1.2.3"):
        assert not is_public(address)


@given(st.ip_addresses())
def test_what_is_public_is_at_least_what_python_calls_global(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert not is_public(str(address)) or (address.is_global and not address.is_private and not address.is_multicast)
    if address.version == 4:
        for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
            assert not is_public(wrapped)


@given(st.text(max_size=40))
def test_any_text_after_the_scheme_is_a_sentence_or_a_plain_place(text: str) -> None:
    try:
        place = picture_urls._parse("http://" + text)
    except PictureError:
        return
    assert place.host.isascii()
    assert not set("@\\ \r\n\t") & set(place.host + place.target)
    assert 0 < place.port < 65536


@pytest.mark.parametrize(
    "arguments", [{"seconds": 0}, {"seconds": float("nan")}, {"redirects": -1}, {"private_hosts": "a:1"}]
)
def test_rules_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        UrlRules(**arguments)


# -- with a server -----------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """What each path answers."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"]))
        getattr(self, self.path.split("?")[0].strip("/").replace("-", "_") or "png")()

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if not {"Content_Length", "Transfer_Encoding"} & headers.keys():
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def png(self) -> None:
        self.send(200, PNG)

    def chunked(self) -> None:
        self.send(200, b"%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG), Transfer_Encoding="chunked")

    def endless(self) -> None:
        self.send(200, Transfer_Encoding="chunked")
        while True:
            self.wfile.write(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")

    def liar(self) -> None:
        self.send(200, b"x", Content_Length=str(10**15))

    def short(self) -> None:
        self.send(200, PNG[:20], Content_Length=str(len(PNG)))
        self.close_connection = True

    def zipped(self) -> None:
        self.send(200, PNG, Content_Encoding="gzip")

    def missing(self) -> None:
        self.send(404, b"secret")

    def html(self) -> None:
        self.send(200, b"<html>secret</html>")

    def drip(self) -> None:
        self.send(200, Content_Length="1000")
        for _ in range(1000):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(1000):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def rubbish(self) -> None:
        self.wfile.write(b"\x00\xff not HTTP\r\n\r\n" * 10)
        self.close_connection = True

    def once(self) -> None:
        self.send(302, Location="png?moved")

    def round(self) -> None:
        self.send(301, Location="/round")

    def inwards(self) -> None:
        self.send(302, Location="http://169.254.169.254/latest/meta-data/")

    def sideways(self) -> None:
        self.send(307, Location="file:///etc/passwd")

    def same_host_other_port(self) -> None:
        self.send(308, Location="http://127.0.0.1:1/")


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("Handler", (Answers,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients here break off on purpose
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: http.server.ThreadingHTTPServer, path: str, most: int = 100_000, **rules: Any) -> bytes:
    place = f"127.0.0.1:{server.server_port}"
    return fetch(f"http://{place}/{path}", most, UrlRules(private_hosts=(place,), **rules))


@pytest.mark.parametrize("path", ["", "png", "png?a=b&c=%20#part", "chunked", "once"])
def test_pictures_arrive(server: http.server.ThreadingHTTPServer, path: str) -> None:
    assert ask(server, path) == PNG
    assert server.RequestHandlerClass.asked[-1][1] == f"127.0.0.1:{server.server_port}"


def test_addresses_of_the_own_network_are_asked_there_and_not_here(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")  # the reference would ask a proxy
    url = f"http://127.0.0.1:{server.server_port}/png"
    assert load_image(url).size == (6, 4)
    assert server.RequestHandlerClass.asked
    server.RequestHandlerClass.asked.clear()
    with pytest.raises(PictureError, match="not public"):
        open_picture(url)
    assert not server.RequestHandlerClass.asked


def test_through_the_door(server: http.server.ThreadingHTTPServer) -> None:
    place = f"127.0.0.1:{server.server_port}"
    rules = UrlRules(private_hosts=(place,))
    assert open_picture(f"http://{place}/png", allow_urls=rules).size == (6, 4)
    with pytest.raises(PictureError, match="not public"):
        open_picture(f"http://{place}/png")
    with pytest.raises(PictureError, match="has more than 9 bytes"):
        open_picture(f"http://{place}/png", PictureLimits(bytes=9), allow_urls=rules)
    with pytest.raises(PictureError, match=r"The picture of the URL is no picture that is read here"):
        open_picture(f"http://{place}/html", allow_urls=rules)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("endless", "has more than"), ("liar", "has more than"), ("short", "broke off|properly"),
        ("zipped", "compressed"), ("missing", "answers 404"), ("rubbish", "properly"), ("round", "more than 3 times"),
        ("inwards", "not public"), ("sideways", "not one that is fetched"), ("same-host-other-port", "not public"),
    ],
)  # fmt: skip
def test_answers_that_are_refused(server: http.server.ThreadingHTTPServer, path: str, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence) as caught:
        ask(server, path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_one_time_limit_for_everything(server: http.server.ThreadingHTTPServer, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(PictureError, match="did not come in time"):
        ask(server, path, seconds=0.3)
    assert time.monotonic() - started < 2


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    started = time.monotonic()
    with pytest.raises(PictureError, match="was not found"):
        fetch("http://example.com/", 1000, UrlRules(seconds=0.2))
    assert time.monotonic() - started < 0.9


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(PictureError, match="cannot be reached"):
        fetch(f"http://127.0.0.1:{port}/", 1000, UrlRules(private_hosts=(f"127.0.0.1:{port}",)))


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is checked and private when it is asked for again (DNS rebinding)."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    looked_up, connected = [], []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], **_: object) -> socket.socket:
        connected.append(address)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(PictureError, match="cannot be reached"):
        fetch("http://rebind.example/", 1000, UrlRules())
    assert looked_up == ["rebind.example"]
    assert connected == [("93.184.216.34", 80)]


def test_a_name_with_a_public_and_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(PictureError, match="not public"):
        fetch("http://both.example/", 1000, UrlRules())


def test_https_checks_the_hosts_certificate(server: http.server.ThreadingHTTPServer) -> None:
    place = f"127.0.0.1:{server.server_port}"  # speaks no TLS at all
    with pytest.raises(PictureError, match="cannot be reached"):
        fetch(f"https://{place}/png", 1000, UrlRules(private_hosts=(place,)))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl command")
def test_https_asks_by_name_at_the_address_that_was_checked(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout both.pem -out cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*make.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "both.pem").open("a") as file:
        file.write((tmp_path / "cert.pem").read_text())
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(tmp_path / "both.pem")
    server.socket = inside.wrap_socket(server.socket, server_side=True)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    rules = UrlRules(private_hosts=tuple(f"{host}:{server.server_port}" for host in ("localhost", "127.0.0.1")))
    with pytest.raises(PictureError, match="no certificate that is valid for it"):
        fetch(f"https://localhost:{server.server_port}/png", 100_000, rules)
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    assert fetch(f"https://localhost:{server.server_port}/png", 100_000, rules) == PNG
    with pytest.raises(PictureError, match="no certificate that is valid for it"):
        fetch(f"https://127.0.0.1:{server.server_port}/png", 100_000, rules)
    started = time.monotonic()
    with pytest.raises(PictureError, match="did not come in time"):
        fetch(f"https://localhost:{server.server_port}/drip", 100_000, UrlRules(0.3, 0, rules.private_hosts))
    assert time.monotonic() - started < 2


def test_https_does_not_lead_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_urls, "_ask", lambda *_: "http://example.com/")
    with pytest.raises(PictureError, match="from https to http"):
        fetch("https://example.com/", 1000, UrlRules())


def test_the_file_object_is_not_asked_for_a_name() -> None:
    file = io.BytesIO(PNG)
    file.name = "http://127.0.0.1/"  # type: ignore[attr-defined]
    assert open_picture(file).size == (6, 4)
