"""How far a converted or quantised model is from the one it was made of: what is stored with it."""

from typing import Literal

from pydantic import Field

from schemas.message import UserInput


SOURCE_CHARS_MAX = 256


class Tolerance(UserInput):
    """What a model may differ by; a number is off where |new - old| > atol + rtol |old|."""

    atol: float | None = Field(default=1e-4, ge=0, strict=False)
    """None: single numbers may differ by any amount."""
    rtol: float = Field(default=1e-3, ge=0, strict=False)
    cosine_min: float = Field(default=0.9999, ge=-1, le=1, strict=False)
    """Smallest cosine of an output, all of its numbers taken as one vector."""
    agreement_min: float = Field(default=1.0, ge=0, le=1, strict=False)
    """Smallest share of equal elements, for outputs of integers, truth values and texts."""


class OutputParity(UserInput):
    """One output, over everything that was compared."""

    elements: int = Field(ge=0)
    max_abs: float | None = None
    """Largest difference; None for texts."""
    max_rel: float | None = None
    """Largest difference by the old value, where that is not 0."""
    mean_abs: float | None = None
    cosine: float | None = None
    """None where all is 0 on one side, and for integers, truth values and texts."""
    differing: int = Field(default=0, ge=0)
    """Elements beyond atol and rtol; of integers, truth values and texts those that differ."""
    passed: bool = True


class Parity(UserInput):
    """A comparison with the model that this one was made of."""

    made: Literal["convert", "quantize dynamic", "quantize static"]
    source: str = Field(max_length=SOURCE_CHARS_MAX)
    """What it was made of: the name of a file or folder, or `module:function`."""
    source_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of a source that is one file."""
    opset: int = Field(ge=1)
    inputs: str = Field(max_length=SOURCE_CHARS_MAX)
    """What was compared on: a file of examples, or random numbers."""
    rows: int = Field(ge=1)
    """How many requests' worth of inputs that was."""
    tolerance: Tolerance
    outputs: dict[str, OutputParity]
    passed: bool


class Speed(UserInput):
    """Medians of calls that took turns, milliseconds, one thread."""

    rows: int = Field(ge=1)
    """Of one call."""
    calls: int = Field(ge=1)
    """Of each."""
    source_ms: float
    model_ms: float


class Accuracy(UserInput):
    """Share of labelled rows whose likeliest class is the label."""

    rows: int = Field(ge=1)
    output: str
    source: float
    model: float
    drop_max: float
    passed: bool


class Report(UserInput):
    """The file `parity.json` of a model."""

    format: Literal["clawdbot.parity/1"] = "clawdbot.parity/1"
    parity: Parity
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source_bytes: int = Field(ge=0)
    model_bytes: int = Field(ge=0)
    speed: tuple[Speed, ...] = Field(default=(), strict=False)
    accuracy: Accuracy | None = None
    calibration: str | None = None
    """Of a static quantisation: what the ranges of values were taken from."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that took part."""

    @property
    def passed(self) -> bool:
        """Tell whether everything that was asked for holds."""
        return self.parity.passed and (self.accuracy is None or self.accuracy.passed)
