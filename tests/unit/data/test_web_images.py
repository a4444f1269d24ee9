"""Images that a web server has: what its answers mean, which of them may change, and what of its folder is reached."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmr1 import remote_images
from mmr1.image_files import MissingImageError
from mmr1.images import ImageError, UnreachableImageError
from tests.unit.data.test_remote_images import png, remote


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()
    failing = 0  # so many requests are answered with `status` first
    status = 503
    commands: ClassVar[tuple[str, ...]] = ("HEAD", "GET")  # which of them

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def _answer(self, really: Any) -> None:
        Handler.asked[f"{self.command} {self.path}"] += 1
        if self.path == "/images/moved.png":
            self.send_response(302)
            self.send_header("Location", "/denied.png?X-Amz-Signature=hidden")
            self.end_headers()
        elif self.path.startswith("/denied.png?"):
            self.send_error(403)
        elif Handler.failing and self.command in Handler.commands:
            Handler.failing -= 1
            self.send_error(Handler.status)
        else:
            really()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A real server over loopback, of the folder `web`; beside that is a file that it does not serve."""
    (tmp_path / "web" / "images").mkdir(parents=True)
    (tmp_path / "web" / "secret.png").write_bytes(png())
    (tmp_path / "web" / "images" / "red.png").write_bytes(png())
    (tmp_path / "web" / "images" / "a b#1?x%2e.png").write_bytes(png("blue"))
    Handler.asked, Handler.failing, Handler.status, Handler.commands = Counter(), 0, 503, ("HEAD", "GET")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/images"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_servers_images(web: str, tmp_path: Path) -> None:
    store = remote(web, tmp_path / "cache")
    ref = store.ref("red.png")
    assert ref.sha256 == hashlib.sha256(png()).digest() and store.open(ref).size == (8, 4)
    assert store.ref("red.png") == ref and Handler.asked["GET /images/red.png"] == 1
    assert store.check("a b#1?x%2e.png") == (8, 4), "nothing in a name has a meaning of its own"
    with pytest.raises(ImageError, match="does not exist below http://"):
        store.ref("none.png")


@pytest.mark.parametrize("path", ["%2e%2e/secret.png", "..%2fsecret.png", "in/%2e%2e/%2e%2e/secret.png"])
def test_an_escaped_name_does_not_leave_a_web_servers_folder(web: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        remote(web, tmp_path / "cache").ref(path)
    assert not [asked for asked in Handler.asked if asked.endswith(" /secret.png")]


def test_a_failure_that_passes_is_tried_again(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_images, "_WAITS", (0.01, 0.01, 0.01))
    Handler.failing = 4  # fsspec asks twice: HEAD, then GET
    assert remote(web, tmp_path / "cache").check("red.png") == (8, 4)
    Handler.failing = 10**6
    with pytest.raises(UnreachableImageError, match=r"cannot be read from http://.*503"):
        remote(web, tmp_path / "other").check("red.png")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_an_answer_that_may_change_is_asked_for_again(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(remote_images, "_WAITS", (0.01, 0.01, 0.01))
    Handler.status, Handler.failing = status, 4
    assert remote(web, tmp_path / "cache").check("red.png") == (8, 4)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 451])
def test_an_answer_that_will_not_change_is_told_at_once(web: str, tmp_path: Path, status: int) -> None:
    """Only 404 and 410 say that the file is not there: without a key, a server may refuse what it has."""
    Handler.status, Handler.failing = status, 10**6
    with pytest.raises(ImageError) as caught:
        remote(web, tmp_path / "cache").check("red.png")
    assert sum(Handler.asked.values()) == 2, "HEAD and GET, once"
    assert not isinstance(caught.value, UnreachableImageError)
    assert isinstance(caught.value, MissingImageError) is (status in (404, 410))
    if status not in (404, 410):
        assert f"image red.png: cannot be read from {web} ({status}" in str(caught.value)


def test_an_address_that_was_signed_is_shown_without_its_signature(web: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot be read from http://.* \(403, .*denied\.png\?\.\.\.") as caught:
        remote(web, tmp_path / "cache").check("moved.png")
    assert "hidden" not in str(caught.value) and caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_goes_before_it_is_fetched_is_missing(web: str, tmp_path: Path, status: int) -> None:
    Handler.status, Handler.failing, Handler.commands = status, 10**6, ("GET",)
    with pytest.raises(MissingImageError):
        remote(web, tmp_path / "cache").ref("red.png")
    assert Handler.asked["GET /images/red.png"] == 1


def test_a_server_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_images, "_WAITS", (0.01,))
    with pytest.raises(UnreachableImageError, match=r"image a\.png: cannot be read from http://127\.0\.0\.1:9/x"):
        remote("http://127.0.0.1:9/x", tmp_path).check("a.png")
