"""Makes ONNX models of other models, and smaller ones of those; and says how far they are apart.

Nothing is written where a model differs from its source by more than it may. Needs the extras
`convert` and `models`; torch and transformers only where the source is theirs.
"""

from clawdbot.conversion.converting import Conversion, convert
from clawdbot.conversion.quantizing import Quantization, quantize


__all__ = ["Conversion", "Quantization", "convert", "quantize"]
