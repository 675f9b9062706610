"""Converts a model of another library to ONNX, if it then computes the same."""

from dataclasses import dataclass, field
from pathlib import Path

from clawdbot.conversion import folders
from clawdbot.conversion.comparing import (
    Requests,
    check_tolerance,
    compare,
    complaints,
    race,
    refuse,
    rows_are_kept,
)
from clawdbot.conversion.onnx_source import OnnxSource
from clawdbot.conversion.opening import open_source
from clawdbot.conversion.source import need, versions
from schemas.catalogue import Modality
from schemas.errors import InvalidArgument
from schemas.parity import Report, Tolerance


OPSET = 18
OPSETS = range(13, 27)


@dataclass(frozen=True)
class Conversion:
    """What to convert, and how.

    Args:
        source: See `opening.open_source`.
        output: The folder to write.
        opset: Version of the operators.
        task: Of a folder of transformers.
        examples: An .npz file with inputs by name; random numbers without one.
        tolerance: What the ONNX model may differ by.
        modality: Which workers run it.
        max_batch_size: Rows of one call, where requests can be joined; 0 never.
        seed: Of random numbers.
        force: Whether a model that is there is replaced.
    """

    source: str
    output: Path
    opset: int = OPSET
    task: str = "embedding"
    examples: Path | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    modality: Modality = "text"
    max_batch_size: int = 32
    seed: int = 0
    force: bool = False


def convert(wanted: Conversion) -> Report:
    """Write a model's folder, and return what `parity.json` says.

    Raises:
        InvalidArgument: The source cannot be opened, or run on the examples.
        FailedPrecondition: A library is absent, there is no such ONNX model, or it differs from its
            source by more than it may; nothing is written.
    """
    if wanted.opset not in OPSETS:
        raise InvalidArgument(f"--opset is from {OPSETS[0]} to {OPSETS[-1]}")
    check_tolerance(wanted.tolerance)
    need("convert", "onnx", "onnxruntime", "numpy")
    source = open_source(wanted.source, wanted.task)
    requests = Requests.of(source, wanted.examples, wanted.seed)
    with folders.new_folder(wanted.output, force=wanted.force) as folder:
        path = folder / folders.MODEL
        source.write(path, wanted.opset)
        made = OnnxSource(path)
        parity = compare(source, made, requests, wanted.tolerance, "convert")
        refuse("the ONNX model", list(complaints(parity)))
        sha256, size_bytes = folders.digest(path)
        report = Report(
            parity=parity,
            model_sha256=sha256,
            source_bytes=source.size_bytes,
            model_bytes=size_bytes,
            speed=race(source, made, requests),
            versions=versions(source.packages),
        )
        spec = folders.spec_of(
            made.inputs,
            made.outputs,
            report,
            modality=wanted.modality,
            max_batch_size=wanted.max_batch_size if rows_are_kept(made, requests) else 0,
        )
        spec = folders.with_signature(folder, spec, source)
        folders.write(folder, spec, report)
    return report
