"""dispatcher token create, list, revoke."""

from __future__ import annotations

import click

from dispatcher.cli.base import common, common_options, note
from dispatcher.cli.output import as_dict, print_json, print_table
from dispatcher.cli.session import client
from dispatcher.cli.values import Duration
from dispatcher.queries.tokens import TokenInfo


@click.group("token")
def command() -> None:
    """Who may use the HTTP API."""


@command.command("create")
@click.argument("name")
@click.option("--tenant", metavar="TENANT", help="It sees this tenant only; without it, all of them.")
@click.option("--role", type=click.Choice(["read", "write", "admin"]), default="write", show_default=True)
@click.option(
    "--expires", "expires", type=Duration(), metavar="DURATION", help="In so long, such as 90d; by default never."
)
@common_options
def create(name: str, tenant: str | None, role: str, expires: float | None) -> None:
    """Make a token for NAME, and show it this once."""
    with client() as db:
        id, token = db.create_token(name, tenant=tenant, role=role, expires=expires)
    if common().json:
        print_json({"id": id, "token": token})
        return
    click.echo(token)
    note(f"This is token {id}; it is shown this once. Give it as: Authorization: Bearer ...")


@command.command("list")
@common_options
def list_tokens() -> None:
    """List the tokens, without what makes them valid."""
    with client() as db:
        tokens = db.tokens()
    if common().json:
        print_json([as_dict(one) for one in tokens])
        return
    head = ("ID", "NAME", "TENANT", "ROLE", "STATE", "CREATED", "EXPIRES", "USED")
    print_table(
        head,
        [(t.id, t.name, t.tenant or "(all)", t.role, _state(t), t.created_at, t.expires_at, t.used_at) for t in tokens],
    )


@command.command("revoke")
@click.argument("id", type=int)
@common_options
def revoke(id: int) -> None:
    """Make a token void, within a second."""
    with client() as db:
        changed = db.revoke_token(id)
    if common().json:
        print_json({"id": id, "revoked": True, "changed": changed})
    else:
        note(f"token {id} is void" if changed else f"token {id} was void already")


def _state(token: TokenInfo) -> str:
    return "revoked" if token.revoked_at is not None else "expired" if token.expired else "valid"
