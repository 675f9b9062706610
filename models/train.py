"""Train the small text model that ships with clawdbot, and measure it on held-out sentences.

    python -m models.train --output services/workers/weights/text_small.onnx

Everything it learns from stands in models/data, written by hand. The same seed, data and library
versions give the same weights. Needs torch and onnx, which serving does not.

Source: supervised contrastive loss, Khosla et al. (NeurIPS 2020), equation 2.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from services.workers.engines.text_encoder import BUCKETS, TextEncoder, features, pad


DATA = Path(__file__).parent / "data"
DIMENSION = 64
HIDDEN = 64
EPOCHS = 120
BATCH = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
INITIAL_STD = 0.1
TEMPERATURE = 0.1
CONTRAST_WEIGHT = 0.5
KEEP_FEATURES = 0.7
LABEL_SMOOTHING = 0.05
SEED = 20261124


@dataclass(frozen=True)
class Example:
    """One sentence: its intent, or None for a title, and the group it should lie near."""

    text: str
    intent: str | None
    group: str


class Encoder(nn.Module):
    """Mean feature embedding (scaled by the root of the count), and a head for intents."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(BUCKETS + 1, DIMENSION, padding_idx=0)
        self.hidden = nn.Linear(DIMENSION, HIDDEN)
        self.head = nn.Linear(HIDDEN, labels)
        nn.init.normal_(self.table.weight, std=INITIAL_STD)
        with torch.no_grad():
            self.table.weight[0] = 0.0

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map int64 [row, feature] to sums [row, dimension] and logits [row, label]."""
        count = (ids > 0).sum(dim=1, keepdim=True).clamp(min=1)
        pooled = self.table(ids).sum(dim=1) / count.sqrt()
        return pooled, self.head(torch.relu(self.hidden(pooled)))


def read(name: str) -> dict[str, list[str]]:
    """Return the sentences of models/data/<name>.yaml by label."""
    document = yaml.safe_load((DATA / f"{name}.yaml").read_text(encoding="utf-8"))
    return {str(label): [str(line) for line in lines] for label, lines in document.items()}


def examples() -> list[Example]:
    """Return the training set: every intent, and every topic as something nobody asked for."""
    found = [
        Example(text, intent, f"intent {intent}")
        for intent, lines in read("intents").items()
        for text in lines
    ]
    found += [
        Example(text, "unknown", f"topic {topic}")
        for topic, lines in read("topics").items()
        for text in lines
    ]
    return found


def train(data: Sequence[Example], labels: Sequence[str]) -> Encoder:
    """Fit the model; features are dropped at random so that no single one decides."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    model = Encoder(len(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    ids = torch.from_numpy(pad([features(example.text) for example in data]))
    targets = torch.tensor([labels.index(example.intent or "unknown") for example in data])
    groups = sorted({example.group for example in data})
    members = torch.tensor([groups.index(example.group) for example in data])
    counts = torch.bincount(targets, minlength=len(labels)).float()
    loss_of = nn.CrossEntropyLoss(
        weight=(counts.mean() / counts).sqrt(), label_smoothing=LABEL_SMOOTHING
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data)).split(BATCH):
            kept = ids[rows] * (torch.rand(ids[rows].shape) < KEEP_FEATURES)
            pooled, logits = model(kept)
            loss = loss_of(logits, targets[rows])
            loss = loss + CONTRAST_WEIGHT * contrast(pooled, members[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    return model


def contrast(pooled: Tensor, members: Tensor) -> Tensor:
    """Pull sentences of one group together, push the others away."""
    unit = nn.functional.normalize(pooled, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool)
    near = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -1e9)
    same = (members[:, None] == members[None, :]) & ~itself
    chance = near.log_softmax(dim=1)
    return -((chance * same).sum(dim=1) / same.sum(dim=1).clamp(min=1)).mean()


def export(model: Encoder, labels: Sequence[str], path: Path) -> None:
    """Write the model as ONNX; the table is stored in 16 bits, the arithmetic is 32."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    constants = {
        "table": state["table.weight"].astype(np.float16),
        "hidden_w": state["hidden.weight"].T.copy(),
        "hidden_b": state["hidden.bias"],
        "head_w": state["head.weight"].T.copy(),
        "head_b": state["head.bias"],
        "zero": np.zeros((), np.int64),
        "one": np.ones((), np.float32),
        "feature_axis": np.array([1], np.int64),
        "tiny": np.array(1e-6, np.float32),
    }
    graph = helper.make_graph(
        _nodes(),
        "text_small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["row", "feature"])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["row", DIMENSION]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["row", len(labels)]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    document = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="clawdbot", ir_version=9
    )
    helper.set_model_props(document, {"labels": json.dumps(list(labels))})
    onnx.checker.check_model(document, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(document.SerializeToString(deterministic=True))


def _nodes() -> list[Any]:
    steps = [
        ("Gather", ["table", "ids"], "rows16", {"axis": 0}),
        ("Cast", ["rows16"], "rows", {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["rows", "feature_axis"], "sums", {"keepdims": 0}),
        ("Greater", ["ids", "zero"], "present", {}),
        ("Cast", ["present"], "ones", {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["ones", "feature_axis"], "found", {"keepdims": 1}),
        ("Max", ["found", "one"], "count", {}),
        ("Sqrt", ["count"], "root", {}),
        ("Div", ["sums", "root"], "pooled", {}),
        ("ReduceL2", ["pooled"], "norm", {"axes": [1], "keepdims": 1}),
        ("Max", ["norm", "tiny"], "length", {}),
        ("Div", ["pooled", "length"], "embedding", {}),
        ("Gemm", ["pooled", "hidden_w", "hidden_b"], "before", {}),
        ("Relu", ["before"], "after", {}),
        ("Gemm", ["after", "head_w", "head_b"], "logits", {}),
        ("Softmax", ["logits"], "probabilities", {"axis": 1}),
    ]
    return [helper.make_node(kind, inputs, [out], **extra) for kind, inputs, out, extra in steps]


def measure(encoder: TextEncoder) -> dict[str, Any]:
    """Return held-out figures: intents right, topics retrieved, and every sentence missed."""
    return {
        "near": _intents(encoder, read("intents_test")),
        "far": _intents(encoder, read("intents_far")),
        **_retrieval(encoder, read("topics"), read("topics_test")),
    }


def _intents(encoder: TextEncoder, asked: Mapping[str, list[str]]) -> dict[str, Any]:
    tests = [(text, intent) for intent, lines in asked.items() for text in lines]
    _, chances = encoder.run([text for text, _ in tests])
    guesses = [encoder.labels[int(row.argmax())] for row in chances]
    missed = [
        f"{text!r}: {intent}, took it for {guess}"
        for (text, intent), guess in zip(tests, guesses, strict=True)
        if guess != intent
    ]
    return {
        "accuracy": round(1 - len(missed) / len(tests), 4),
        "sentences": len(tests),
        "missed": missed,
    }


def _retrieval(
    encoder: TextEncoder, known: Mapping[str, list[str]], asked: Mapping[str, list[str]]
) -> dict[str, Any]:
    items = [(text, topic) for topic, lines in known.items() for text in lines]
    tests = [(text, topic) for topic, lines in asked.items() for text in lines]
    item_vectors, _ = encoder.run([text for text, _ in items])
    test_vectors, _ = encoder.run([text for text, _ in tests])
    nearest = (-(test_vectors @ item_vectors.T)).argsort(axis=1)[:, :5]
    topics = np.array([topic for _, topic in items])[nearest]
    truth = np.array([topic for _, topic in tests])
    return {
        "retrieval_top1": float((topics[:, 0] == truth).mean()),
        "retrieval_precision_at_5": float((topics == truth[:, None]).mean()),
        "retrieval_queries": len(tests),
    }


def main() -> None:
    """Train, export, and print the held-out figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure-only", action="store_true")
    options = parser.parse_args()
    if not options.measure_only:
        labels = sorted(read("intents"))
        export(train(examples(), labels), labels, options.output)
    print(json.dumps(measure(TextEncoder(options.output)), indent=2, ensure_ascii=False))  # noqa: T201


if __name__ == "__main__":
    main()
