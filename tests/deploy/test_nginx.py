"""The nginx configuration as it is written, and as a real nginx runs it in front of three real servers."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from PIL import Image

from tests.deploy.cluster import Cluster, Node, balancing, need, serving_nodes
from tests.deploy.load import CHAT, QUESTION, Load
from tests.e2e.server_process import LIMIT_S, standing_still, wait_until
from vl2.cli import execute
from vl2.deploy.nginx import NginxOptions, nginx_files


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    need("nginx", "on Debian: apt-get install nginx-light")
    with serving_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def cluster(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with balancing(nodes, tmp_path_factory.mktemp("nginx")) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0)


def conf(**options: object) -> str:
    return nginx_files(NginxOptions(**options))["nginx.conf"]  # type: ignore[arg-type]


def test_a_stream_takes_two_connections() -> None:
    text = conf(streams=1000)
    assert int(re.search(r"worker_connections (\d+)", text)[1]) >= 2000  # type: ignore[index]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--upstream", "nowhere"], "must be [NODE=]HOST:PORT"),
        (["--upstream", "host:99999"], "must be [NODE=]HOST:PORT"),
        (["--upstream", "a:1", "--upstream", "a:1"], "names a:1 twice"),
        (["--upstream", "n=a:1", "--upstream", "n=b:1"], "names n twice"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--streams", "0"], "--streams is 0"),
    ],
)
def test_wrong_flags_are_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    assert execute(["deploy", "nginx", "--out", str(tmp_path / "out"), *args]) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_changed_files_are_not_replaced_without_being_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["deploy", "nginx", "--out", str(tmp_path)]
    assert execute(command) == 0 == execute(command), "the same files again are no problem"
    (tmp_path / "nginx.conf").write_text("mine")
    assert execute(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert execute([*command, "--overwrite"]) == 0 and (tmp_path / "nginx.conf").read_text() != "mine"


def test_nginx_takes_tls_and_speaks_http2(nodes: list[Node], tmp_path: Path) -> None:
    import ssl

    import trustme

    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in pair.cert_chain_pems:
        part.write_to_path(tmp_path / "cert.pem", append=True)
    files = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.deploy.cluster.answers", lambda _: True)  # it speaks https: not seen from there
        with balancing(nodes, tmp_path / "nginx", **files) as cluster:
            context = ssl.create_default_context()
            authority.configure_trust(context)
            with httpx.Client(verify=context) as client:
                url = f"https://localhost:{cluster.port}/health/ready"
                wait_until(lambda: _status(client, url) == 200)


def _status(client: httpx.Client, url: str) -> int:
    try:
        return client.get(url).status_code
    except httpx.HTTPError:
        return 0


def test_tokens_are_passed_on_as_they_come(cluster: Cluster, nodes: list[Node]) -> None:
    """In the middle of an answer the engines stand still: what a server has sent so far is here to the last token."""
    body = {"model": "default", "messages": QUESTION, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    engines, before = [node.engine_pid for node in nodes], _num_generated(nodes)
    with httpx.stream("POST", cluster.url + CHAT, json=body | {"return_token_ids": True}, timeout=LIMIT_S) as response:
        lines = response.iter_lines()
        num_tokens = _num_tokens(next(lines))
        with standing_still(*engines):
            num_sent = _num_generated(nodes) - before
            while num_tokens < num_sent:
                num_tokens += _num_tokens(next(lines))
            assert num_tokens == num_sent < 3000


def _num_generated(nodes: list[Node]) -> int:
    """Tokens that the servers have made of what their engines gave them."""

    def of_one(node: Node) -> float:
        text = httpx.get(node.url + "/metrics", timeout=LIMIT_S).text
        [value] = re.findall(r"^vl2_generated_tokens_total\S* (\S+)$", text, re.MULTILINE)
        return float(value)

    with concurrent.futures.ThreadPoolExecutor() as pool:  # one whose engine does not answer takes two seconds
        return int(sum(pool.map(of_one, nodes)))


def _num_tokens(line: str) -> int:
    choices = json.loads(line.removeprefix("data: "))["choices"] if line.startswith("data: {") else []
    return sum(len(choice.get("token_ids") or ()) for choice in choices)


def test_connections_to_the_servers_are_used_again(cluster: Cluster, nodes: list[Node]) -> None:
    with httpx.Client(base_url=cluster.url) as client:
        before = _open_connections(nodes)
        for _ in range(60):
            assert client.get("/health/ready").status_code == 200
    assert len(_open_connections(nodes) - before) <= 2 * len(nodes) * (os.cpu_count() or 1)


def _open_connections(nodes: list[Node]) -> set[tuple[int, int]]:
    """(local port, remote port) of connections to the servers that are open or were closed a short time ago."""
    ports = {node.port for node in nodes}
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote = (int(part.split(":")[1], 16) for part in line.split()[1:3])
        if remote in ports:
            found.add((local, remote))
    return found


def test_a_picture_of_20_mb_passes(client: openai.OpenAI) -> None:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (2200, 2200), os.urandom(3 * 2200 * 2200)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert len(url) > 19_000_000
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]
    assert client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": content}], max_tokens=4
    ).choices


def test_a_larger_body_is_refused_in_openais_shape(nodes: list[Node], tmp_path: Path) -> None:
    with balancing(nodes, tmp_path / "nginx", max_body_bytes=1000) as cluster:
        answer = httpx.post(cluster.url + CHAT, json={"messages": QUESTION * 100})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_turns_of_a_conversation_find_their_node(client: openai.OpenAI, cluster: Cluster) -> None:
    """The id of the turn before is in the body: a server that does not keep it says 404, and the next is asked."""
    kept_by = set()
    for _ in range(3):
        first = client.responses.create(model="default", input="Who are you?", max_output_tokens=4)
        second = client.responses.create(
            model="default", input="And now?", previous_response_id=first.id, max_output_tokens=4
        )
        third = client.responses.create(
            model="default", input="Again?", previous_response_id=second.id, max_output_tokens=4
        )
        node = first.id.split("_")[1]
        assert third.id.split("_")[1] == second.id.split("_")[1] == node
        kept_by.add(node)
        assert client.responses.retrieve(second.id).id == second.id
        assert cluster.tries(f"/v1/responses/{second.id}", 1) == [[node]], "an id in the path needs no search"
        client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_batch_finds_its_node(client: openai.OpenAI) -> None:
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "default", "messages": QUESTION}}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None
    answer = json.loads(client.files.content(output).text)
    assert answer["response"]["body"]["choices"][0]["message"]["content"]
    assert file.id in {entry.id for entry in client.files.list()}, "new files lie with one node: lists are whole"
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    kept = client.files.create(file=("a.png", picture.getvalue()), purpose="vision")
    content = [{"type": "file", "file": {"file_id": kept.id}}, {"type": "text", "text": "What is in the picture?"}]
    for _ in range(3):
        assert client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": content}], max_tokens=2
        ).choices


def test_a_file_is_sent_once_and_a_question_again(nodes: list[Node], tmp_path: Path) -> None:
    """The first server, which keeps files, is gone."""
    gone = Node("gone", tmp_path)
    with balancing([gone, nodes[0]], tmp_path / "nginx") as cluster:
        body = {"model": "default", "messages": QUESTION, "max_tokens": 2}
        assert [httpx.post(cluster.url + CHAT, json=body, timeout=LIMIT_S).status_code for _ in range(4)] == [200] * 4
        assert ["gone", "n1"] in cluster.tries(CHAT, 4)
        refused = httpx.post(cluster.url + "/v1/files", files={"file": b"{}"}, data={"purpose": "batch"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_not_ready"
        assert cluster.tries("/v1/files", 1) == [["gone"]]


def test_the_affinity_header_keeps_a_picture_with_its_server(nodes: list[Node], tmp_path: Path) -> None:
    with balancing(nodes, tmp_path / "nginx", balance="affinity") as cluster:
        for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
            for _ in range(3):
                assert httpx.get(f"{cluster.url}/health/ready?{name}", headers={"X-VL2-Affinity": name}).is_success
        sent_to = [tries for [tries] in cluster.tries("/health/ready", 24)]
    groups = [set(sent_to[start : start + 3]) for start in range(0, len(sent_to), 3)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) > 1


def test_the_operators_numbers_stay_inside(cluster: Cluster) -> None:
    assert [httpx.get(cluster.url + path).status_code for path in ("/metrics", "/status/data", "/")] == [404, 404, 200]


async def test_a_reload_cuts_no_stream(cluster: Cluster) -> None:
    load = Load(cluster.url, 4, num_requests=4, max_tokens=1500, is_stream=lambda number: True)
    load.stop()  # no more than those
    running = asyncio.create_task(load.run())
    await asyncio.to_thread(wait_until, lambda: load.num_begun == 4)
    with standing_still(*(node.engine_pid for node in cluster.nodes)):
        assert load.outcomes == []
        before = set(_workers(cluster))
        os.kill(int((cluster.folder / "state/nginx.pid").read_text()), signal.SIGHUP)
        await asyncio.to_thread(wait_until, lambda: not before >= set(_workers(cluster)))
    await asyncio.wait_for(running, LIMIT_S)
    assert load.problems == [] and len(load.outcomes) == 4


def _workers(cluster: Cluster) -> list[int]:
    """nginx's own processes: a reload starts new ones, and the old ones end with their last stream."""
    nginx = psutil.Process(int((cluster.folder / "state/nginx.pid").read_text()))
    return [child.pid for child in nginx.children()]


