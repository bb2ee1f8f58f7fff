"""The three classes of fields, against what the clients of OpenAI and Anthropic can send."""

from __future__ import annotations

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from server.bodies import Connect, chat
from vl2.server.fields import table
from vl2.server.openai.schema import ChatRequest

URL = "/v1/chat/completions"


def kinds(model: object) -> dict[str, str]:
    return {row.path: row.kind for row in table(model)}


def test_every_field_of_the_openai_client_is_in_a_class() -> None:
    known = {path for path in kinds(ChatRequest) if "." not in path and "[" not in path}
    assert set(CompletionCreateParamsBase.__annotations__) <= known


async def test_hints_are_named_in_a_header_and_what_works_is_not(connect: Connect) -> None:
    body = chat(user="u", store=True, temperature=0, stream_options=None, metadata=None)
    body["messages"][0]["name"] = "Ann"
    response = await connect().post(URL, json=body)
    assert set(response.headers["x-vl2-ignored"].split(", ")) == {"messages[].name", "user", "store"}
    assert "x-vl2-ignored" not in (await connect().post(URL, json=chat())).headers


@pytest.mark.parametrize("name", [path for path, kind in kinds(ChatRequest).items() if kind == "refused"])
async def test_a_refused_field_is_a_400_that_names_it(connect: Connect, name: str) -> None:
    body = chat()
    if name.startswith("messages[]."):
        name = name.replace("[]", "[0]")
        body["messages"][0][name.partition(".")[2]] = {"any": "thing"}
    else:
        body[name] = {"any": "thing"}
    response = await connect().post(URL, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


async def test_a_value_that_changes_nothing_is_taken_but_not_its_look_alike(connect: Connect) -> None:
    client = connect()
    assert (await client.post(URL, json=chat(min_tokens=0, skip_special_tokens=False))).status_code == 200
    assert (await client.post(URL, json=chat(min_tokens=False))).status_code == 400
    assert (await client.post(URL, json=chat(skip_special_tokens=0))).status_code == 400
