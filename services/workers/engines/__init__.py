"""The engines, one library each, found by the name the catalogue uses.

Importing this package imports none of them; `engine_class` imports the one that is asked for. Those
of other packages are found by `plugins`.
"""

from importlib import import_module
from pathlib import Path

from schemas.catalogue import ModelSpec
from schemas.errors import FailedPrecondition, NotFound
from services.workers.engine import AnyEngine
from services.workers.engines import plugins


_CLASSES = {
    "echo": ("services.workers.engines.echo", "EchoEngine"),
    "embedding": ("services.workers.engines.embedding", "EmbeddingEngine"),
    "espeak": ("services.workers.engines.espeak", "EspeakEngine"),
    "http": ("services.workers.engines.http", "HttpEngine"),
    "intent": ("services.workers.engines.intent", "IntentEngine"),
    "onnx": ("services.workers.engines.onnx", "OnnxEngine"),
    "openai": ("services.workers.engines.openai", "OpenaiEngine"),
    "pocketsphinx": ("services.workers.engines.pocketsphinx", "PocketsphinxEngine"),
    "python": ("services.workers.engines.python", "PythonEngine"),
    "ranking": ("services.workers.engines.ranking", "RankingEngine"),
    "rapidocr": ("services.workers.engines.rapidocr", "RapidocrEngine"),
    "repeat": ("services.workers.engines.repeat", "RepeatEngine"),
    "silero": ("services.workers.engines.silero", "SileroEngine"),
    "template": ("services.workers.engines.template", "TemplateEngine"),
    "torch": ("services.workers.engines.torch_program", "TorchProgramEngine"),
    "transformers": ("services.workers.engines.transformers_tasks", "TransformersEngine"),
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
        NotFound: No such engine, here or in an installed package.
        FailedPrecondition: The package that brings it is at fault.
    """
    if name not in _CLASSES:
        return plugins.engine_class(name, ENGINE_NAMES)
    module, attribute = _CLASSES[name]
    found: type[AnyEngine] = getattr(import_module(module), attribute)
    return found


def engine_of(spec: ModelSpec, models_dir: Path) -> AnyEngine:
    """Return a model's engine, not loaded; where there is none, one that says why."""
    try:
        kind = engine_class(spec.engine)
    except (NotFound, FailedPrecondition) as error:
        return plugins.AbsentEngine(spec, models_dir, error.message)
    return kind(spec, models_dir)


def check_plugins() -> tuple[str, ...]:
    """Return the names of the engines that other packages bring.

    Raises:
        FailedPrecondition: One has a name that is taken, or that no catalogue can have.
    """
    return tuple(sorted(plugins.discover(ENGINE_NAMES)))