NUM_DRAIN_REQUESTS = 2000 if "VL2_TEST_DEPLOY" in os.environ else 100


async def test_no_request_fails_while_each_server_is_drained_in_turn(cluster: Cluster) -> None:
    load = Load(cluster.url, concurrency=8, num_requests=NUM_DRAIN_REQUESTS)
    running = asyncio.create_task(load.run())
    for node in cluster.nodes:
        num_before = len(load.outcomes)
        await asyncio.to_thread(node.end)
        assert node.process is not None and node.process.returncode == 0
        node.begin()
        await asyncio.to_thread(node.wait_ready)
        assert len(load.outcomes) > num_before, "the others answered meanwhile"
    load.stop()
    await running
    assert load.problems == [] and len(load.outcomes) >= NUM_DRAIN_REQUESTS


async def test_when_a_server_is_killed_what_has_no_byte_succeeds_and_streams_end(cluster: Cluster) -> None:
    """kill -9 under 12 long streams and 12 long answers in one piece."""
    victim = cluster.nodes[1]
    load = Load(cluster.url, 24, num_requests=24, max_tokens=800, is_stream=lambda number: number < 12)
    load.stop()  # no more than those
    running = asyncio.create_task(load.run())
    await asyncio.to_thread(wait_until, lambda: load.num_begun == 12)
    with standing_still(*(node.engine_pid for node in cluster.nodes)):  # no stream is over, on any server
        assert load.outcomes == []
        victim.end(signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: load.outcomes)  # the cut ones end at once
    await asyncio.wait_for(running, LIMIT_S)
    cut = [outcome for outcome in load.outcomes if outcome.problem and outcome.is_stream and outcome.num_events]
    failed = [outcome for outcome in load.outcomes if outcome.problem and outcome not in cut]
    assert failed == [], "what had no byte of an answer was asked elsewhere"
    assert 1 <= len(cut) < 12, "the streams of the killed server only"
    victim.begin()
    await asyncio.to_thread(victim.wait_ready)
