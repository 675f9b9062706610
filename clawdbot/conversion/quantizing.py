"""Makes an int8 model of an ONNX model, if it is still good enough; says what it costs."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ValidationError

from clawdbot.conversion import arrays, folders
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
from clawdbot.conversion.source import Feeds, Source, need, versions
from schemas.catalogue import Modality, ModelSpec
from schemas.errors import FailedPrecondition, InvalidArgument
from schemas.parity import Accuracy, Report, Tolerance
from schemas.workflow import invalid


if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_RANK = 2
"""[row, class]."""
LABELS = "labels"
"""The array of labelled examples that is no input."""
Method = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Quantization:
    """What to quantise, and how.

    Args:
        source: An .onnx file, or a folder with `model.onnx`.
        output: The folder to write.
        method: `dynamic`: weights are int8, ranges of activations are found out for each request.
            `static`: activations are int8 too, in ranges that calibration found.
        calibration: An .npz file with inputs by name; random numbers without one.
        labelled: An .npz file with inputs by name and `labels`, integers [row].
        label_output: The output whose largest column is the class; the only one by default.
        accuracy_drop_max: What may be lost of the share of right classes.
        tolerance: What the model may differ by.
        modality: Which workers run it, where `source` does not say.
        seed: Of random numbers.
        force: Whether a model that is there is replaced.
    """

    source: Path
    output: Path
    method: Method = "dynamic"
    calibration: Path | None = None
    labelled: Path | None = None
    label_output: str = ""
    accuracy_drop_max: float = 0.01
    tolerance: Tolerance = field(
        default_factory=lambda: Tolerance(atol=None, cosine_min=0.99, agreement_min=0.95)
    )
    modality: Modality = "text"
    seed: int = 0
    force: bool = False


def quantize(wanted: Quantization) -> Report:
    """Write a model's folder, and return what `parity.json` says.

    Raises:
        InvalidArgument: The source cannot be opened, or run on the examples.
        FailedPrecondition: A library is absent, nothing of the model can be quantised, or it is
            further from its source than it may be; nothing is written.
    """
    check_tolerance(wanted.tolerance)
    need("convert", "onnx", "onnxruntime", "numpy")
    given = _spec(wanted.source)
    source = OnnxSource(wanted.source / folders.MODEL if wanted.source.is_dir() else wanted.source)
    requests = Requests.of(source, wanted.calibration, wanted.seed)
    labelled = arrays.read_examples(wanted.labelled) if wanted.labelled else None
    with folders.new_folder(wanted.output, force=wanted.force) as folder:
        path = folder / folders.MODEL
        _write(source.path, path, wanted.method, requests)
        made = OnnxSource(path)
        how: Any = f"quantize {wanted.method}"
        parity = compare(source, made, requests, wanted.tolerance, how)
        accuracy = None if labelled is None else _accuracy(source, made, labelled, wanted)
        lost = [] if accuracy is None or accuracy.passed else [_loss(accuracy)]
        refuse("the quantised model", [*complaints(parity), *lost])
        sha256, size_bytes = folders.digest(path)
        report = Report(
            parity=parity,
            model_sha256=sha256,
            source_bytes=source.size_bytes,
            model_bytes=size_bytes,
            speed=race(source, made, requests),
            accuracy=accuracy,
            calibration=requests.said if wanted.method == "static" else None,
            versions=versions(source.packages),
        )
        batches = 32 if given is None else given.max_batch_size
        spec = folders.spec_of(
            made.inputs,
            made.outputs,
            report,
            modality=wanted.modality if given is None else given.modality,
            max_batch_size=batches if rows_are_kept(made, requests) else 0,
        )
        if given is not None:  # names, shapes and words of the model it was made of
            if given.vocabulary is not None:
                name = given.vocabulary.path
                shutil.copyfile(wanted.source / name, folder / name)
            told = {"source": folders.MODEL, "parity": report.parity}
            spec = given.model_copy(update=told)
        folders.write(folder, spec, report)
    return report


def _spec(source: Path) -> ModelSpec | None:
    """Return the catalogue entry beside a model, if there is one."""
    path = source / folders.SPEC
    if not source.is_dir() or not path.is_file():
        return None
    try:
        return ModelSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path.name} is not YAML") from error
    except ValidationError as error:
        raise invalid(error) from error


def _write(source: Path, target: Path, method: Method, requests: Requests) -> None:
    """Write the quantised model.

    Raises:
        FailedPrecondition: Nothing of it can be quantised, or onnxruntime cannot.
    """
    import logging

    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if method == "dynamic":
            quantization.quantize_dynamic(
                str(prepared), str(target), weight_type=quantization.QuantType.QInt8
            )
        else:
            quantization.quantize_static(
                str(prepared), str(target), _reader(quantization, requests.items), per_channel=True
            )
    except Exception as error:
        raise FailedPrecondition(
            f"onnxruntime cannot quantise this model: {str(error)[:400]}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)
    import onnx

    kinds = {node.op_type for node in onnx.load(str(target)).graph.node}
    if not kinds & {"DequantizeLinear", "DynamicQuantizeLinear"}:
        raise FailedPrecondition(
            "nothing of this model can be quantised: it multiplies no matrices"
        )


def _reader(quantization: Any, items: Sequence[Feeds]) -> Any:
    """Return a reader of calibration data, in the form onnxruntime wants."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives one request after the other."""

        def __init__(self) -> None:
            self._items: Iterator[Feeds] = iter(items)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._items, None)
            return None if found is None else dict(found)

    return Reader()


def _accuracy(
    source: Source, made: OnnxSource, labelled: "dict[str, NDArray[Any]]", wanted: Quantization
) -> Accuracy:
    """Return how often both models are right.

    Raises:
        InvalidArgument: The examples have no labels, or there is no such output.
    """
    labels = labelled.pop(LABELS, None)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InvalidArgument(f"the labelled examples need '{LABELS}': integers [row]")
    requests = list(arrays.slices(labelled, source.inputs))
    output = _class_output(made, wanted.label_output)
    right = [_right(model, requests, output, labels) for model in (source, made)]
    old, new = (float(count / len(labels)) for count in right)
    return Accuracy(
        rows=len(labels),
        output=output,
        source=old,
        model=new,
        drop_max=wanted.accuracy_drop_max,
        passed=old - new <= wanted.accuracy_drop_max,
    )


def _class_output(made: OnnxSource, name: str) -> str:
    found = [
        item.name
        for item in made.outputs
        if item.datatype.startswith("FP") and len(item.shape) == CLASS_RANK
    ]
    if name and name in found:
        return name
    if name or len(found) != 1:
        have = ", ".join(found) or "none"
        raise InvalidArgument(f"--label-output names the output of classes [row, class]: {have}")
    return found[0]


def _right(model: Source, requests: Sequence[Feeds], output: str, labels: Any) -> int:
    import numpy as np

    classes = np.concatenate([model.run(feeds)[output].argmax(axis=1) for feeds in requests])
    if len(classes) != len(labels):
        raise InvalidArgument(f"there are {len(labels)} labels for {len(classes)} rows")
    return int(np.count_nonzero(classes == labels))


def _loss(accuracy: Accuracy) -> str:
    return (
        f"accuracy falls from {accuracy.source:.4f} to {accuracy.model:.4f} on {accuracy.rows} "
        f"rows, by more than {accuracy.drop_max:g}"
    )
