"""The commands that make models of models: `convert` and `quantize`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clawdbot.cli.options import Json
from clawdbot.cli.output import ExitCode, Screen, fail
from clawdbot.conversion import Conversion, Quantization
from clawdbot.conversion import convert as make
from clawdbot.conversion import quantize as shrink
from clawdbot.conversion.quantizing import Method
from schemas.catalogue import Modality
from schemas.errors import ClawdbotError
from schemas.parity import Report, Tolerance


MIB = 1024 * 1024
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]
Cosine = Annotated[float, typer.Option(min=-1, max=1, help="Smallest cosine of an output.")]
Seed = Annotated[int, typer.Option(help="Of random inputs.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a model that is there.")]
Workers = Annotated[Modality, typer.Option(help="Which workers run it.")]


def convert(  # noqa: PLR0913, PLR0917 - one option for each thing there is to say
    source: Annotated[
        str,
        typer.Argument(
            help="An .onnx or .pt2 file, a folder of transformers, or module:function of yours."
        ),
    ],
    output: Output,
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators.")] = 18,
    task: Annotated[
        str,
        typer.Option(
            help="Of a folder: embedding, classification, token-classification, generation."
        ),
    ] = "embedding",
    examples: Annotated[
        Path | None, typer.Option(help="An .npz of inputs by name to compare on; else random.")
    ] = None,
    atol: Annotated[float, typer.Option(min=0, help="Absolute part of the tolerance.")] = 1e-4,
    rtol: Annotated[float, typer.Option(min=0, help="Relative part of the tolerance.")] = 1e-3,
    cosine_min: Cosine = 0.9999,
    modality: Workers = "text",
    max_batch_size: Annotated[
        int, typer.Option(min=0, max=65536, help="Rows of one call; 0 never joins requests.")
    ] = 32,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a model to ONNX, if it then computes the same.

    Writes model.onnx, model.yaml (a catalogue entry) and parity.json (how far it is from its
    source). A model that differs by more than it may is not written, and the exit status is 2.
    """
    screen = Screen(as_json)
    tolerance = Tolerance(atol=atol, rtol=rtol, cosine_min=cosine_min)
    try:
        with screen.progress("converting"):
            report = make(
                Conversion(
                    source=source, output=output, opset=opset, task=task, examples=examples,
                    tolerance=tolerance, modality=modality, max_batch_size=max_batch_size,
                    seed=seed, force=force,
                )
            )  # fmt: skip
    except ClawdbotError as error:
        raise fail(screen, error) from None
    _show(screen, report, output)


def quantize(  # noqa: PLR0913, PLR0917 - one option for each thing there is to say
    source: Annotated[Path, typer.Argument(help="An .onnx file, or a folder with model.onnx.")],
    output: Output,
    method: Annotated[
        Method, typer.Option(help="dynamic: int8 weights. static: int8 activations as well.")
    ] = "dynamic",
    calibration: Annotated[
        Path | None, typer.Option(help="An .npz of inputs by name; else random numbers.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="An .npz of inputs by name, and labels, to be right about.")
    ] = None,
    label_output: Annotated[str, typer.Option(help="The output of classes [row, class].")] = "",
    accuracy_drop_max: Annotated[
        float, typer.Option(min=0, max=1, help="What may be lost of the share of right classes.")
    ] = 0.01,
    cosine_min: Cosine = 0.99,
    modality: Workers = "text",
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make an int8 model of an ONNX model, if it is still good enough.

    Writes model.onnx, model.yaml and parity.json: how far it is from its source, how much smaller
    and faster, and what it loses of its accuracy. One that loses more than it may is not written,
    and the exit status is 2.
    """
    screen = Screen(as_json)
    tolerance = Tolerance(atol=None, cosine_min=cosine_min, agreement_min=0.95)
    try:
        with screen.progress("quantising"):
            report = shrink(
                Quantization(
                    source=source, output=output, method=method, calibration=calibration,
                    labelled=labelled, label_output=label_output,
                    accuracy_drop_max=accuracy_drop_max, tolerance=tolerance, modality=modality,
                    seed=seed, force=force,
                )
            )  # fmt: skip
    except ClawdbotError as error:
        raise fail(screen, error) from None
    _show(screen, report, output)


def _show(screen: Screen, report: Report, output: Path) -> None:
    """Print what was made, and leave."""
    if screen.as_json:
        screen.json(report)
        raise typer.Exit(ExitCode.OK)
    parity = report.parity
    sizes = f"{report.source_bytes / MIB:.2f} MiB -> {report.model_bytes / MIB:.2f} MiB"
    screen.print(f"{output}: {parity.made} of {parity.source}, opset {parity.opset}, {sizes}")
    table = Table("output", "max abs", "mean abs", "cosine", "differing")
    for name, item in parity.outputs.items():
        numbers = (item.max_abs, item.mean_abs, item.cosine)
        table.add_row(name, *map(_number, numbers), f"{item.differing} of {item.elements}")
    screen.print(table)
    screen.print(f"compared on {parity.rows} rows: {parity.inputs}")
    for speed in report.speed:
        ratio = speed.source_ms / speed.model_ms if speed.model_ms else 0.0
        screen.print(
            f"{speed.rows} rows: {speed.source_ms:.3f} ms -> {speed.model_ms:.3f} ms "
            f"({ratio:.2f} times as fast)"
        )
    if report.accuracy is not None:
        found = report.accuracy
        screen.print(f"accuracy on {found.rows} rows: {found.source:.4f} -> {found.model:.4f}")
    raise typer.Exit(ExitCode.OK)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.6f}"  # noqa: PLR2004
