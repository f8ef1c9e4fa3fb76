"""minipc export: a model as ONNX, safetensors or a C program."""

import os

import click

from minipc.cli.options import FILE, SAMPLE, Verb, common_options, option
from minipc.cli.show import Console, result

OF_DATA = ("clouds", "record")  # kinds of files with a test split


@click.command("export", cls=Verb, short_help="A model as ONNX, safetensors or a C program.")
@click.argument("model", metavar="[MODEL]", type=FILE, required=False)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option("--onnx", metavar="FILE", type=FILE, help="From points to logits, any number of both.")
@option("--safetensors", metavar="FILE", type=FILE, help="Its arrays under PyTorch's names.")
@option("--c", metavar="FOLDER", type=FILE, help="C99 that allocates nothing, with a self-test.")
@option("--int8", is_flag=True, help="With --c: whole numbers of 8 bits.")
@option("--sample", type=SAMPLE, default="all", help="Test clouds to check with.")
@option("--no-check", is_flag=True, help="Do not compile or run it here.")
@option("--threads")
@common_options
def command(
    model: str | None,
    data: str | None,
    onnx: str | None,
    safetensors: str | None,
    c: str | None,
    int8: bool,
    sample: int,
    no_check: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write MODEL (a file, or a run folder) for programs without minipc, in one of three forms.

    Without MODEL, the last run here.  Test clouds of DATA check the form, and training clouds give
    the scales of --int8; without DATA, the file that MODEL was trained on is looked for beside it
    and here.
    """
    from minipc.report.lines.export import of_export
    from minipc.storage.files import kind_of
    from minipc.verbs.export import export

    with Console(quiet, verbose) as console:
        if model and not data and not os.path.isdir(model) and kind_of(model) in OF_DATA:
            model, data = None, model
        values = export(
            model or console.last_run("MODEL"),
            onnx=onnx,
            safetensors=safetensors,
            c=c,
            whole=int8,
            data=data,
            sample=sample or None,
            check=not no_check,
            threads=threads,
            say=console.say,
            progress=console.progress,
        )
    result(values, as_json, of_export)
