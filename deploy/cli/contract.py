"""`steward contract --out DIR`: the contract as documents."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: steward contract --out build/contract")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder to write to; it is made when absent.",
)
def contract(folder: Path) -> None:
    """Write the contract: AsyncAPI document and JSON Schemas.

    asyncapi.yaml says which topics there are, who writes and reads them and what they carry; schemas/ has a JSON
    Schema for each event type. Every document stands alone, and each schema holds a valid example. Needs no running mesh.
    """
    from shared.contract.export import write

    for path in write(folder):
        click.echo(path)
