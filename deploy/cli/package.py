"""`steward package fetch | open`: fetch a package of somebody's data by its link; open it and check it, offline."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deploy.cli.errors import NotKept, Refused, Unavailable

# Everything that a package may hold: a name of another shape could lead out of the folder.
_NAMES = re.compile(
    r"index\.html|manifest\.json|data/[A-Za-z0-9_-]{1,64}/[a-z0-9_]{1,63}\.(?:jsonl|csv)"
    r"|schema/[A-Za-z0-9_-]{1,64}\.[a-z0-9_]{1,63}\.json"
)
_PIECE = 256 * 1024


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def package() -> None:
    """Open a package of somebody's data, and check that it is whole. Needs no running stack."""


@package.command(epilog="Example: steward package fetch http://127.0.0.1:8104/packages/3f... --out package.zip.age")
@click.argument("link")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A file that is not there yet."
)
def fetch(link: str, out: Path) -> None:
    """Fetch a package by the link from the mail. Shows how far it is.

    Exit codes: 0 fetched, 1 no such link, 3 no answer, 4 not kept any more.
    """
    import urllib.error
    import urllib.request

    from rich.progress import Progress

    if not re.fullmatch(r"https?://[^\s/]+(/[^\s/]+)*/packages/[0-9a-f]{40}", link):
        raise click.UsageError("this is no link to a package")
    if out.exists():
        raise click.UsageError("--out: there is something already; name a new file")
    beside = out.with_name(out.name + ".part")
    try:
        with urllib.request.urlopen(link, timeout=60) as answer:  # noqa: S310 - http or https, as the pattern says
            total = int(answer.headers.get("Content-Length", "0")) or None
            with Progress(console=Console(stderr=True), transient=True) as progress, beside.open("wb") as file:
                bar = progress.add_task("package", total=total)
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    progress.advance(bar, len(piece))
        beside.replace(out)
    except urllib.error.HTTPError as error:
        if error.code == 410:
            raise NotKept("this package is not kept any more: ask for another one, if you need it") from None
        raise Refused(f"there is nothing under this link ({error.code})") from None
    except OSError as error:
        raise Unavailable(f"the link does not answer ({type(error).__name__}): try again later") from None
    finally:
        beside.unlink(missing_ok=True)
    click.echo(f"{out}: open it with `steward package open {out} --out FOLDER`, or any program for the age format.")


@package.command(name="open", epilog="Example: steward package open package.zip.age --out my-data")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder that is not there yet, or empty.")
@click.option(
    "--identity", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with an age identity."
)
def open_(file: Path, out: Path, identity: Path | None) -> None:
    """Unpack FILE into a folder and compare each file with the manifest.

    Without --identity the passphrase is asked for, or taken from STEWARD_PASSPHRASE.

    Exit codes: 0 opened and whole, 1 a wrong passphrase or key, or damaged (then nothing is left in the folder), 2 usage.
    """
    from shared.privacy.age import CannotOpen
    from shared.privacy.package import opened

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError("--out: there is something already; name a new folder")
    keys: dict[str, str] = {}
    if identity is not None:
        keys["identity"] = _identity(identity)
    else:
        keys["passphrase"] = os.environ.get("STEWARD_PASSPHRASE") or click.prompt(
            "Passphrase", hide_input=True, err=True
        )
    try:
        with file.open("rb") as sealed, opened(sealed, **keys) as archive:
            out.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                manifest = _unpacked(archive, out)
            except BaseException:
                # Half of it, or what was changed, must not look like a person's data.
                shutil.rmtree(out, ignore_errors=True)
                raise
    except CannotOpen as error:
        raise Refused(str(error)) from None
    Console(file=sys.stdout).print(_contents(manifest))
    click.echo(f"{len(manifest['files'])} files, each as the manifest says. Begin with {out / 'index.html'}")


def _identity(path: Path) -> str:
    """The first identity in a file as `age-keygen` writes it."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.strip().upper().startswith("AGE-SECRET-KEY-1"):
            return line.strip()
    raise click.UsageError("--identity: there is no line AGE-SECRET-KEY-1... in this file")


def _unpacked(archive: zipfile.ZipFile, out: Path) -> Mapping[str, Any]:
    """Writes the files and compares them with the manifest. Raises `CannotOpen`."""
    from shared.privacy.age import CannotOpen
    from shared.privacy.package import MANIFEST, manifest_of

    manifest = manifest_of(archive)
    names = archive.namelist()
    if len(names) != len(set(names)) or not all(map(_NAMES.fullmatch, names)):
        raise CannotOpen("this is no package: it holds a file that no package has")
    for name in names:
        path, digest, size = out / name, hashlib.sha256(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(name) as source, path.open("xb") as target:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    size += len(piece)
                    target.write(piece)
        except (zipfile.BadZipFile, EOFError):
            raise CannotOpen("the file is damaged") from None
        if name != MANIFEST and manifest["files"][name] != {"sha256": digest.hexdigest(), "bytes": size}:
            raise CannotOpen(f"the file is damaged: {name} is not what the manifest says")
    return manifest


def _contents(manifest: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"Data of case {manifest['case']}, made at {manifest['made_at']}", title_justify="left",
        title_style="bold", box=None, header_style="dim",
    )  # fmt: skip
    for name in ("service", "table"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    table.add_column("files")
    for source in manifest["sources"]:
        if source["rows"]:
            table.add_row(source["holder"], source["table"], f"{source['rows']:,}", "\n".join(source["files"][:2]))
    return table
