"""The grammar of subjects."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import subjects
from events.subjects import RunKey, decode, encode, part, run_key, tenant_and_name
from schemas.errors import InvalidArgument


KEY = RunKey("acme", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@given(st.text(min_size=1))
def test_encode_round_trip(name: str) -> None:
    """Any name is one plain token and comes back."""
    token = encode(name)
    assert TOKEN.fullmatch(token)
    assert name == decode(token)


@given(st.text(), st.text())
def test_encode_is_injective(one: str, other: str) -> None:
    """Different names are different tokens."""
    assert (one == other) == (encode(one) == encode(other))


def test_encode_keeps_plain_names() -> None:
    """Names stay readable on the wire."""
    assert "whisper-large_v3" == encode("whisper-large_v3")
    assert "openai=2fwhisper-v1=2e5" == encode("openai/whisper-v1.5")


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_part_is_in_range(run_id: str) -> None:
    """Parts are 0 to 63."""
    assert 0 <= part(run_id) < subjects.PARTS


@pytest.mark.parametrize(
    ("run_id", "digest"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)]
)
def test_part_is_fnv_1a(run_id: str, digest: int) -> None:
    """The published test vectors of 32-bit FNV-1a, modulo 64."""
    assert digest % 64 == part(run_id)


@pytest.mark.parametrize("make", [subjects.event, subjects.live, subjects.result])
def test_run_key_round_trip(make: object) -> None:
    """Tenant and run are read back out of their subjects."""
    assert callable(make)
    assert KEY == run_key(make(KEY))


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "a.b",
        subjects.submit("acme", "w"),
        subjects.control(KEY),
        subjects.due(KEY),
        subjects.event(KEY) + ".x",
    ],
)
def test_other_subjects_have_no_run(subject: str) -> None:
    """A subject of another kind is refused."""
    with pytest.raises(InvalidArgument):
        run_key(subject)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("w", subjects.submit("acme", "w")),
        ("w", subjects.call("acme", "w")),
        (KEY.run_id, subjects.control(KEY)),
    ],
)
def test_tenant_and_name(name: str, subject: str) -> None:
    """Tenant and last token are read back."""
    assert ("acme", name) == tenant_and_name(subject)


def test_task_subject_has_a_fixed_depth() -> None:
    """A model name with dots cannot reach into another level."""
    made = subjects.task("acme", "audio", "default", "normal", "a.b/c")
    assert f"{subjects.ROOT}.acme.task.audio.default.normal.a=2eb=2fc" == made


def test_filters_match_what_they_should() -> None:
    """`every` spans the tenants of one kind."""
    assert f"{subjects.ROOT}.*.submit.*" == subjects.every("submit", "*")
    assert f"{subjects.ROOT}.*.task.>" == subjects.every("task")
