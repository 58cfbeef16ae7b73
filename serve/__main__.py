"""The command line: ``llava-med`` and ``python -m serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from serve import key_commands, policy_commands
from serve.audit import command as audit_commands
from serve.checkpoint.errors import CheckpointError
from serve.deidentify.command import deidentify
from serve.review import command as review_commands
from serve.settings import Settings, load, problems

USAGE_ERROR = 2

app = typer.Typer(
    name="llava-med",
    help="Serve LLaVA-Med behind guardrails, on your own GPUs. Research software: its answers are "
    "drafts for a clinician's review, never a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(policy_commands.app, name="policy")
app.add_typer(key_commands.app, name="keys")
app.add_typer(audit_commands.app, name="audit")
app.add_typer(review_commands.app, name="review")
app.command()(deidentify)
console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML settings file; environment and options win over it."),
]


@app.command()
def up(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder: original LLaVA-Med (converted once, then kept) or converted. "
            "Default: the embedded phantom model, which knows drawings only."
        ),
    ] = None,
    config: ConfigOption = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file. Default: the one that ships.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1: this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000.")] = None,
) -> None:
    """Start the service on this machine and keep it until Ctrl-C."""
    from serve import local

    settings = _settings(config, model=model, policy=policy, host=host, port=port)
    try:
        local.up(settings, console)
    except local.StartError as error:
        _fail(str(error), code=1)
    except CheckpointError as error:
        _fail(str(error))


@app.command()
def down(port: Annotated[int, typer.Option(help="Port of the service to stop.")] = 8000) -> None:
    """Stop the service on this machine and leave no process behind."""
    from serve import local

    ended = local.down(port)
    console.print("stopped" + (f", {ended} processes ended by force" if ended else ""))


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder or a Hub cache folder.")],
    deep: Annotated[bool, typer.Option(help="Also hash every file against the manifest.")] = False,
) -> None:
    """Say what a checkpoint folder is and whether it will serve; exit code 0 if it will."""
    from serve.checkpoint.inspect import inspect

    report = inspect(path, deep=deep)
    console.print(report.render(), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if report.will_serve else USAGE_ERROR)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Original LLaVA-Med checkpoint.")],
    destination: Annotated[Path, typer.Argument(help="Folder to make. Must not exist.")],
    vision_tower: Annotated[
        Literal["auto", "checkpoint", "external"],
        typer.Option(
            help="auto: the checkpoint's own weights if it has them; checkpoint; or external: the "
            "folder or cached model that mm_vision_tower names."
        ),
    ] = "auto",
    dtype: Annotated[
        Literal["source", "bfloat16", "float16", "float32"],
        typer.Option(help="Precision of the weights; source keeps the checkpoint's own."),
    ] = "source",
) -> None:
    """Convert an original LLaVA-Med checkpoint to the layout that vLLM loads."""
    from serve.checkpoint import convert as converter

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("converting", total=None)
        try:
            manifest = converter.convert(
                source,
                destination,
                vision_tower=vision_tower,
                dtype=dtype,
                progress=lambda done, total, what: bar.update(
                    task, completed=done, total=total, description=what
                ),
            )
        except CheckpointError as error:
            bar.stop()
            _fail(str(error))
    console.print(f"{destination}: {len(manifest.files)} files", highlight=False)


@app.command()
def verify(
    converted: Annotated[Path, typer.Argument(help="A converted checkpoint folder.")],
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Folder with expected.json and its images: what the authors' code computed from "
            "the same checkpoint. Without it, only hashes are compared."
        ),
    ] = None,
) -> None:
    """Prove a converted checkpoint: its hashes, and in vLLM against the authors' code."""
    from serve.checkpoint.inspect import inspect
    from serve.checkpoint.verify import verify as run

    report = inspect(converted, deep=True)
    console.print(report.render(), highlight=False, markup=False, soft_wrap=True)
    if not report.will_serve:
        raise typer.Exit(USAGE_ERROR)
    if golden is None:
        console.print("not compared with the authors' code: name a record with --golden")
        return
    try:
        verification = run(converted, golden)
    except CheckpointError as error:
        _fail(str(error))
    console.print(verification.render(), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if verification.passed else 1)


def _settings(config: Path | None, **command_line: object) -> Settings:
    try:
        return load(config, **command_line)
    except FileNotFoundError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(problems(error))


def _fail(message: str, *, code: int = USAGE_ERROR) -> NoReturn:
    errors.print(
        f"llava-med: {message}", style="red", highlight=False, markup=False, soft_wrap=True
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    sys.exit(app())
