"""``llava-med policy``: check a policy file, try it on labelled cases, put it into force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from guardrails import cases, policy

app = typer.Typer(
    help="The policy: what an answer may say, and what happens when it says something else.",
    no_args_is_help=True,
)
console = Console()
errors = Console(stderr=True)

PolicyArgument = Annotated[Path, typer.Argument(help="Policy file (YAML).")]


@app.command()
def check(file: PolicyArgument) -> None:
    """Say whether a policy is fit for use; every problem with file, line and field."""
    found = _load(file)
    entries = found.file
    console.print(
        f"{found.id}\n{len(entries.rules)} rules, {len(entries.findings)} findings "
        f"({sum(item.urgent for item in entries.findings)} urgent), "
        f"widest rule {max(rules.width for rules in found.output_rules.values())} characters",
        highlight=False,
        soft_wrap=True,
    )


@app.command("test")
def run_cases(
    file: PolicyArgument,
    labelled: Annotated[
        Path, typer.Argument(metavar="CASES", help="Labelled cases, one JSON object a line.")
    ],
    show: Annotated[bool, typer.Option(help="Print the cases that came out wrong.")] = True,
    minimum: Annotated[
        float, typer.Option(min=0, max=1, help="Fail where precision or recall is below this.")
    ] = 0.0,
) -> None:
    """Try a policy on labelled cases; print precision and recall of every category."""
    found = _load(file)
    try:
        examples = cases.read_cases(labelled.read_text("utf-8"), source=str(labelled))
        scores = {
            score.category: score
            for _, score in cases.run_cases(
                found, track(examples, description="cases", console=errors, transient=True)
            )
        }
    except (OSError, ValueError) as error:
        _fail(str(error))
    if show:
        for score in scores.values():
            for case, said in score.failed:
                about = case.finding or case.question
                console.print(
                    f"{score.category} {about}: expected {case.expect}, got {said}: {case.text}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    table = Table("category", "cases", "precision", "recall", "F1", "wrong")
    for score in scores.values():
        figures = (f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        table.add_row(score.category, str(score.cases), *figures, str(len(score.failed)))
    console.print(table)
    if any(min(score.precision, score.recall) < minimum for score in scores.values()):
        raise typer.Exit(1)


@app.command()
def reload(port: Annotated[int, typer.Option(help="Port of the running service.")] = 8000) -> None:
    """Have the running service read its policy file again: all or nothing, without a restart."""
    from serve import local
    from serve.reload import ReloadError

    try:
        console.print(f"in force: {local.reload_policy(port)}", highlight=False, soft_wrap=True)
    except ReloadError as error:
        _fail(f"not reloaded, the former policy is in force:\n{error}", code=1)


@app.command()
def show() -> None:
    """Print the policy that ships, to copy and change."""
    typer.echo(policy.read(), nl=False)


def _load(file: Path) -> policy.Policy:
    try:
        return policy.load(file)
    except (OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str, *, code: int = 2) -> NoReturn:
    errors.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)
