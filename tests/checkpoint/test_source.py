"""Every way to name a model, and every way in which a download fails, against a hub on loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoint.fake_hub import REPOSITORY, FakeHub
from vl2.checkpoint import modelscope, source
from vl2.checkpoint.source import resolve_model
from vl2.core.config import HubOptions
from vl2.core.errors import SetupError
from vl2.core.secret import Secret

FILES = {
    "config.json": b'{"model_type": "deepseek_vl_v2"}',
    "model-00001-of-000002.safetensors": os.urandom(50_000),
    "model-00002-of-000002.safetensors": os.urandom(200_000),
    "README.md": b"license: other",
    "LICENSE-MODEL": b"not for harm",
    "pytorch_model.bin": b"not needed",
}
WANTED = {name for name in FILES if not name.endswith(".bin")}
BIG = "model-00002-of-000002.safetensors"
HUBS = ("huggingface", "modelscope")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(modelscope, "download", partial(modelscope.download, retry_pause_s=0.0))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub(dict(FILES)) as fake:
        yield fake


@pytest.fixture(params=HUBS)
def options(request: pytest.FixtureRequest, hub: FakeHub, tmp_path: Path) -> HubOptions:
    return HubOptions(hub=request.param, hub_endpoint=hub.url, cache_folder=str(tmp_path / "cache"))


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("owner/name") == Path("owner/name")


def test_short_names_are_the_official_repositories(options: HubOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.OFFICIAL, "tiny", REPOSITORY)
    assert (resolve_model("tiny", options=options) / "config.json").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("tinny", "did you mean tiny?"),
        ("DeepSeek-VL2-Small", "did you mean small?"),
        ("./weights", "no such folder"),
        ("/models/deepseek/vl2", "no such folder"),
        ("what is this", "MODEL is nano, tiny, small, base, a folder, or OWNER/NAME"),
        (__file__, "is a file; name the folder"),
    ],
)
def test_a_wrong_name_is_answered_with_advice(model: str, says: str) -> None:
    with pytest.raises(SetupError, match=r"^[^\n]+$") as caught:
        resolve_model(model)
    assert says in caught.value.message


def test_a_download_fetches_the_checkpoint_and_nothing_else(options: HubOptions, hub: FakeHub) -> None:
    folder = resolve_model(REPOSITORY, options=options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in WANTED}
    assert {name for name, _ in hub.downloads} == WANTED


def test_a_second_call_downloads_nothing(options: HubOptions, hub: FakeHub) -> None:
    first = resolve_model(REPOSITORY, options=options)
    hub.downloads.clear()
    assert resolve_model(REPOSITORY, options=options) == first
    assert hub.downloads == []


def test_a_broken_download_goes_on_where_it_stopped(options: HubOptions, hub: FakeHub) -> None:
    hub.break_once[BIG] = 130_000
    assert (resolve_model(REPOSITORY, options=options) / BIG).read_bytes() == FILES[BIG]
    assert [wanted for name, wanted in hub.downloads if name == BIG] == [None, "bytes=130000-"]


def test_modelscope_resumes_after_the_process_ended(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = HubOptions(hub="modelscope", hub_endpoint=hub.url, cache_folder=str(tmp_path))
    hub.break_once[BIG] = 130_000
    monkeypatch.setattr(modelscope, "ATTEMPTS", 1)
    with pytest.raises(SetupError, match="run the command again to resume"):
        resolve_model(REPOSITORY, options=options)
    with pytest.raises(SetupError, match="not \\(completely\\) in the cache"):
        resolve_model(REPOSITORY, options=replace(options, offline=True))
    assert (resolve_model(REPOSITORY, options=options) / BIG).read_bytes() == FILES[BIG]
    assert (BIG, "bytes=130000-") in hub.downloads


def test_modelscope_keeps_unchanged_files_of_a_changed_model(hub: FakeHub, tmp_path: Path) -> None:
    options = HubOptions(hub="modelscope", hub_endpoint=hub.url, cache_folder=str(tmp_path))
    first = resolve_model(REPOSITORY, options=options)
    hub.files["config.json"] = b'{"model_type": "deepseek_vl_v2", "new": true}'
    hub.downloads.clear()
    assert resolve_model(REPOSITORY, options=options) != first
    assert [name for name, _ in hub.downloads] == ["config.json"]


def test_offline_uses_the_cache_and_never_the_network(options: HubOptions, hub: FakeHub) -> None:
    offline = replace(options, offline=True)
    with pytest.raises(SetupError, match="offline mode is on; run `vl2 pull"):
        resolve_model(REPOSITORY, options=offline)
    folder = resolve_model(REPOSITORY, options=options)
    assert resolve_model(REPOSITORY, options=replace(offline, hub_endpoint="http://127.0.0.1:9")) == folder


def test_other_bytes_than_announced_are_an_error_and_removed(options: HubOptions, hub: FakeHub) -> None:
    hub.damaged.add(BIG)
    with pytest.raises(SetupError, match="SHA-256"):
        resolve_model(REPOSITORY, options=options)
    hub.damaged.clear()
    assert (resolve_model(REPOSITORY, options=options) / BIG).read_bytes() == FILES[BIG]


def test_a_private_model_needs_the_token(options: HubOptions, hub: FakeHub) -> None:
    hub.token = "hf_secret"
    with pytest.raises(SetupError, match=r"private|token is wrong"):
        resolve_model(REPOSITORY, options=replace(options, hub_token=Secret("hf_wrong")))
    assert resolve_model(REPOSITORY, options=replace(options, hub_token=Secret("hf_secret"))).is_dir()


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        ("someone/else", {}, "has no model someone/else"),
        (REPOSITORY, {"revision": "v9"}, "v9"),
        (REPOSITORY, {"hub_endpoint": "hub.example"}, "must"),
    ],
)
def test_what_the_hub_lacks_is_one_clear_line(
    options: HubOptions, model: str, change: dict[str, str], says: str
) -> None:
    with pytest.raises(SetupError, match=r"^[^\n]+$") as caught:
        resolve_model(model, options=replace(options, **change))  # type: ignore[arg-type]
    assert says in caught.value.message


def test_a_hub_out_of_reach_is_one_clear_line(options: HubOptions) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = replace(options, hub_endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(SetupError, match=r"^cannot (reach|download)[^\n]+--hub-endpoint[^\n]*$"):
            resolve_model(REPOSITORY, options=gone)


def test_a_repository_without_config_is_no_checkpoint(options: HubOptions, hub: FakeHub) -> None:
    del hub.files["config.json"]
    with pytest.raises(SetupError, match=r"holds no config\.json"):
        resolve_model(REPOSITORY, options=options)


def test_a_hostile_list_cannot_write_outside_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["../../../evil.json"] = b"{}"
    options = HubOptions(hub="modelscope", hub_endpoint=hub.url, cache_folder=str(tmp_path / "a/b/c"))
    resolve_model(REPOSITORY, options=options)
    assert not list(tmp_path.rglob("evil.json"))


def test_hf_endpoint_of_the_environment_is_the_mirror(hub: FakeHub, tmp_path: Path) -> None:
    code = f"from vl2.checkpoint.source import resolve_model; print(resolve_model({REPOSITORY!r}))"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
