"""Origins against folders and against a small hub on loopback that speaks the real one's protocol."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download

import gemlens
from gemlens.checkpoints.hub import Origin, read_json
from gemlens.errors import CheckpointError, InputError

COMMIT = "a" * 40
OLD_COMMIT = "b" * 40
TOKEN = "hf_of_a_friend"
REPOSITORY = "google/gemma-tiny"
CONFIG = b'{"model_type": "gemma3"}'


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(
        default_factory=lambda: {"config.json": CONFIG, "inner/config.json": b"{}", "pytorch_model.bin": b"pickle"}
    )
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "old": OLD_COMMIT, COMMIT: COMMIT})
    refuses: tuple[int, str] | None = None
    cut_short: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def gets(self) -> list[str]:
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self.refuses is not None:
            return self.refuses[0], {"X-Error-Code": self.refuses[1]}, b""
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository == "google/gated" and headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if repository not in {REPOSITORY, "google/gated"}:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit = {"X-Repo-Commit": self.commits[revision]}
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", **commit}, b""
        content = self.files[name] if revision != "old" else b'{"old": true}'
        return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit}, content


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which the hub library reads only when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def forget_sessions() -> None:
    """Before hub library 1.0 an open session does not see the offline switch change."""
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            hub.headers.append({key.lower(): value for key, value in self.headers.items()})
            status, headers, body = hub.answer(path, hub.headers[-1])
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if hub.cut_short else body)

        do_GET = do_HEAD = _answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    point_to(hub.address, monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub library waits between its retries
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    server.server_close()
    forget_sessions()


def test_a_folder_gives_its_files_and_none_for_others(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").write_bytes(CONFIG)
    assert Origin(tmp_path, subfolder="inner").fetch("config.json") == tmp_path / "inner" / "config.json"
    assert Origin(str(tmp_path)).find("inner/config.json") == tmp_path / "inner" / "config.json"
    assert Origin(tmp_path).find("config.json") is None
    assert Origin(tmp_path, subfolder="nowhere").find("config.json") is None
    assert Origin(tmp_path).find("x" * 5000) is None
    assert Origin(tmp_path, subfolder="inner").listing() == ["config.json"]
    with pytest.raises(CheckpointError, match=r"There is no 'config.json' in the folder '.*'; check"):
        Origin(tmp_path).fetch("config.json")


def test_a_folder_wins_over_a_repository_of_its_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(REPOSITORY).mkdir(parents=True)
    assert Origin(REPOSITORY).find("config.json") is None
    assert not hub.asked


@pytest.mark.parametrize("name", ["../config.json", "a/../../b", "/etc/hosts", "a\\..\\b", "C:/x", "C:x", "", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, hub: Hub, name: str) -> None:
    for origin in (Origin(tmp_path), Origin(REPOSITORY)):
        with pytest.raises(InputError, match="is not a name inside a model's folder"):
            origin.find(name)
    if name:
        with pytest.raises(InputError, match="is not a name inside a model's folder"):
            Origin(REPOSITORY, subfolder=name)
        with pytest.raises(InputError, match="is not a name inside a model's folder"):
            Origin(REPOSITORY, revision=name)
    assert not hub.asked


@pytest.mark.parametrize(
    "place", ["no/such/folder", "./here", "~/models/x", "a b", "https://example.com/x", "x" * 5000 + "/", "a\0b", "a/"]
)
def test_what_is_neither_folder_nor_repository_id_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match="is neither an existing folder nor a repository id"):
        Origin(place)


def test_a_path_object_is_never_taken_for_a_repository() -> None:
    with pytest.raises(CheckpointError, match="is neither an existing folder"):
        Origin(Path(REPOSITORY))


def test_a_file_or_nothing_is_no_origin(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file; pass the folder that holds it"):
        Origin(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="An empty name was given"):
        Origin("")


def test_a_hub_file_is_downloaded_once(hub: Hub) -> None:
    first = Origin(REPOSITORY).fetch("config.json")
    assert first.read_bytes() == CONFIG
    assert len(hub.gets()) == 1
    assert Origin(REPOSITORY).fetch("config.json") == first
    assert len(hub.gets()) == 1
    asked = len(hub.asked)
    assert Origin(REPOSITORY, revision=COMMIT).fetch("config.json") == first
    assert len(hub.asked) == asked  # a commit never changes, so nobody is asked


def test_cache_dir_revision_and_subfolder_reach_the_hub(hub: Hub, tmp_path: Path) -> None:
    old = Origin(REPOSITORY, revision="old", cache_dir=tmp_path / "elsewhere").fetch("config.json")
    assert read_json(old) == {"old": True}
    assert old.is_relative_to(tmp_path / "elsewhere")
    assert Origin(REPOSITORY, subfolder="inner").fetch("config.json").read_bytes() == b"{}"
    assert Origin(REPOSITORY, revision=None).fetch("config.json").read_bytes() == CONFIG


def test_a_file_that_the_repository_lacks_is_none_or_a_sentence(hub: Hub) -> None:
    assert Origin(REPOSITORY).find("tokenizer.json") is None
    with pytest.raises(
        CheckpointError, match=r"There is no 'tokenizer.json' in the repository 'google/gemma-tiny' \(rev"
    ):
        Origin(REPOSITORY).fetch("tokenizer.json")


def test_the_listing_of_a_repository_comes_from_the_hub_and_never_fails(hub: Hub) -> None:
    assert Origin(REPOSITORY).listing() == ["config.json", "inner/config.json", "pytorch_model.bin"]
    assert Origin(REPOSITORY, subfolder="inner").listing() == ["config.json"]
    hub.refuses = (404, "RepoNotFound")
    assert Origin(REPOSITORY).listing() == []


def test_the_token_opens_a_gated_repository_and_is_not_printed(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"'google/gated' is gated: accept its terms .* token="):
        Origin("google/gated").find("config.json")
    friend = Origin("google/gated", token=TOKEN)
    assert friend.fetch("config.json").read_bytes() == CONFIG
    assert TOKEN not in repr(friend)
    assert TOKEN not in str(friend)


def test_no_token_is_sent_where_none_was_given(hub: Hub) -> None:
    Origin(REPOSITORY, token=False).fetch("config.json")
    assert all("authorization" not in headers for headers in hub.headers)
    with pytest.raises(CheckpointError, match="token=True was passed but nobody is logged in"):
        Origin(REPOSITORY, token=True).fetch("inner/config.json")


def test_an_unknown_repository_or_revision_is_said(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="'google/nothing' is no folder here and no repository that you can see"):
        Origin("google/nothing").find("config.json")
    with pytest.raises(CheckpointError, match="'google/gemma-tiny' has no revision 'v9'; pass the name of a branch"):
        Origin(REPOSITORY, revision="v9").find("config.json")


def test_an_id_that_only_the_hub_library_refuses_is_a_sentence(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(HFValidationError: "):
        Origin("google/bad..name").find("config.json")


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_hub_that_refuses_is_a_sentence_with_its_status(hub: Hub, status: int) -> None:
    hub.refuses = (status, "Sorry")
    with pytest.raises(CheckpointError, match=f"answered {status}; check the connection"):
        Origin(REPOSITORY).find("config.json")


def test_a_download_that_ends_early_is_a_sentence_and_leaves_no_file(hub: Hub) -> None:
    hub.cut_short = True
    with pytest.raises(CheckpointError, match="of 'google/gemma-tiny' could not be downloaded"):
        Origin(REPOSITORY).find("config.json")
    hub.cut_short = False
    assert Origin(REPOSITORY).fetch("config.json").read_bytes() == CONFIG


def test_without_network_downloaded_files_serve_and_others_are_a_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Origin(REPOSITORY).fetch("config.json")
    assert Origin(REPOSITORY).find("tokenizer.json") is None
    point_to("http://127.0.0.1:9", monkeypatch)
    assert Origin(REPOSITORY).fetch("config.json") == path
    assert Origin(REPOSITORY).find("tokenizer.json") is None  # the hub said so earlier
    with pytest.raises(CheckpointError, match="is not on this machine and the hub was not reached"):
        Origin(REPOSITORY).find("model.safetensors")


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_takes_what_was_downloaded_as_all_there_is(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    path = Origin(REPOSITORY).fetch("config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by_environment)
    forget_sessions()
    hub.asked.clear()
    offline = Origin(REPOSITORY, local_files_only=not by_environment)
    assert offline.fetch("config.json") == path
    assert offline.find("model.safetensors") is None
    assert offline.listing() == []
    with pytest.raises(CheckpointError, match=r"There is no 'model.safetensors' in .* as downloaded earlier"):
        offline.fetch("model.safetensors")
    with pytest.raises(CheckpointError, match=r"Nothing of the repository .* was downloaded to this machine earlier"):
        Origin("google/other", local_files_only=not by_environment).find("config.json")
    assert not hub.asked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "holds a JSON list, but an object was expected"),
    ],
)
def test_json_that_is_none_is_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_json(tmp_path / "config.json")


def test_json_that_is_missing_or_far_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "config.json")
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(CheckpointError, match="is larger than 25000000 bytes"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_a_whole_model_loads_by_its_id_and_again_without_the_network(
    hub: Hub, tiny: ModuleType, max_shard_size: str, tmp_path: Path
) -> None:
    model = tiny.model("gemma3-pictures")
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    hub.files = {f"inner/{path.name}": path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    for local_files_only in (False, True):
        again = gemlens.AutoModelForImageTextToText.from_pretrained(
            REPOSITORY, revision=COMMIT, subfolder="inner", token=TOKEN, local_files_only=local_files_only
        )
        for name, weight in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), name
    assert len(hub.gets()) == len(hub.files)  # each once
    assert gemlens.AutoConfig.from_pretrained(REPOSITORY, revision=COMMIT, subfolder="inner") == again.config
