"""/v1/files and /v1/batches. Everything is the tenant's alone; without --state-dir the routes say so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from vl2.core.errors import InvalidRequest, WrongMediaType
from vl2.server.access import record_of
from vl2.server.auth import key_of
from vl2.server.batch.batches import BatchStore
from vl2.server.batch.files import FileStore
from vl2.server.batch.runner import PRIORITY, BatchRunner
from vl2.server.batch.schema import BatchRequest
from vl2.server.errors import did_you_mean
from vl2.server.fields import check_fields, note_ignored
from vl2.server.intake import JSONRoute
from vl2.server.query import After, Order, page

PURPOSES = ("batch", "user_data", "vision")
CHUNK_BYTES = 2**20
FORM_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S},
                    },
                }
            }
        },
    }
}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Its bytes", "content": {"application/octet-stream": {}}}
}
Limit = Annotated[int, Query(ge=1, le=10_000, description="entries of a page")]
Purpose = Annotated[str | None, Query(description="files of this purpose only")]


@dataclass(frozen=True)
class State:
    files: FileStore
    batches: BatchStore
    runner: BatchRunner


def batch_routes(state: State | None) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["files and batches"], route_class=JSONRoute)

    def kept() -> State:
        if state is None:
            raise InvalidRequest("this server keeps no files and batches; --state-dir turns them on")
        return state

    @router.post("/files", summary="Keep a file", openapi_extra=UPLOAD)
    async def upload(request: Request) -> dict[str, Any]:
        files = kept().files
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise WrongMediaType("an upload must be sent with Content-Type: multipart/form-data")
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                check_form(form)
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile):
                    raise InvalidRequest("file is missing", param="file")
                if purpose not in PURPOSES:
                    raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
                expires_s = _expiry(form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
                name = (file.filename or "file")[:255].encode(errors="replace").decode()
                return await files.add(key_of(request).tenant, name, str(purpose), chunks_of(file.file), expires_s)
        except HTTPException as error:  # a broken form
            raise InvalidRequest(f"the form cannot be read: {error.detail}") from None

    @router.get("/files", summary="The files that are kept, newest first")
    async def list_files(
        request: Request,
        purpose: Purpose = None,
        limit: Limit = 10_000,
        order: Order = "desc",
        after: After = None,
    ) -> dict[str, Any]:
        newest_first = await kept().files.all_of(key_of(request).tenant, purpose)
        return page(newest_first if order == "desc" else newest_first[::-1], limit, after)

    @router.get("/files/{file_id}", summary="Facts of a file")
    async def read_file(file_id: str, request: Request) -> dict[str, Any]:
        return await kept().files.get(key_of(request).tenant, file_id)

    @router.get("/files/{file_id}/content", summary="What is in a file", response_class=Response, responses=CONTENT)
    async def read_content(file_id: str, request: Request) -> Response:
        data = await kept().files.read(key_of(request).tenant, file_id)
        return Response(data, media_type="application/octet-stream")

    @router.delete("/files/{file_id}", summary="Delete a file")
    async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
        await kept().files.delete(key_of(request).tenant, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/batches", summary="Answer the lines of a file in the background")
    async def create_batch(body: BatchRequest, request: Request) -> dict[str, Any]:
        note_ignored(record_of(request).headers, check_fields(body))
        kept_state, key = kept(), key_of(request)
        await kept_state.files.get(key.tenant, body.input_file_id, "input_file_id")
        expiry = body.output_expires_after
        batch_id = await kept_state.batches.add(
            key.tenant,
            min(100, max(0, key.priority or 0) + PRIORITY),
            body.endpoint,
            body.input_file_id,
            body.metadata or {},
            expiry.seconds if expiry else None,
        )
        told = await kept_state.batches.get(key.tenant, batch_id)
        kept_state.runner.begin(batch_id)
        return told

    @router.get("/batches", summary="The batches, newest first")
    async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> dict[str, Any]:
        return page(await kept().batches.all_of(key_of(request).tenant), limit, after)

    @router.get("/batches/{batch_id}", summary="How far a batch is")
    async def read_batch(batch_id: str, request: Request) -> dict[str, Any]:
        return await kept().batches.get(key_of(request).tenant, batch_id)

    @router.post("/batches/{batch_id}/cancel", summary="Stop a batch; what is done is written out")
    async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
        tenant = key_of(request).tenant
        batch = await kept().batches.get(tenant, batch_id)
        if batch["status"] not in ("validating", "in_progress"):
            raise InvalidRequest(f"the batch is {batch['status']}, which cannot be cancelled any more")
        await kept().runner.cancel(batch_id)
        return await kept().batches.get(tenant, batch_id)

    return router


def check_form(names: Iterable[str]) -> None:
    """Raises: InvalidRequest for a field that is none of ours."""
    for name in names:
        if name not in FORM_FIELDS:
            hint = did_you_mean(name, FORM_FIELDS)
            raise InvalidRequest(f"{name[:100]} is not a field of this API{hint}", param=name[:100])


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _expiry(anchor: Any, seconds: Any) -> int | None:
    if anchor is None and seconds is None:
        return None
    text = seconds if isinstance(seconds, str) else ""
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    if anchor != "created_at" or not is_number or not MIN_EXPIRY_S <= int(text) <= MAX_EXPIRY_S:
        rule = f"anchor created_at and seconds between {MIN_EXPIRY_S} and {MAX_EXPIRY_S}"
        raise InvalidRequest(f"expires_after must have {rule}", param="expires_after")
    return int(text)
