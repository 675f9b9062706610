"""What a client may change of a model's configuration, and what belongs to its files."""

from typing import Any

import pytest

from schemas.catalogue import ModelSpec
from schemas.errors import InvalidArgument
from schemas.repository import VersionPolicy
from services.gateway.inference import overrides
from services.gateway.inference.config import model_config


SPEC = ModelSpec.model_validate(
    {
        "modality": "text",
        "engine": "onnx",
        "source": "m.onnx",
        "version": "3",
        "max_batch_size": 4,
        "inputs": [{"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}],
    }
)


def test_what_config_says_changes_nothing() -> None:
    """Clients send it back with what they want changed."""
    config = model_config("m", SPEC)
    assert SPEC == overrides.overridden("m", SPEC, config)
    assert overrides.policy("m", SPEC, config) is None
    assert SPEC == overrides.overridden("m", SPEC, {})


def test_what_may_be_changed() -> None:
    """Rows of a call, the response cache, and which versions are kept ready."""
    changes = {"max_batch_size": 0, "response_cache": {"enable": True}}
    found = overrides.overridden("m", SPEC, model_config("m", SPEC) | changes)
    assert (0, True) == (found.max_batch_size, found.cache_responses)
    found = overrides.overridden("m", SPEC, {"dynamic_batching": {overrides.DELAY: 100}})
    assert SPEC.model_copy(update={"max_queue_delay_us": 100}) == found
    assert SPEC == overrides.overridden("m", found, model_config("m", SPEC))
    for said, keep in (
        ({"latest": {"num_versions": 2}}, VersionPolicy(keep="latest", count=2)),
        ({"all": {}}, VersionPolicy(keep="all")),
        ({"specific": {"versions": [1, 2]}}, VersionPolicy(keep="specific", versions=(1, 2))),
    ):
        order = overrides.policy("m", SPEC, {"version_policy": said})
        assert order is not None
        assert keep == order.policy


@pytest.mark.parametrize(
    "config",
    [
        {"backend": "python"},
        {"input": []},
        {"instance_group": [{"kind": "KIND_GPU"}]},
        {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "/x.tar.gz"}}},
        {"default_model_filename": "/etc/passwd"},
        {"dynamic_batching": {"max_queue_delay_microseconds": -1}},
        {"dynamic_batching": {"max_queue_delay_microseconds": "100"}},
        {"dynamic_batching": {"preferred_batch_size": [4]}},
        {"dynamic_batching": {"preserve_ordering": True}},
        {"dynamic_batching": 100},
        {"max_batch_size": 0, "dynamic_batching": {"max_queue_delay_microseconds": 100}},
        {"max_batch_size": "many"},
        {"max_batch_size": -1},
        {"response_cache": True},
        {"version_policy": {"latest": True}},
        {"version_policy": {"latest": {}, "all": {}}},
        {"version_policy": {"newest": {}}},
        {"version_policy": {}},
        {"version_policy": 7},
    ],
)
def test_what_may_not(config: dict[str, Any]) -> None:
    """Names what it is."""
    with pytest.raises(InvalidArgument) as caught:
        overrides.policy("m", overrides.overridden("m", SPEC, config), config)
    assert str(caught.value.field).startswith("parameters.config")


@pytest.mark.parametrize("text", [None, 7, "", "no", "[]", "1"])
def test_what_is_no_configuration(text: object) -> None:
    """A JSON object, as a text."""
    with pytest.raises(InvalidArgument, match="send a JSON object"):
        overrides.read(text)
