"""`steward k8s`: manifests from the code, and what an API server cannot judge about them."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.errors import Refused


@click.group()
def k8s() -> None:
    """Render and verify the Kubernetes manifests. Needs no cluster."""


@k8s.command(epilog="Example: steward k8s render --check")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when k8s/ is not what the code says.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the manifests; k8s/ of this checkout by default.",
)
def render(check: bool, folder: Path | None) -> None:
    """Write topics, users, pods, databases, policies and scalers from what the code declares.

    Files that are written by hand (platform, components, overlays) are left alone. Exit code 1: --check found a difference.
    """
    from deploy.k8s.render import FOLDER, differences, write

    where = folder or FOLDER
    if not check:
        touched = write(where)
        for file in touched:
            click.echo(file)
        click.echo(f"{len(touched)} files changed" if touched else "k8s/ is what the code says")
        return
    found = differences(where)
    if found:
        raise Refused("\n".join([*found, "run `steward k8s render` and commit what it writes"]))
    click.echo("k8s/ is what the code says")


@k8s.command(epilog="Example: steward k8s secrets --dev | kubectl create -f -")
@click.option("--smtp-url", help="The mail server: smtp:// or smtps://, with user and password if it wants them.")
@click.option("--mail-from", help="The sender of the mesh's mails.")
@click.option(
    "--dev", is_flag=True, help="For the overlay dev, which has a mail server and an object store of its own."
)
def secrets(smtp_url: str | None, mail_from: str | None, dev: bool) -> None:
    """Print every secret that the manifests need, with new random values, for a cluster without external-secrets.

    Once, with `kubectl create`, which refuses what exists: a new master key would shred what the old one seals. Keep a copy
    of steward-master-key and steward-signing-key apart from every backup of the databases.
    """
    import yaml

    from deploy.k8s import rights
    from deploy.k8s.secrets import fresh, fresh_for_development

    house = list(rights.services().values())
    if dev:
        made = fresh_for_development(house)
    elif smtp_url and mail_from:
        made = fresh(house, {"url": smtp_url, "from": mail_from})
    else:
        raise click.UsageError("say --smtp-url and --mail-from, or --dev")
    click.echo(yaml.safe_dump_all(made, sort_keys=False), nl=False)


@k8s.command(epilog="Example: steward k8s verify prod")
@click.argument("overlay", required=False)
def verify(overlay: str | None) -> None:
    """Check what no API server can: names, scalers, paths, rights, pods, rules. Of every overlay, or of OVERLAY.

    Who reaches whom is read from the network policies and compared with what the code declares to need, both ways. Exit code
    1: something is wrong.
    """
    from deploy.k8s.verify import overlays, verify

    there = overlays()
    if overlay is not None and overlay not in there:
        raise click.UsageError(f"there is no overlay {overlay!r}; there are {', '.join(there)}")
    wrong = 0
    for name in [overlay] if overlay else there:
        for about, found in verify(name).items():
            click.echo(f"{name}: {about}: {f'{len(found)} wrong' if found else 'ok'}")
            for said in found:
                click.echo(f"  {said}")
            wrong += len(found)
    if wrong:
        raise Refused(f"{wrong} wrong")
