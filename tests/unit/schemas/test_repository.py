"""The index of the model repository: what names mean, and what orders make of it."""

from collections import Counter
from typing import Any

import pytest

from schemas.catalogue import Catalogue, ModelSpec
from schemas.errors import ClawdbotError, FailedPrecondition, InvalidArgument, NotFound
from schemas.live_catalogue import LiveCatalogue
from schemas.pushes import check_spec, digest_of, port_name, same_shape
from schemas.repository import (
    VERSIONS_MAX,
    ModelControl,
    ModelFile,
    ModelRecord,
    ModelVersion,
    Push,
    VersionPolicy,
    check_name,
    split,
)


def spec(**update: Any) -> ModelSpec:
    """Return a spec of the engine `onnx`."""
    port = {"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 2]}
    document = {"modality": "text", "engine": "onnx", "inputs": [port], "outputs": [port]}
    return ModelSpec.model_validate({**document, **update})


def grown(record: ModelRecord, **push: Any) -> ModelRecord:
    """Return a record with one more version."""
    number = record.next_version
    version = ModelVersion(version=number, digest=f"d{number}", spec=spec(), pushed_at=1.0)
    return record.pushed(version, Push(spec=spec(), **push))


def record(versions: int = 3) -> ModelRecord:
    """Return a record with some versions, the last in use."""
    found = ModelRecord(name="iris")
    for _ in range(versions):
        found = grown(found)
    return found


def order(action: str, **details: Any) -> ModelControl:
    """Return an order."""
    return ModelControl.model_validate({"action": action, **details})


def test_a_push_is_in_use_and_can_be_taken_back() -> None:
    """Instantly, and forth again."""
    found = record(2)
    assert (2, 1) == (found.current, found.previous)
    back = found.obey(order("rollback"))
    assert (1, 2) == (back.current, back.previous)
    assert 2 == back.obey(order("promote")).current
    with pytest.raises(FailedPrecondition, match="no version to go back to"):
        record(1).obey(order("rollback"))


def test_a_push_that_is_held_changes_nothing_in_use() -> None:
    """It waits to be promoted; the very first one as well."""
    held = grown(record(1), hold=True)
    assert (1, 2) == (held.current, len(held.versions))
    first = grown(ModelRecord(name="iris"), hold=True)
    with pytest.raises(NotFound, match="no version of model 'iris' is in use"):
        first.find("")
    assert 1 == first.obey(order("promote")).current


def test_a_canary_gets_its_part_by_key() -> None:
    """Close to the percentage over many keys, the same version for the same key, always."""
    found = grown(record(1), percent=20).obey(order("canary", version=2, percent=30))
    keys = [f"run-{number}" for number in range(4000)]
    drawn = Counter(found.choose(key).version for key in keys)
    assert 0.27 < drawn[2] / len(keys) < 0.33
    assert all(found.choose(key) == found.choose(key) for key in keys[:50])


def test_a_rollback_ends_canaries_first() -> None:
    """The version in use stays; only then is there a way further back."""
    found = grown(record(2), percent=10)
    assert [3] == [canary.version for canary in found.canaries]
    ended = found.obey(order("rollback"))
    assert ((), 2) == (ended.canaries, ended.current)
    assert 1 == ended.obey(order("rollback")).current


def test_canaries_share_what_there_is() -> None:
    """More than 100 percent is refused; 100 is a promotion, 0 ends one."""
    found = record(3).obey(order("canary", version=1, percent=60))
    with pytest.raises(InvalidArgument, match="more than 100 percent"):
        found.obey(order("canary", version=2, percent=50))
    assert () == found.obey(order("canary", version=1, percent=0)).canaries
    whole = found.obey(order("canary", version=2, percent=100))
    assert (2, ()) == (whole.current, whole.canaries)
    with pytest.raises(FailedPrecondition, match="another version in use"):
        found.obey(order("canary", version=3, percent=5))


@pytest.mark.parametrize(
    ("details", "wrong", "text"),
    [
        ({"action": "alias", "alias": "stable", "version": 9}, NotFound, "it has 1, 2, 3"),
        ({"action": "alias", "alias": "Stable!", "version": 1}, InvalidArgument, "lower-case"),
        ({"action": "alias", "alias": "7", "version": 1}, InvalidArgument, "a letter first"),
        ({"action": "unalias", "alias": "gone"}, NotFound, "no alias 'gone'"),
        ({"action": "promote", "version": 4}, NotFound, "no version 4"),
        (
            {"action": "policy", "policy": VersionPolicy(keep="specific", versions=(5,))},
            NotFound,
            "no version 5",
        ),
    ],
)
def test_orders_that_do_not_fit(
    details: dict[str, Any], wrong: type[ClawdbotError], text: str
) -> None:
    """Each says what there is instead."""
    with pytest.raises(wrong, match=text):
        record().obey(ModelControl.model_validate(details))


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({"action": "alias", "version": 1}, "needs a field 'alias'"),
        ({"action": "canary", "percent": 5}, "needs a field 'version'"),
        ({"action": "policy"}, "needs a field 'policy'"),
        ({"action": "explode"}, "'alias', 'unalias'"),
        ({"action": "canary", "version": 1, "percent": 101}, "less than or equal to 100"),
    ],
)
def test_orders_that_are_none(details: dict[str, Any], text: str) -> None:
    """Refused before any record is read."""
    with pytest.raises(ValueError, match=text):
        ModelControl.model_validate(details)


def offered(found: ModelRecord) -> list[int]:
    """Return the numbers of the versions that workers keep ready."""
    return [item.version for item in found.offered()]


