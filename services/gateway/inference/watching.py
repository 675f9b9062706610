"""What a gateway writes down about inferences, as the protocol's trace and log settings say.

They are those of one process: another gateway has its own, and a restart forgets them. What is
meant for the whole mesh and for good is configuration.

Source: Triton's extensions trace and logging.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.errors import InvalidArgument
from schemas.inference_management import LogSettings, TraceSettings
from services.telemetry import SILENCED, get_logger


log = get_logger()

_FIXED = {"trace_file": "", "log_frequency": "0", "trace_mode": "triton"}
_LEVELS = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
_LOG_FIXED: dict[str, Any] = {"log_file": "", "log_verbose_level": 0, "log_format": "default"}
COUNT_MAX = 2**31 - 1
"""Of `trace_rate` and `trace_count`."""


@dataclass
class _Trace:
    """The settings of one model, or of all."""

    on: bool = False
    rate: int = 1000
    count: int = -1
    seen: int = 0

    def document(self) -> dict[str, Any]:
        """Return them as the protocol has them: words, and numbers written as words."""
        return {
            "trace_level": ["TIMESTAMPS" if self.on else "OFF"],
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
            **_FIXED,
        }

    def is_next(self) -> bool:
        """Tell whether this inference is one to write about."""
        if not self.on or not self.count:
            return False
        self.seen += 1
        if (self.seen - 1) % self.rate:
            return False
        self.count -= self.count > 0
        return True


@dataclass
class Traces:
    """Which inferences are written about: those of a model by its own settings, else by all's."""

    _all: _Trace = field(default_factory=_Trace)
    _own: dict[str, _Trace] = field(default_factory=dict)

    def settings(self, model: str = "") -> dict[str, Any]:
        """Return the settings that hold for a model, or for all."""
        return self._own.get(model, self._all).document()

    def change(self, change: TraceSettings, model: str = "") -> dict[str, Any]:
        """Change settings, and return them; one that is null becomes what it is without it.

        Raises:
            InvalidArgument: A setting that does not work here; names it.
        """
        trace, made = self._own.get(model, self._all), self._all if model else _Trace()
        kept = {"trace_level": "on", "trace_rate": "rate", "trace_count": "count"}
        own = [place for name, place in kept.items() if name not in change.model_fields_set]
        made = replace(made, seen=0, **{place: getattr(trace, place) for place in own})
        for name, fixed in _FIXED.items():
            _check_fixed(name, getattr(change, name), fixed)
        if change.trace_level is not None:
            if set(change.trace_level) not in ({"OFF"}, {"TIMESTAMPS"}):
                raise InvalidArgument("use OFF or TIMESTAMPS", field="trace_level")
            made.on = "TIMESTAMPS" in change.trace_level
        if change.trace_rate is not None:
            made.rate = _number("trace_rate", change.trace_rate, 1)
        if change.trace_count is not None:
            made.count = _number("trace_count", change.trace_count, -1)
        if model:
            self._own[model] = made
        else:
            self._all = made
        return made.document()

    def note(self, model: str, request_id: str, times: Mapping[str, float]) -> None:
        """Write about an inference, if it is its turn.

        Args:
            model: Which one was asked.
            request_id: As in the other lines about it.
            times: Seconds of each step.
        """
        if self._own.get(model, self._all).is_next():
            spent = {f"{step}_ms": round(took_s * 1000, 3) for step, took_s in times.items()}
            log.info("inference_traced", model=model, request_id=request_id, **spent)


def log_settings() -> dict[str, Any]:
    """Return what this process writes into its log."""
    levels = {name: level not in SILENCED for name, level in _LEVELS.items()}
    return {**_LOG_FIXED, **levels}


def change_log(change: LogSettings) -> dict[str, Any]:
    """Change which levels are written, and return the settings.

    Raises:
        InvalidArgument: A setting that does not work here; names it.
    """
    for name, fixed in _LOG_FIXED.items():
        _check_fixed(name, getattr(change, name), fixed)
    for name, level in _LEVELS.items():
        wanted = getattr(change, name)
        if wanted is not None:
            (SILENCED.discard if wanted else SILENCED.add)(level)
    return log_settings()


def _check_fixed(name: str, value: object, fixed: object) -> None:
    if value is not None and value != fixed:
        raise InvalidArgument(f"only {fixed!r} works here", field=name)


def _number(name: str, text: str, least: int) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(COUNT_MAX))):
        raise InvalidArgument("send a whole number", field=name)
    number = int(text)
    if not least <= number <= COUNT_MAX:
        raise InvalidArgument(f"send {least} to {COUNT_MAX}", field=name)
    return number
