"""`tokenmill tokenizers`: list, check (the conformance suite) and fit."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenmill.pipelines import cli_fit
from tokenmill.pipelines.cli_fit import Name, Settings, config_of
from tokenmill.schemas.errors import TokenizerError
from tokenmill.workers import conformance, registry

app = typer.Typer(no_args_is_help=True, help="List tokenizers, check one, or fit one.")


@app.command("list")
def list_() -> None:
    """List the tokenizers that are installed."""
    for name in registry.names():
        try:
            descriptor = registry.tokenizer_class(name).describe({})
        except TokenizerError as error:  # a library that it needs is not installed
            print(f"{name:16} {'-':8} {error.why}; {error.remedy}")
            continue
        outputs = ", ".join(o.name for o in descriptor.outputs)
        print(f"{name:16} {descriptor.modality:8} outputs: {outputs}")


@app.command()
def check(
    name: Name,
    checkpoint: Annotated[str | None, typer.Option(help="Its weights or vocabulary.")] = None,
    settings: Settings = None,
) -> None:
    """Run the conformance suite on a tokenizer."""
    report = conformance.check(name, checkpoint, config_of(settings))
    for item in report.checks:
        print(f"{item.verdict:5} {item.name}{': ' + item.detail if item.detail else ''}")
    for note in report.notes:
        print(f"note  {note}")
    if not report.ok:
        raise TokenizerError(f"{name} does not conform", remedy="see the lines marked fail")


app.command(help="The same as `tokenmill fit`.")(cli_fit.fit)
