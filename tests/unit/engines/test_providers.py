"""Execution providers: known by name, and set by a catalogue only as far as that is harmless."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import FailedPrecondition, ModelUnavailable
from services.workers.app import engine_settings
from services.workers.engines import providers
from services.workers.engines.onnx import OnnxEngine
from services.workers.settings import WorkerSettings
from tests.support import onnx_models as tiny


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_every_provider_of_onnxruntime_is_known() -> None:
    """But those of browsers, and the one that sends inputs to an address in the model."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `models` is not installed")
    elsewhere = {"AzureExecutionProvider", "JsExecutionProvider", "WebNNExecutionProvider"}
    assert set(onnxruntime.get_all_providers()) - elsewhere <= set(providers.KNOWN)
    assert not elsewhere & set(providers.KNOWN)


@pytest.mark.parametrize("name", ["cuda", "AzureExecutionProvider", "CUDAExecutionProvidr"])
def test_an_unknown_provider(name: str) -> None:
    """Is a mistake of the catalogue, told with those there are."""
    with pytest.raises(ModelUnavailable, match=f"no execution provider '{name}'; use .*CANN"):
        providers.wanted({"providers": [name]})


def test_options_reach_the_provider_as_text() -> None:
    """The operator's go over the catalogue's."""
    params = {"provider_options": {CUDA: {"device_id": 1, "use_tf32": False}}}
    assert {"device_id": "1", "use_tf32": "0"} == providers.options(params, {}, CUDA)
    operator = {CUDA: {"device_id": "0", "gpu_external_alloc": "1"}}
    found = providers.options(params, operator, CUDA)
    assert {"device_id": "0", "use_tf32": "0", "gpu_external_alloc": "1"} == found
    assert {} == providers.options(params, operator, CPU)


@pytest.mark.parametrize(
    ("provider", "option"),
    [
        ("QNNExecutionProvider", "backend_path"),
        ("TensorrtExecutionProvider", "trt_extra_plugin_lib_paths"),
        ("TensorrtExecutionProvider", "trt_engine_cache_path"),
        ("OpenVINOExecutionProvider", "load_config"),
        ("CUDAExecutionProvider", "gpu_external_alloc"),
        ("CUDAExecutionProvider", "user_compute_stream"),
        ("VitisAIExecutionProvider", "config_file"),
    ],
)
def test_what_a_catalogue_cannot_set(provider: str, option: str, tmp_path: Path) -> None:
    """Libraries, files and addresses of memory; the card says whose they are to set."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    params = {"providers": [provider], "provider_options": {provider: {option: "/tmp/evil.so"}}}  # noqa: S108
    ports = [tiny.port("X", "FP32", [-1, 2])], [tiny.port("Y", "FP32", [-1, 2])]
    made = OnnxEngine(tiny.spec(tiny.entry("m.onnx", *ports, params=params)), tmp_path)
    assert f"cannot set '{option}' of {provider}" in (made.missing() or "")
    with pytest.raises(ModelUnavailable, match="CLAWDBOT_ONNX_PROVIDER_OPTIONS"):
        made.load()


@pytest.mark.parametrize(
    "given", [7, {CUDA: 7}, {"nobody": {}}, {CUDA: {"device_id": [1]}}, {CUDA: {"device_id": None}}]
)
def test_options_that_are_none(given: Any) -> None:
    """Are a mistake of the catalogue."""
    with pytest.raises(ModelUnavailable):
        providers.options({"provider_options": given}, {}, CUDA)


def test_the_operators_options() -> None:
    """Come from a setting, and win over what a catalogue claims they are."""
    text = '{"QNNExecutionProvider": {"backend_path": "libQnnHtp.so"}}'
    settings = WorkerSettings(onnx_provider_options=text)
    fixed = engine_settings(settings)["onnx"]["operator_options"]
    assert {"QNNExecutionProvider": {"backend_path": "libQnnHtp.so"}} == fixed
    assert {} == engine_settings(WorkerSettings())["onnx"]["operator_options"]


@pytest.mark.parametrize("text", ["{", "[]", '{"CUDAExecutionProvider": 1}', '{"no": {}}',
                                  '{"CUDAExecutionProvider": {"device_id": []}}'])  # fmt: skip
def test_an_operators_mistake(text: str) -> None:
    """Keeps the worker from starting, by the name of the variable."""
    with pytest.raises(FailedPrecondition) as caught:
        providers.read_operator(text)
    assert "CLAWDBOT_ONNX_PROVIDER_OPTIONS" == caught.value.field


@pytest.mark.parametrize("threads", [0, "many", 1000])
def test_threads_are_a_number(threads: Any, tmp_path: Path) -> None:
    """Anything else is the catalogue's mistake, not the end of the worker."""
    tiny.save(tiny.identity("FP32"), tmp_path / "m.onnx")
    ports = [tiny.port("X", "FP32", [-1, 2])], [tiny.port("Y", "FP32", [-1, 2])]
    document = tiny.entry("m.onnx", *ports, params={"threads": threads})
    with pytest.raises(ModelUnavailable, match="'threads' must be a number"):
        OnnxEngine(tiny.spec(document), tmp_path).load()
