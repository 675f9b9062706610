"""Folders of transformers: tokens and their mask in, one output out; and their vocabulary.

Only safetensors are read, and no folder that names code.
"""

from pathlib import Path
from typing import Any

import orjson

from clawdbot.conversion.source import VocabularyFile, need
from clawdbot.conversion.torch_source import TorchSource, brief, quiet
from schemas import hf_files, tokenizer_file
from schemas.errors import InvalidArgument, ModelUnavailable


EMBEDDING = "embedding"
TASKS = {
    EMBEDDING: ("AutoModel", EMBEDDING, "token-embedding/1"),
    "classification": (
        "AutoModelForSequenceClassification",
        "logits",
        "sequence-classification/1",
    ),
    "token-classification": (
        "AutoModelForTokenClassification",
        "logits",
        "token-classification/1",
    ),
    "generation": ("AutoModelForCausalLM", "logits", ""),
}
"""By task: the class, the output, and the signature of the library that it keeps."""
WORDPIECE = {"BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"}
POSITIONS = 512
"""Where a config says nothing of them."""


def folder_source(folder: Path, task: str) -> TorchSource:
    """Return a folder of transformers, its tokens and their mask as inputs of any length.

    `embedding` gives the mean of the last layer over the tokens, as a unit vector.

    Raises:
        InvalidArgument: It cannot be loaded, or its task is unknown.
    """
    need("torch", "torch", "transformers")
    import torch
    import transformers

    if task not in TASKS:
        raise InvalidArgument(f"--task is one of {', '.join(TASKS)}, not '{task}'")
    class_name, output, signature = TASKS[task]
    try:
        for path in sorted(folder.rglob("*.json")):
            hf_files.check_document(f"{folder.name}/{path.name}", path.read_bytes())
    except ModelUnavailable as error:
        raise InvalidArgument(error.message) from error
    transformers.utils.logging.disable_progress_bar()
    try:
        model = getattr(transformers, class_name).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument(f"{folder.name} cannot be loaded: {brief(error)}") from error
    source = _exported(model.eval(), folder, output)
    source.signature = signature
    positions = getattr(model.config, "max_position_embeddings", POSITIONS)
    source.vocabulary = _vocabulary(folder, int(positions))
    return source


def _exported(model: Any, folder: Path, output: str) -> TorchSource:
    import torch

    class Tokens(torch.nn.Module):  # type: ignore[misc]
        """Takes tokens and their mask, gives one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
            if output != EMBEDDING:
                return {output: getattr(found, output)}
            weights = attention_mask[:, :, None].to(found.last_hidden_state.dtype)
            mean = (found.last_hidden_state * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return {EMBEDDING: torch.nn.functional.normalize(mean, dim=1)}

    free = dict.fromkeys((0, 1), torch.export.Dim.AUTO)  # up to what the model has positions for
    ids = torch.ones((2, 5), dtype=torch.int64)
    try:
        with quiet():
            program = torch.export.export(
                Tokens(), (ids, torch.ones_like(ids)),
                dynamic_shapes={"input_ids": free, "attention_mask": free},
            )  # fmt: skip
    except Exception as error:
        raise InvalidArgument(f"torch cannot export {folder.name}: {brief(error)}") from error
    source = TorchSource(program, folder.name)
    source.packages = (*source.packages, "transformers")
    source.size_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return source


def _vocabulary(folder: Path, positions: int) -> VocabularyFile | None:
    """Return the tokens of a folder: BERT's a line each, of others its `tokenizer.json` if any."""
    settings = _json(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") not in WORDPIECE:
        return _whole(folder / "tokenizer.json", min(positions, POSITIONS))
    whole = _json(folder / "tokenizer.json")
    if (folder / "vocab.txt").is_file():
        data = (folder / "vocab.txt").read_bytes()
    elif isinstance(whole.get("model"), dict) and whole["model"].get("type") == "WordPiece":
        ids = whole["model"]["vocab"]
        if sorted(ids.values()) != list(range(len(ids))):
            return None  # a file of lines has no holes
        data = "\n".join(sorted(ids, key=ids.__getitem__)).encode()
    else:
        return None
    lower_case = settings.get("do_lower_case", True) is not False
    return VocabularyFile(data, lower_case, min(positions, POSITIONS))


def _whole(path: Path, tokens_max: int) -> VocabularyFile | None:
    """Return a tokenizer that workers would take; None of any other."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        tokenizer_file.sanitized(path.name, data)
    except ModelUnavailable:
        return None
    return VocabularyFile(data, lower_case=True, tokens_max=tokens_max, is_whole=True)


def _json(path: Path) -> dict[str, Any]:
    found = orjson.loads(path.read_bytes()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
