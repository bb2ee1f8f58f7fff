"""HTTP, and nothing but HTTP: `app.create_app(llm, config)` is the way in.

A request passes `access` (id, log line, metrics), `auth` and `limits`, then a route: `openai/`, `predict`, `health`,
`metrics` or the page. Routes ask the model through `chat`, get pictures through `fetch` and answer errors through
`errors`. This package sees the model only as `vl2.core.interface.ChatModel`.
"""