def test_a_policy_adds_to_what_is_in_use() -> None:
    """In use, the one before, canaries and aliases are kept ready under any policy."""
    found = record(5)
    assert [4, 5] == offered(found)
    assert [1, 4, 5] == offered(found.obey(order("alias", alias="old", version=1)))
    assert [2, 4, 5] == offered(found.obey(order("canary", version=2, percent=5)))
    assert [1, 2, 3, 4, 5] == offered(found.obey(order("policy", policy=VersionPolicy(keep="all"))))
    latest = VersionPolicy(keep="latest", count=3)
    assert [3, 4, 5] == offered(found.obey(order("policy", policy=latest)))
    some = VersionPolicy(keep="specific", versions=(2,))
    assert [2, 4, 5] == offered(found.obey(order("policy", policy=some)))
    assert [] == offered(found.obey(order("unload")))


def test_what_a_removal_leaves() -> None:
    """Nothing names what is gone, and its number is never used again."""
    found = record(3).obey(order("alias", alias="stable", version=2))
    assert ["the alias 'stable'"] == found.uses(2)
    assert ["it is the one in use: promote another one first"] == found.uses(3)
    left = found.removed(2)
    assert ({}, 3, 0) == (left.aliases, left.current, left.previous)
    forced = found.removed(3)
    assert (2, 0) == (forced.current, forced.previous)
    emptied = record(1).removed(1)
    assert ((), 2) == (emptied.versions, emptied.next_version)
    assert 2 == grown(emptied).current


def test_versions_have_an_end() -> None:
    """Old ones are to be removed first."""
    full = record(VERSIONS_MAX)
    with pytest.raises(ClawdbotError, match="remove old ones first"):
        grown(full)


def test_a_newer_copy_of_a_record_wins() -> None:
    """In whichever order they arrive: a slow replica cannot take anything back."""
    old, new = record(1), record(2)
    live = LiveCatalogue(Catalogue(models={}))
    assert live.merge([new])
    assert not live.merge([old])
    assert "iris@2" == live.concrete("iris", "")


def test_names_of_the_live_catalogue() -> None:
    """One for the version in use, one for each that is kept ready, one for each alias."""
    base = Catalogue(models={"echo": spec()})
    live = LiveCatalogue(base)
    live.merge([record(3).obey(order("alias", alias="stable", version=1))])
    assert ["echo", "iris", "iris@1", "iris@2", "iris@3", "iris@stable"] == sorted(live.now.models)
    assert "3" == live.now.models["iris"].version
    assert {"iris@1", "iris@2", "iris@3"} == live.offered
    assert "iris@1" == live.concrete("iris@stable", "any")
    assert "echo" == live.concrete("echo", "any")
    assert "nobody" == live.concrete("nobody", "any")
    with pytest.raises(NotFound, match="no alias 'beta'"):
        live.concrete("iris@beta", "any")


def test_the_catalogues_own_models_cannot_be_shadowed() -> None:
    """A record of the same name, however it came there, changes nothing."""
    base = Catalogue(models={"iris": spec(description="the operator's")})
    live = LiveCatalogue(base)
    live.merge([record(2)])
    assert "the operator's" == live.now.models["iris"].description
    assert "iris" == live.concrete("iris", "any")


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "/etc", "a\\b", "a\0b", "a@1", "%2e%2e", ".hidden", "a" * 65, "a\n"]
)
def test_names_that_a_model_cannot_have(name: str) -> None:
    """None is a path, a reference, or longer than a token."""
    with pytest.raises(InvalidArgument, match="use 1 to 64"):
        check_name(name)


@pytest.mark.parametrize(
    ("update", "paths", "text"),
    [
        ({"engine": "http"}, [], "no models of yours"),
        ({"fallback": "echo"}, [], "no stand-in"),
        ({"params": {"provider_options": {}}}, [], "operator sets 'provider_options'"),
        ({"source": "b.onnx"}, ["a.onnx"], "the source is one of the files"),
        ({"source": "../a.onnx"}, ["a.onnx"], "the source is one of the files"),
        ({"source": "a.onnx"}, [], "there are no files"),
        ({"source": "a.pt2"}, ["a.pt2"], "only the engine torch"),
    ],
)
def test_specs_that_a_pushed_model_cannot_have(
    update: dict[str, Any], paths: list[str], text: str
) -> None:
    """What reaches outside of its own files is the operator's."""
    with pytest.raises(InvalidArgument, match=text):
        check_spec(spec(**update), paths)


def test_content_names_a_version() -> None:
    """The same spec and files have the same digest, in whichever order; another byte another."""
    files = [
        ModelFile(path=path, size_bytes=1, sha256=letter * 64, parts=(letter * 64,))
        for path, letter in (("a.json", "a"), ("b.json", "b"))
    ]
    assert digest_of(spec(), files) == digest_of(spec(version="9"), files[::-1])
    assert digest_of(spec(), files) != digest_of(spec(), files[:1])


def test_signatures_that_bind_alike() -> None:
    """Sizes may differ; names, types and ranks may not."""
    wide = [{"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1, 9]}]
    flat = [{"name": "x", "kind": "tensor", "datatype": "FP32", "shape": [-1]}]
    assert same_shape(spec(), spec(inputs=wide))
    assert not same_shape(spec(), spec(inputs=flat))


@pytest.mark.parametrize(
    ("tensor", "name"), [("X", "x"), ("input:0", "input_0"), ("0", "t_0"), ("_x", "t__x")]
)
def test_names_of_tensors_in_workflows(tensor: str, name: str) -> None:
    """Whatever a file calls them, workflows can."""
    assert name == port_name(tensor)


def test_a_name_is_split_once() -> None:
    """At the first sign."""
    assert [("iris", "3"), ("iris", "")] == [split("iris@3"), split("iris")]
