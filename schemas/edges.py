"""Whether what a node gives may go into an input of another, and what makes it fit. Pure."""

from schemas.catalogue import Port
from schemas.plan import Adaptation
from schemas.signatures import CONTENTS, TOKENIZER_ADAPTER, Content, adapter_params, may_meet


def adaptation_of(target: Port) -> Adaptation | None:
    """Return what makes a file or a text fit an input, if there is anything."""
    content = _made_of(target)
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
    content = _made_of(target)
    return content is not None and content.source == offer.kind


def _made_of(target: Port) -> Content | None:
    """Return the content of an input, if an adapter makes it."""
    content = CONTENTS.get(target.content)
    if content is None or not content.adapter:
        return None
    return None if content.needs_vocabulary and target.vocabulary is None else content


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
