"""vl2 key: a new key for the server's keys file."""

from __future__ import annotations

import json
import secrets

import click

KEY_BYTES = 32


@click.command("key")
@click.argument("tenant")
@click.option("--requests-per-minute", type=click.IntRange(1, 10**6), help="Requests that the key may send a minute.")
@click.option("--max-concurrent", type=click.IntRange(1, 10**5), help="Requests that it may have running at a time.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), help="Of its requests: lower is sooner; they may only ask for later."
)
def command(tenant: str, requests_per_minute: int | None, max_concurrent: int | None, priority: int | None) -> None:
    """Make a key for TENANT.

    The key goes to stderr and is stored nowhere. Its line for --keys-file, which holds only a hash, goes to stdout. A
    running server takes a changed file at once.

    \b
    vl2 key team-1 --max-concurrent 8 >> keys.jsonl
    vl2 serve --host 0.0.0.0 --keys-file keys.jsonl
    """
    from vl2.server.tenants import TENANT_NAME, digest_of

    if not TENANT_NAME.fullmatch(tenant):
        raise click.UsageError(f"{tenant!r} is no name for a tenant; take letters, digits, . _ and -")
    key = "vl2-" + secrets.token_urlsafe(KEY_BYTES)
    limits = {"requests_per_minute": requests_per_minute, "max_concurrent": max_concurrent, "priority": priority}
    entry = {"tenant": tenant, "sha256": digest_of(key).hex()}
    click.echo(json.dumps(entry | {name: value for name, value in limits.items() if value is not None}))
    click.echo(f"the key of {tenant}, shown only now: {key}", err=True)
