"""The engines, one library each, found by the name the catalogue uses.

Importing this package imports none of them; `engine_class` imports the one that is asked for.
"""

from importlib import import_module

from schemas.errors import NotFound
from services.workers.engine import AnyEngine


_CLASSES = {
    "echo": ("services.workers.engines.echo", "EchoEngine"),
    "embedding": ("services.workers.engines.embedding", "EmbeddingEngine"),
    "espeak": ("services.workers.engines.espeak", "EspeakEngine"),
    "http": ("services.workers.engines.http", "HttpEngine"),
    "intent": ("services.workers.engines.intent", "IntentEngine"),
    "onnx": ("services.workers.engines.onnx", "OnnxEngine"),
    "pocketsphinx": ("services.workers.engines.pocketsphinx", "PocketsphinxEngine"),
    "ranking": ("services.workers.engines.ranking", "RankingEngine"),
    "rapidocr": ("services.workers.engines.rapidocr", "RapidocrEngine"),
    "repeat": ("services.workers.engines.repeat", "RepeatEngine"),
    "silero": ("services.workers.engines.silero", "SileroEngine"),
    "template": ("services.workers.engines.template", "TemplateEngine"),
    "transformers_classifier": (
        "services.workers.engines.transformers_classifier",
        "TransformersClassifierEngine",
    ),
    "transformers_speech": (
        "services.workers.engines.transformers_speech",
        "TransformersSpeechEngine",
    ),
    "transformers_whisper": (
        "services.workers.engines.transformers_whisper",
        "TransformersWhisperEngine",
    ),
}

ENGINE_NAMES = tuple(_CLASSES)


def engine_class(name: str) -> type[AnyEngine]:
    """Return the engine called `name`, importing its module and nothing heavier.

    Raises:
        NotFound: No such engine.
    """
    try:
        module, attribute = _CLASSES[name]
    except KeyError:
        known = ", ".join(ENGINE_NAMES)
        raise NotFound(f"no engine named '{name}'; known: {known}", field="engine") from None
    found: type[AnyEngine] = getattr(import_module(module), attribute)
    return found
