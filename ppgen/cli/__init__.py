"""The command line: it parses, builds, and calls the library."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

import typer

from ppgen import data as datasets
from ppgen.catalogue import DECODERS, MODELS, POSTERIORS, PRIORS, Model, Part
from ppgen.cli.check import check
from ppgen.cli.compare import compare
from ppgen.cli.evaluate import evaluate
from ppgen.cli.judge import judge
from ppgen.cli.sample import sample_run
from ppgen.cli.train import train_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep generative models as Pyro programs: train, evaluate by importance sampling, sample, compare.",
)
app.add_typer(train_app, name="train")
app.command()(evaluate)
app.command("sample")(sample_run)
app.command()(compare)
app.command()(judge)
app.command()(check)


@app.command("list")
def list_parts() -> None:
    """Every model, every part and every data set, a line each."""
    tables: dict[str, Mapping[str, Part | Model]] = {
        "Models": MODELS,
        "Priors": PRIORS,
        "Posteriors": POSTERIORS,
        "Decoders": DECODERS,
    }
    for heading, parts in tables.items():
        print(f"{heading}:")
        for name, part in parts.items():
            kind = f" [{part.kind} data]" if part.kind else ""
            print(f"  {name:<20} {part.line}{kind} ({part.paper})")
    print("Data sets:")
    for name, line in datasets.describe().items():
        print(f"  {name:<20} {line}")


def main() -> None:
    """The entry point: bad input ends in one line and exit status 2, without a traceback."""
    logging.captureWarnings(True)
    sys.path.append(os.getcwd())  # parts of the user's own are looked for where the command is given, but nothing else
    try:
        status = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        _fail(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors: unknown options, missing arguments
            raise
        if message := error.format_message():
            _fail(f"{message} See --help.")
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    print("Error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
