"""Whether what a node gives may go into an input of another, and what makes it fit. Pure."""

from collections.abc import Mapping
from typing import TypeVar

from schemas.catalogue import ModelSpec, Port
from schemas.plan import Adaptation
from schemas.signatures import CONTENTS, TOKENIZER_ADAPTER, adapter_params, may_meet


Item = TypeVar("Item")


def adaptation_of(target: Port) -> Adaptation | None:
    """Return what makes a file or a text fit an input, if there is anything."""
    content = target.made_of
    if content is None:
        return None
    params = adapter_params(target.content, target.shape)
    vocabulary = target.vocabulary
    if vocabulary is not None and vocabulary.is_whole:
        params |= vocabulary.model_dump(exclude={"lower_case"})
        return Adaptation(adapter=TOKENIZER_ADAPTER, params=params)
    if vocabulary is not None:
        params |= vocabulary.model_dump()
    return Adaptation(adapter=content.adapter, params=params)


def is_made_of(offer: Port, target: Port) -> bool:
    """Tell whether an adapter makes an input of such a file or text as a node gives."""
    content = target.made_of
    return content is not None and content.source == offer.kind


def adaptations_of(
    spec: ModelSpec, inputs: dict[str, Item]
) -> tuple[dict[str, Item], dict[str, Adaptation]]:
    """Return the inputs of a model, spread, and what is done to files and texts among them."""
    if not spec.made:
        return inputs, {}
    found = {port.name: adaptation_of(port) for port in spec.made}
    return spread(spec, inputs), {name: how for name, how in found.items() if how is not None}


def spread(spec: ModelSpec, inputs: Mapping[str, Item]) -> dict[str, Item]:
    """Return inputs with a text also where other tokens of it are wanted and nothing was given.

    A model of tokens takes their ids, a mask, perhaps their types: one text is all of them.
    """
    found = dict(inputs)
    for port in spec.made:
        if port.vocabulary is None or port.name in inputs:
            continue
        for other in spec.made:
            value = inputs.get(other.name)
            if isinstance(value, str) and other.vocabulary == port.vocabulary:
                found[port.name] = value
                break
    return found


def mismatch(offer: Port, target: Port) -> str | None:
    """Return why an output may not go into an input, or None where it may.

    What is JSON may be anything, so it shows when it runs.
    """
    if "json" in {offer.kind, target.kind} or is_made_of(offer, target):
        return None
    same = offer.kind == target.kind
    if same and offer.kind == "tensor":
        same = offer.datatype == target.datatype and may_meet(offer.shape, target.shape)
    if not same:
        return f"it is {_words(target)}, and that is {_words(offer)}"
    if offer.content and target.content and offer.content != target.content:
        names = (target.content, offer.content)
        wanted, given = (f"{name} ({CONTENTS[name].says})" for name in names)
        return f"it holds {wanted}, and that holds {given}"
    return None


def _words(port: Port) -> str:
    if port.kind != "tensor":
        return port.kind
    return f"a tensor {port.datatype} {list(port.shape)}"
