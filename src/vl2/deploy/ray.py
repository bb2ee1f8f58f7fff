"""vl2 on Ray Serve: `vl2.deploy.ray:app` builds the application; replicas are spread over a Ray cluster.

    serve run vl2.deploy.ray:app model=tiny keys_file=/keys.jsonl
    serve deploy serve.yaml                                   # as `vl2 deploy ray` writes it

Each replica is the whole server, with the same API and its engine in a process of its own. Needs the extra `ray`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from vl2.deploy.ray_options import Settings, read_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

HEALTH_PERIOD_S = 5.0


def app(args: dict[str, Any]) -> Any:
    """The application for Ray Serve; `args` are options of `vl2 serve` by their names, and those of `RayOptions`.

    Raises: SetupError, for unknown or wrong ones and where there are no keys.
    """
    from ray import serve

    settings = read_settings(args)
    ray = settings.ray
    scaling: dict[str, Any] = {"num_replicas": ray.min_replicas}
    if ray.max_replicas > ray.min_replicas:
        limits = {"min_replicas": ray.min_replicas, "max_replicas": ray.max_replicas}
        scaling = {"autoscaling_config": limits | {"target_ongoing_requests": ray.target_ongoing_requests}}
    deployment: Any = serve.deployment(
        serve.ingress(_asgi_builder(settings))(_Replica),
        name="vl2",
        max_ongoing_requests=settings.engine.max_sequences + settings.engine.max_queue,
        ray_actor_options={"num_gpus": ray.num_gpus, "num_cpus": ray.num_cpus},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=settings.server.drain_timeout_s,
        **scaling,
    )
    return deployment.bind()


class _Replica:
    """What Ray asks beside HTTP."""

    app: FastAPI  # set by Ray's wrapper

    def check_health(self) -> None:
        if self.app.state.llm.is_failed:
            raise RuntimeError("the engine could not be started again")


def _asgi_builder(settings: Settings) -> Callable[[], FastAPI]:
    """A function that Ray calls in each replica: models are made there, not here."""

    def build() -> FastAPI:
        from vl2.llm import LLM
        from vl2.server.app import create_app

        llm = LLM(
            settings.ray.model,
            engine=settings.engine,
            processor=settings.processor,
            hub=settings.hub,
            in_process=False,
        )
        asgi = create_app(llm, settings.server, max_image_bytes=settings.processor.max_image_bytes)
        asgi.state.llm = llm
        serving = asgi.router.lifespan_context

        @asynccontextmanager
        async def loaded(asgi: FastAPI) -> AsyncIterator[Any]:
            """A replica counts as started when its model is loaded."""
            await llm.start()
            try:
                async with serving(asgi) as state:
                    yield state
            finally:
                await llm.stop()

        asgi.router.lifespan_context = loaded
        return asgi

    return build
