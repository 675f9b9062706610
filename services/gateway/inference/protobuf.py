"""The messages of the Open Inference Protocol over gRPC, made from a table.

Generated code ties the version of protobuf at run time to that of its generator. The table holds
what stays: names, numbers and types. It lives in a descriptor pool of its own, beside whatever else
a process has loaded under the same names.

Source: grpc_service.proto of Triton, package inference; grpc/health/v1/health.proto.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from services.gateway.inference.protobuf_management import ENUMS, MANAGEMENT


SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}
_PARAMETERS = "map InferParameter parameters"
_INFERENCE: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready 1",),
    "ModelReadyRequest": ("string name 1", "string version 2"),
    "ModelReadyResponse": ("bool ready 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name 1", "string version 2", "string[] extensions 3"),
    "ModelMetadataRequest": ("string name 1", "string version 2"),
    "ModelMetadataResponse": (
        "string name 1",
        "string[] versions 2",
        "string platform 3",
        "ModelMetadataResponse.TensorMetadata[] inputs 4",
        "ModelMetadataResponse.TensorMetadata[] outputs 5",
    ),
    "ModelMetadataResponse.TensorMetadata": (
        "string name 1",
        "string datatype 2",
        "int64[] shape 3",
    ),
    "InferParameter": (
        "bool bool_param 1 one",
        "int64 int64_param 2 one",
        "string string_param 3 one",
        "double double_param 4 one",
        "uint64 uint64_param 5 one",
    ),
    "InferTensorContents": (
        "bool[] bool_contents 1",
        "int32[] int_contents 2",
        "int64[] int64_contents 3",
        "uint32[] uint_contents 4",
        "uint64[] uint64_contents 5",
        "float[] fp32_contents 6",
        "double[] fp64_contents 7",
        "bytes[] bytes_contents 8",
    ),
    "ModelInferRequest": (
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        f"{_PARAMETERS} 4",
        "ModelInferRequest.InferInputTensor[] inputs 5",
        "ModelInferRequest.InferRequestedOutputTensor[] outputs 6",
        "bytes[] raw_input_contents 7",
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name 1",
        "string datatype 2",
        "int64[] shape 3",
        f"{_PARAMETERS} 4",
        "InferTensorContents contents 5",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("string name 1", f"{_PARAMETERS} 2"),
    "ModelInferResponse": (
        "string model_name 1",
        "string model_version 2",
        "string id 3",
        f"{_PARAMETERS} 4",
        "ModelInferResponse.InferOutputTensor[] outputs 5",
        "bytes[] raw_output_contents 6",
    ),
    "ModelStreamInferResponse": ("string error_message 1", "ModelInferResponse infer_response 2"),
    "ModelInferResponse.InferOutputTensor": (
        "string name 1",
        "string datatype 2",
        "int64[] shape 3",
        f"{_PARAMETERS} 4",
        "InferTensorContents contents 5",
    ),
}
_CHOICES = "map ModelRepositoryParameter parameters"
_INFERENCE |= {
    "RepositoryIndexRequest": ("string repository_name 1", "bool ready 2"),
    "RepositoryIndexResponse": ("RepositoryIndexResponse.ModelIndex[] models 1",),
    "RepositoryIndexResponse.ModelIndex": (
        "string name 1",
        "string version 2",
        "string state 3",
        "string reason 4",
    ),
    "ModelRepositoryParameter": (
        "bool bool_param 1 one",
        "int64 int64_param 2 one",
        "string string_param 3 one",
        "bytes bytes_param 4 one",
    ),
    "RepositoryModelLoadRequest": (
        "string repository_name 1",
        "string model_name 2",
        f"{_CHOICES} 3",
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        "string repository_name 1",
        "string model_name 2",
        f"{_CHOICES} 3",
    ),
    "RepositoryModelUnloadResponse": (),
}
_HEALTH = {
    "HealthCheckRequest": ("string service 1",),
    "HealthCheckResponse": ("int32 status 1",),  # an enum; on the wire the same
}


@cache
def message(name: str) -> Any:
    """Return a message class by its full name: `inference.ModelInferRequest`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for package, table in (
        ("inference", {**_INFERENCE, **MANAGEMENT}),
        ("grpc.health.v1", _HEALTH),
    ):
        file = descriptor_pb2.FileDescriptorProto(
            name=f"clawdbot/{package}.proto", package=package, syntax="proto3"
        )
        for kind, words in ENUMS.items():
            enum = file.enum_type.add(name=kind)
            for number, word in enumerate(words):
                enum.value.add(name=word, number=number)
        made: dict[str, Any] = {}
        for name, fields in table.items():
            outer, _, inner = name.rpartition(".")
            proto = made[outer].nested_type.add() if outer else file.message_type.add()
            made[name] = proto
            proto.name = inner
            if any(field.endswith(" one") for field in fields):
                proto.oneof_decl.add(name="parameter_choice")
            for field in fields:
                _add(proto, field, f".{package}.{name}", package)
        pool.Add(file)
    return pool


def _add(proto: Any, text: str, owner: str, package: str) -> None:
    """Add a field written as `type name number`, `type[] …`, `map type …` or `… one`."""
    words = text.split()
    is_map, is_choice = words[0] == "map", words[-1] == "one"
    kind, name, number = words[is_map : is_map + 3]
    field = proto.field.add(name=name, number=int(number))
    repeated = is_map or kind.endswith("[]")
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    kind = kind.removesuffix("[]")
    if is_map:
        entry = proto.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, "string key 1", "", package)
        _add(entry, f"{kind} value 2", "", package)
        field.type, field.type_name = _Field.TYPE_MESSAGE, f"{owner}.{entry.name}"
    elif kind in _TYPES:
        field.type = _TYPES[kind]
    elif kind in ENUMS:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{package}.{kind}"
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    if is_choice:
        field.oneof_index = 0
