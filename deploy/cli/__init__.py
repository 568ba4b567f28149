"""The `steward` command: a table of command modules, imported when they run."""

from __future__ import annotations

import click

from deploy.cli.lazy import Lazy, LazyGroup

COMMANDS: dict[str, Lazy] = {
    "up": Lazy("deploy.cli.stack:up", "Start Kafka, PostgreSQL, a mail sink and every service on this machine."),
    "down": Lazy("deploy.cli.stack:down", "Stop the stack: services first, then the servers."),
    "status": Lazy("deploy.cli.stack:status", "Show what runs, where, and whether it is ready."),
    "wait": Lazy("deploy.cli.stack:wait", "Wait until the mesh has nothing left to do."),
    "trace": Lazy(
        "deploy.cli.trace:trace", "Show what came of an event: which service took it when, and what it sent on."
    ),
    "doctor": Lazy("deploy.cli.stack:doctor", "Check servers and machine before anything starts."),
    "emit": Lazy("deploy.cli.emit:emit", "Send events from a file, each checked against the contract."),
    "check": Lazy("deploy.cli.books:check", "Prove that the books are right, now, on the running mesh."),
    "explain": Lazy(
        "deploy.cli.books:explain", "Show how a generation came to its charge, from its tokens to the ledger."
    ),
    "balance": Lazy(
        "deploy.cli.books:balance", "Show what a workspace has: credit bought, credit granted, and what it owes."
    ),
    "prices": Lazy("deploy.cli.prices:prices", "Take prices in, see which ones the guard holds, and decide."),
    "reconcile": Lazy("deploy.cli.reconcile:reconcile", "Compare own rating with the costs that providers report."),
    "rate": Lazy(
        "deploy.cli.rate:rate", "Show what a provider's answer costs, by the prices that metering starts with."
    ),
    "quarantine": Lazy("deploy.cli.quarantine:quarantine", "See usage that could not be priced, and release it."),
    "privacy": Lazy("deploy.cli.privacy:privacy", "What people may ask for: deletion, a copy, a correction."),
    "holds": Lazy("deploy.cli.holds:holds", "Keep what the law wants kept of somebody, for as long as it does."),
    "disclosures": Lazy(
        "deploy.cli.disclosures:disclosures",
        "Disclose what the law demands, within its entry, and tell whom it is about.",
    ),
    "dead-letters": Lazy(
        "deploy.cli.dead_letters:dead_letters", "See the records that could not be handled, and send them again."
    ),
    "cursors": Lazy("deploy.cli.cursors:cursors", "See and move where services read on in their topics."),
    "keys": Lazy("deploy.cli.keys:keys", "See the keys of the vault, change the master key, print ingress keys."),
    "contract": Lazy("deploy.cli.contract:contract", "Write the contract: AsyncAPI document and JSON Schemas."),
    "promises": Lazy(
        "deploy.cli.promises:promises",
        "Show which promises of the privacy policy are proved, by which tests, on which commit.",
    ),
    "certificate": Lazy(
        "deploy.cli.certificate:certificate", "Show and verify certificates of erasure. Needs no running stack."
    ),
    "package": Lazy(
        "deploy.cli.package:package",
        "Open a package of somebody's data, and check that it is whole. Needs no running stack.",
    ),
    "retention": Lazy(
        "deploy.cli.retention:retention", "Show how much time each store has until it keeps something too long."
    ),
    "drill": Lazy("deploy.cli.drill:drill", "Rehearse what must go well on a bad day, on a mesh of its own."),
    "k8s": Lazy("deploy.cli.k8s:k8s", "Render and verify the Kubernetes manifests. Needs no cluster."),
    "demo": Lazy("deploy.cli.demo:demo", "See the mesh at work, somebody forgotten, and both proved."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steward", prog_name="steward")
def main() -> None:
    """Keeps an AI gateway's books and the promises of its privacy policy.

    Exit codes: 0 yes, 1 no, 2 wrong usage, 3 a server or service is not available, 4 not kept (by a promise).
    The stack lives in ./.steward, or in the folder that STEWARD_HOME names.
    """
