"""`steward privacy triage | deny | extend | escalate | answer | decide | sweep | retry | waive`: what named persons do on cases.

Each acts in a role; which role may do what says the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from deploy.cli.ask import ask, settings
from deploy.cli.command import command_options, order, who
from deploy.cli.errors import Refused
from deploy.cli.shapes import CASE, ID

_ROOM = "retention"
_REASONS = (
    "need_user_verification", "suspected_fraud", "insuf_verification", "no_match", "claim_not_covered",
    "outside_jurisdiction", "too_many_requests", "other",
)  # fmt: skip
_ROLES = ("support", "privacy", "legal", "operations")
_F = TypeVar("_F", bound=Callable[..., Any])


def _as(role: str) -> Callable[[_F], _F]:
    return click.option("--role", type=click.Choice(_ROLES), default=role, show_default=True, help="As what.")


@click.command(epilog="Example: steward privacy triage 019ab7d4-... --kind access --account acc-71 --ticket SUP-12")
@click.argument("case", type=CASE)
@click.option("--kind", required=True, help="What the mail asks for.", type=click.Choice(
    ["erasure", "access", "portability", "access:categories", "sale:opt-out", "child_report"]))  # fmt: skip
@click.option("--account", type=ID, help="Whose it is, if the mail's address does not say it.")
@click.option("--scope", type=click.Choice(["account", "workspace", "member"]), default="account", show_default=True)
@click.option("--target", type=ID, help="The workspace or member.")
@_as("support")
@command_options
def triage(
    case: str, kind: str, account: str | None, scope: str, target: str | None, role: str, by: str | None, ticket: str,
    timeout: float,
) -> None:  # fmt: skip
    """Say what a mail to support is about."""
    more = {name: value for name, value in (("account", account), ("subject", target)) if value is not None}
    _command("triage_case", case, role, by, ticket, timeout, kind=kind, scope=scope, **more)


@click.command(epilog="Example: steward privacy deny 019ab7d4-... --reason no_match --ticket PRIV-9")
@click.argument("case", type=CASE)
@click.option("--reason", type=click.Choice(_REASONS), required=True, help="In the words of the Data Rights Protocol.")
@_as("privacy")
@command_options
def deny(case: str, reason: str, role: str, by: str | None, ticket: str, timeout: float) -> None:
    """Say no to a request; the person is told why."""
    _command("deny_case", case, role, by, ticket, timeout, reason=reason)


@click.command(epilog="Example: steward privacy extend 019ab7d4-... --ticket PRIV-9")
@click.argument("case", type=CASE)
@_as("privacy")
@command_options
def extend(case: str, role: str, by: str | None, ticket: str, timeout: float) -> None:
    """Take the longer time that the law grants, if the policy does; the person is told."""
    _command("extend_case", case, role, by, ticket, timeout)


@click.command(epilog="Example: steward privacy escalate 019ab7d4-... --to legal --ticket SUP-12")
@click.argument("case", type=CASE)
@click.option("--to", "to", type=click.Choice(_ROLES), required=True, help="Who is to look at it.")
@_as("support")
@command_options
def escalate(case: str, to: str, role: str, by: str | None, ticket: str, timeout: float) -> None:
    """Hand a case to somebody of another role; it counts as needing a person until it ends."""
    _command("escalate_case", case, role, by, ticket, timeout, to=to)


@click.command(epilog="Example: steward privacy answer 019ab7d4-... --ticket PRIV-9")
@click.argument("case", type=CASE)
@_as("privacy")
@command_options
def answer(case: str, role: str, by: str | None, ticket: str, timeout: float) -> None:
    """Say that a person has answered, outside of the mesh, under the ticket."""
    _command("answer_case", case, role, by, ticket, timeout)


@click.command(epilog="Example: steward privacy decide 019ab7d4-... --delete --ticket LEGAL-3")
@click.argument("case", type=CASE)
@click.option(
    "--delete/--dismiss", "delete", required=True, default=None, help="The account is a child's, or it is not."
)
@_as("privacy")
@command_options
def decide(case: str, delete: bool, role: str, by: str | None, ticket: str, timeout: float) -> None:
    """Decide about a report that an account is a child's. Deleting needs no word of the owner, and nobody can undo it."""
    _command("decide_child", case, role, by, ticket, timeout, decision="delete" if delete else "dismiss")


@click.command(epilog="Example: steward privacy sweep 019ab7d4-...")
@click.argument("case", type=CASE, required=False)
@command_options
def sweep(case: str | None, by: str | None, ticket: str, timeout: float) -> None:
    """Order the deep scan now that certifies a completed case (or all of them)."""
    _command("sweep_case", case or "all", "operations", by, ticket, timeout, "The sweep is ordered.")


@click.command(epilog="Example: steward privacy retry 019ab7d4-... --ticket OPS-381")
@click.argument("case", type=CASE)
@command_options
def retry(case: str, by: str | None, ticket: str, timeout: float) -> None:
    """Go on with a case that needed a person: what is owed is ordered now, and erased again where residue was."""
    _command("retry_case", case, "operations", by, ticket, timeout, "It goes on.")


@click.command(epilog="Example: steward privacy waive 019ab7d4-... --holder insights --ticket OPS-381")
@click.argument("case", type=CASE)
@click.option("--holder", required=True, help="The holder that is gone.")
@command_options
def waive(case: str, holder: str, by: str | None, ticket: str, timeout: float) -> None:
    """Answer for a holder that is gone for good; the certificate says so, with your name."""
    known = settings()
    row = ask(known, _ROOM, "case", id=case)
    if holder not in row["holders"]:
        raise Refused(f"the case does not expect {holder}: it expects {', '.join(row['holders']) or 'nobody yet'}")
    _command("waive_holder", case, "operations", by, ticket, timeout, f"{holder} is waived.", holder=holder)


def _command(
    action: str,
    target: str,
    role: str,
    by: str | None,
    ticket: str,
    timeout: float,
    said: str | None = None,
    **arguments: str,
) -> None:
    """Orders it, and says whether it came about: what a person did stands in the case's history, or it was refused."""
    if ticket == "none" and action != "sweep_case":
        raise click.UsageError("--ticket: what you do on a case needs a reason in your own records")
    known = settings()
    named = who(by, ticket, timeout, role)
    before = 0
    if target != "all":
        row = ask(known, _ROOM, "case", id=target)
        target, before = row["id"], len(row["history"])
    order(known, _ROOM, action, [target], named, **arguments)
    if not timeout:
        click.echo("It is ordered.")
        return
    if target != "all":
        news = ask(known, _ROOM, "case", id=target)["history"][before:]
        if not any((one["actor"], one["reason"]) == (named.actor, named.ticket) for one in news):
            raise Refused("it was refused: the reason is in `steward dead-letters list --service retention`")
    click.echo(said or "Done.")


COMMANDS = (triage, deny, extend, escalate, answer, decide, sweep, retry, waive)
