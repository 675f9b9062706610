"""The messages of the protocol's extensions over gRPC, in the form `protobuf` reads.

Source: grpc_service.proto and model_config.proto of Triton, package inference.
"""

_SETTING = ("bool bool_param 1 one", "uint32 uint32_param 2 one", "string string_param 3 one")
_NO_FIELDS: tuple[str, ...] = ()

ENUMS = {
    "DataType": (
        "TYPE_INVALID",
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_UINT16",
        "TYPE_UINT32",
        "TYPE_UINT64",
        "TYPE_INT8",
        "TYPE_INT16",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_FP32",
        "TYPE_FP64",
        "TYPE_STRING",
        "TYPE_BF16",
    ),
    "InputFormat": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
}
"""Names by number; `InputFormat` is ModelInput.Format, on the wire the same."""

MANAGEMENT: dict[str, tuple[str, ...]] = {
    "StatisticDuration": ("uint64 count 1", "uint64 ns 2"),
    "InferStatistics": (
        "StatisticDuration success 1",
        "StatisticDuration fail 2",
        "StatisticDuration queue 3",
        "StatisticDuration compute_input 4",
        "StatisticDuration compute_infer 5",
        "StatisticDuration compute_output 6",
        "StatisticDuration cache_hit 7",
        "StatisticDuration cache_miss 8",
    ),
    "InferBatchStatistics": (
        "uint64 batch_size 1",
        "StatisticDuration compute_input 2",
        "StatisticDuration compute_infer 3",
        "StatisticDuration compute_output 4",
    ),
    "ModelStatistics": (
        "string name 1",
        "string version 2",
        "uint64 last_inference 3",
        "uint64 inference_count 4",
        "uint64 execution_count 5",
        "InferStatistics inference_stats 6",
        "InferBatchStatistics[] batch_stats 7",
    ),
    "ModelStatisticsRequest": ("string name 1", "string version 2"),
    "ModelStatisticsResponse": ("ModelStatistics[] model_stats 1",),
    "ModelVersionPolicy": ("ModelVersionPolicy.Specific specific 3",),
    "ModelVersionPolicy.Specific": ("int64[] versions 1",),
    "ModelInput": (
        "string name 1",
        "DataType data_type 2",
        "InputFormat format 3",
        "int64[] dims 4",
        "bool is_shape_tensor 6",
        "bool allow_ragged_batch 7",
        "bool optional 8",
    ),
    "ModelOutput": (
        "string name 1",
        "DataType data_type 2",
        "int64[] dims 3",
        "string label_filename 4",
        "bool is_shape_tensor 6",
    ),
    "ModelDynamicBatching": (
        "uint64 max_queue_delay_microseconds 2",
        "bool preserve_ordering 3",
        "uint64 priority_levels 4",
        "uint64 default_priority_level 5",
    ),
    "ModelSequenceBatching": (
        "uint64 max_sequence_idle_microseconds 1",
        "ModelSequenceBatching.State[] state 5",
    ),
    "ModelSequenceBatching.State": (
        "string input_name 1",
        "string output_name 2",
        "DataType data_type 3",
        "int64[] dims 4",
    ),
    "ModelTransactionPolicy": ("bool decoupled 1",),
    "ModelResponseCache": ("bool enable 1",),
    "ModelConfig": (
        "string name 1",
        "string platform 2",
        "ModelVersionPolicy version_policy 3",
        "int32 max_batch_size 4",
        "ModelInput[] input 5",
        "ModelOutput[] output 6",
        "string default_model_filename 8",
        "ModelDynamicBatching dynamic_batching 11",
        "ModelSequenceBatching sequence_batching 13",
        "string backend 17",
        "ModelTransactionPolicy model_transaction_policy 19",
        "ModelResponseCache response_cache 24",
    ),
    "ModelConfigRequest": ("string name 1", "string version 2"),
    "ModelConfigResponse": ("ModelConfig config 1",),
    "TraceSettingRequest": (
        "map TraceSettingRequest.SettingValue settings 1",
        "string model_name 2",
    ),
    "TraceSettingRequest.SettingValue": ("string[] value 1",),
    "TraceSettingResponse": ("map TraceSettingResponse.SettingValue settings 1",),
    "TraceSettingResponse.SettingValue": ("string[] value 1",),
    "LogSettingsRequest": ("map LogSettingsRequest.SettingValue settings 1",),
    "LogSettingsRequest.SettingValue": _SETTING,
    "LogSettingsResponse": ("map LogSettingsResponse.SettingValue settings 1",),
    "LogSettingsResponse.SettingValue": _SETTING,
    "SystemSharedMemoryStatusRequest": ("string name 1",),
    "SystemSharedMemoryStatusResponse": (
        "map SystemSharedMemoryStatusResponse.RegionStatus regions 1",
    ),
    "SystemSharedMemoryStatusResponse.RegionStatus": (
        "string name 1",
        "string key 2",
        "uint64 offset 3",
        "uint64 byte_size 4",
    ),
    "SystemSharedMemoryRegisterRequest": (
        "string name 1",
        "string key 2",
        "uint64 offset 3",
        "uint64 byte_size 4",
    ),
    "SystemSharedMemoryRegisterResponse": _NO_FIELDS,
    "SystemSharedMemoryUnregisterRequest": ("string name 1",),
    "SystemSharedMemoryUnregisterResponse": _NO_FIELDS,
}
