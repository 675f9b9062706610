"""The execution providers of onnxruntime: which there are, and what a catalogue may set of them.

A catalogue entry may come with a model from somebody who may not run code here, and options of
providers load libraries, write files and take addresses of memory. So an entry may set what is
listed here; the rest is the operator's: `CLAWDBOT_ONNX_PROVIDER_OPTIONS`.

Source: the documentation of the execution providers, onnxruntime 1.32.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from schemas.errors import FailedPrecondition, ModelUnavailable


CPU = "CPUExecutionProvider"
OPTION_CHARS_MAX = 1024

KNOWN: Mapping[str, frozenset[str]] = {
    CPU: frozenset(),
    "CUDAExecutionProvider": frozenset(
        {
            "arena_extend_strategy",
            "cudnn_conv_algo_search",
            "cudnn_conv_use_max_workspace",
            "cudnn_conv1d_pad_to_nc1d",
            "device_id",
            "do_copy_in_default_stream",
            "enable_cuda_graph",
            "fuse_conv_bias",
            "gpu_mem_limit",
            "prefer_nhwc",
            "sdpa_kernel",
            "use_ep_level_unified_stream",
            "use_tf32",
        }
    ),
    "TensorrtExecutionProvider": frozenset(
        {
            "device_id",
            "trt_auxiliary_streams",
            "trt_bf16_enable",
            "trt_builder_optimization_level",
            "trt_context_memory_sharing_enable",
            "trt_cuda_graph_enable",
            "trt_detailed_build_log",
            "trt_fp16_enable",
            "trt_int8_enable",
            "trt_layer_norm_fp32_fallback",
            "trt_max_partition_iterations",
            "trt_max_workspace_size",
            "trt_min_subgraph_size",
            "trt_profile_max_shapes",
            "trt_profile_min_shapes",
            "trt_profile_opt_shapes",
            "trt_sparsity_enable",
        }
    ),
    "NvTensorRTRTXExecutionProvider": frozenset({"device_id", "enable_cuda_graph"}),
    "MIGraphXExecutionProvider": frozenset(
        {"device_id", "migraphx_fp16_enable", "migraphx_int8_enable", "migraphx_exhaustive_tune"}
    ),
    "OpenVINOExecutionProvider": frozenset(
        {
            "device_type",
            "disable_dynamic_shapes",
            "enable_qdq_optimizer",
            "model_priority",
            "num_of_threads",
            "num_streams",
            "precision",
        }
    ),
    "DnnlExecutionProvider": frozenset({"use_arena"}),
    "QNNExecutionProvider": frozenset(
        {
            "backend_type",
            "device_id",
            "enable_htp_fp16_precision",
            "htp_arch",
            "htp_graph_finalization_optimization_mode",
            "htp_performance_mode",
            "offload_graph_io_quantization",
            "qnn_context_priority",
            "rpc_control_latency",
            "soc_model",
            "vtcm_mb",
        }
    ),
    "CANNExecutionProvider": frozenset(
        {
            "arena_extend_strategy",
            "device_id",
            "do_copy_in_default_stream",
            "enable_cann_graph",
            "npu_mem_limit",
            "op_select_impl_mode",
            "precision_mode",
        }
    ),
    "CoreMLExecutionProvider": frozenset(
        {
            "AllowLowPrecisionAccumulationOnGPU",
            "EnableOnSubgraphs",
            "MLComputeUnits",
            "ModelFormat",
            "RequireStaticInputShapes",
            "SpecializationStrategy",
        }
    ),
    "DmlExecutionProvider": frozenset(
        {"device_id", "disable_metacommands", "performance_preference"}
    ),
    "NnapiExecutionProvider": frozenset({"NNAPI_FLAG_CPU_DISABLED", "NNAPI_FLAG_USE_FP16"}),
    "RknpuExecutionProvider": frozenset(),
    "VitisAIExecutionProvider": frozenset(),
    "VSINPUExecutionProvider": frozenset(),
    "WebGpuExecutionProvider": frozenset({"deviceId", "preferredLayout"}),
    "XnnpackExecutionProvider": frozenset({"intra_op_num_threads"}),
}
"""Options that a catalogue entry may set: no paths, no libraries, no addresses of memory.

AzureExecutionProvider is absent: it sends inputs to an address that the model names.
"""


def wanted(params: Mapping[str, Any]) -> list[str]:
    """Return the providers that a catalogue entry asks for, in order; the CPU by default.

    Raises:
        ModelUnavailable: No list, or a provider nobody knows; names it.
    """
    names = params.get("providers", [CPU])
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ModelUnavailable("'providers' must be a list of execution providers")
    for name in names:
        if name not in KNOWN:
            known = ", ".join(sorted(KNOWN))
            raise ModelUnavailable(f"there is no execution provider '{name}'; use {known}")
    return names


def options(params: Mapping[str, Any], operator: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the options of a provider: the catalogue's, and over them the operator's.

    Raises:
        ModelUnavailable: The catalogue sets one that is not its to set; names it.
    """
    given = params.get("provider_options", {})
    if not isinstance(given, Mapping) or not isinstance(given.get(name, {}), Mapping):
        raise ModelUnavailable("'provider_options' must hold options by name, by provider")
    for other in given:
        if other not in KNOWN:
            raise ModelUnavailable(f"'provider_options' names no execution provider: '{other}'")
    found = {}
    for option, value in given.get(name, {}).items():
        if option not in KNOWN[name]:
            allowed = ", ".join(sorted(KNOWN[name])) or "none"
            raise ModelUnavailable(
                f"a catalogue cannot set '{option}' of {name}, only: {allowed}; whoever runs the "
                "workers may, with CLAWDBOT_ONNX_PROVIDER_OPTIONS"
            )
        found[option] = _text(value, f"provider_options.{name}.{option}")
    return {**found, **operator.get(name, {})}


def read_operator(text: str) -> dict[str, dict[str, str]]:
    """Read the operator's options: JSON, options by name by provider.

    Raises:
        FailedPrecondition: Something else.
    """
    field = "CLAWDBOT_ONNX_PROVIDER_OPTIONS"
    try:
        document = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise FailedPrecondition(f"not JSON: {error}", field=field) from error
    if not isinstance(document, dict) or not all(isinstance(v, dict) for v in document.values()):
        raise FailedPrecondition(
            'an object of objects: {"QNNExecutionProvider": {"backend_path": "..."}}', field=field
        )
    for name in document:
        if name not in KNOWN:
            raise FailedPrecondition(f"there is no execution provider '{name}'", field=field)
    try:
        return {
            name: {option: _text(value, option) for option, value in given.items()}
            for name, given in document.items()
        }
    except ModelUnavailable as error:
        raise FailedPrecondition(error.message, field=field) from error


def _text(value: object, where: str) -> str:
    """Return an option's value as onnxruntime takes it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int | float | str) and len(str(value)) <= OPTION_CHARS_MAX:
        return str(value)
    raise ModelUnavailable(
        f"'{where}' must be a number, true, false, or at most {OPTION_CHARS_MAX} characters"
    )
