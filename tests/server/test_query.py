"""Query parameters are in the three classes too: what a client may send works, is named as ignored, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai.types.batch_list_params import BatchListParams
from openai.types.file_list_params import FileListParams
from openai.types.responses.input_item_list_params import InputItemListParams
from openai.types.responses.response_retrieve_params import ResponseRetrieveParamsBase

from server.bodies import Connect, chat
from vl2.server.bodies import query_tables

RESPONSES = "/v1/responses"


@pytest.mark.parametrize(
    ("params", "route", "refused"),
    [
        (FileListParams, "GET /v1/files", set()),
        (BatchListParams, "GET /v1/batches", set()),
        (InputItemListParams, "GET /v1/responses/{response_id}/input_items", set()),
        (ResponseRetrieveParamsBase, "GET /v1/responses/{response_id}", {"starting_after"}),
    ],
)
def test_every_parameter_of_the_client_is_in_a_class(params: Any, route: str, refused: set[str]) -> None:
    tables = query_tables()
    known = {row.path for row in tables.get(route, []) + tables["any route"]}
    assert set(params.__annotations__) - known == refused


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/files?ordr=asc"), ("GET", "/v1/models?ordr=1"), ("POST", "/v1/chat/completions?ordr")],
)
async def test_an_unknown_one_is_a_400_that_names_it(connect: Connect, tmp_path: Path, method: str, path: str) -> None:
    body = chat() if method == "POST" else None
    response = await connect(state_dir=str(tmp_path)).request(method, path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "ordr")
    assert ("did you mean order?" in error["message"]) is ("files" in path)


async def test_what_would_change_the_answer_is_refused_and_its_harmless_value_taken(connect: Connect) -> None:
    client = connect()
    made = (await client.post(RESPONSES, json={"input": "Hi"})).json()
    path = f"{RESPONSES}/{made['id']}"
    assert (await client.get(path + "?stream=false")).json() == made
    assert (await client.get(path + "?stream=true")).status_code == 400
    kept = await client.get(path + "?include[]=message.output_text.logprobs")
    assert (kept.json(), kept.headers["x-vl2-ignored"]) == (made, "include")


async def test_hints_of_query_and_body_are_named_together(connect: Connect) -> None:
    body = {"max_tokens": 5, "messages": chat()["messages"], "metadata": {"user_id": "u"}}
    response = await connect().post("/v1/messages?beta=true", json=body)
    assert (response.status_code, response.headers["x-vl2-ignored"]) == (200, "beta, metadata")


async def test_input_items_come_in_pages_newest_first_or_as_they_were_sent(connect: Connect) -> None:
    client = connect()
    texts = ["a", "b", "c"]
    made = (await client.post(RESPONSES, json={"input": [{"role": "user", "content": text} for text in texts]})).json()

    async def read(query: str) -> Any:
        return (await client.get(f"{RESPONSES}/{made['id']}/input_items?{query}")).json()

    def said(page: Any) -> list[str]:
        return [item["content"] for item in page["data"]]

    assert said(await read("")) == texts[::-1]
    first = await read("order=asc&limit=2")
    assert (said(first), first["has_more"]) == (["a", "b"], True)
    rest = await read(f"order=asc&limit=2&after={first['last_id']}")
    assert (said(rest), rest["has_more"]) == (["c"], False)
