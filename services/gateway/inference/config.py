"""A model's configuration, in the words of Triton's ModelConfig.

Source: model_config.proto of Triton; perf_analyzer reads it.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from schemas.catalogue import ModelSpec, Port
from schemas.sequences import Controls, StateSpec


VALUES: dict[str, list[Any]] = {"BOOL": [False, True], "INT32": [0, 1], "FP32": [0.0, 1.0]}
"""What says no and yes, of each datatype of a control."""


def data_type(datatype: str) -> str:
    """Return what ModelConfig calls a datatype of the protocol."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def model_config(name: str, spec: ModelSpec) -> dict[str, Any]:
    """Return a model's configuration; with batches, the dimension of rows is not among `dims`."""
    config: dict[str, Any] = {
        "name": name,
        "platform": f"clawdbot_{spec.engine}",
        "backend": spec.engine,
        "max_batch_size": spec.max_batch_size,
        "input": [_input(port, spec) for port in spec.asked],
        "output": [
            {
                "name": port.tensor_name,
                "data_type": data_type(port.datatype),
                "dims": _dims(port, spec),
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for port in spec.given
        ],
        "default_model_filename": PurePosixPath(spec.source or "").name,
        "model_transaction_policy": {"decoupled": spec.streams},
        "response_cache": {"enable": spec.cache_responses},
    }
    if spec.version.isdecimal():
        config["version_policy"] = {"specific": {"versions": [int(spec.version)]}}
    if spec.max_batch_size and not spec.state:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": spec.max_queue_delay_us,
            "preserve_ordering": False,
            "priority_levels": 3,
            "default_priority_level": 2,
        }
    if spec.state:
        config["sequence_batching"] = {"state": [_state(item, spec) for item in spec.state]}
    if spec.controls is not None:
        config["sequence_batching"]["control_input"] = list(_controls(spec.controls, spec))
    return config


def _controls(controls: Controls, spec: ModelSpec) -> Iterator[dict[str, Any]]:
    ports = {port.name: port for port in spec.inputs}
    for what, name in controls.flags.items():
        port = ports[name]
        values = {f"{port.datatype.lower()}_false_true": VALUES[port.datatype]}
        control = {"kind": f"CONTROL_SEQUENCE_{what.upper()}", **values}
        yield {"name": port.tensor_name, "control": [control]}
    if controls.correlation:
        port = ports[controls.correlation]
        kind = {"kind": "CONTROL_SEQUENCE_CORRID", "data_type": data_type(port.datatype)}
        yield {"name": port.tensor_name, "control": [kind]}


def _state(state: StateSpec, spec: ModelSpec) -> dict[str, Any]:
    ports = {port.name: port for port in (*spec.inputs, *spec.outputs)}
    taken, given = ports[state.input], ports[state.output]
    return {
        "input_name": taken.tensor_name,
        "output_name": given.tensor_name,
        "data_type": data_type(taken.datatype),
        "dims": _dims(taken, spec),
    }


def _input(port: Port, spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": port.tensor_name,
        "data_type": data_type(port.datatype),
        "format": "FORMAT_NONE",
        "dims": _dims(port, spec),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": not port.required,
    }


def _dims(port: Port, spec: ModelSpec) -> list[int]:
    return list(port.shape[1:] if spec.max_batch_size else port.shape)
