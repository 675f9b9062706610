"""The commands about models: what there is, and the repository of those that were pushed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clawdbot.cli.options import Json, Url, guarded
from clawdbot.cli.output import Screen, counted
from clawdbot.client import Client
from clawdbot.repository import version_of
from events.packages import Hints
from schemas.api import ModelOffer, ModelView, RepositoryView
from schemas.errors import InvalidArgument
from schemas.repository import AT, VersionPolicy, split


app = typer.Typer(
    help="List models; push, pull and steer those of the repository.", invoke_without_command=True
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model of the repository.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model; one version, or an alias, of it.")
]
Number = Annotated[int, typer.Argument(metavar="VERSION", help="A version's number.", min=1)]
MIB = 1024 * 1024


@app.callback()
def models(context: typer.Context, as_json: Json = False, url: Url = None) -> None:
    """List every model: what runs here, what stands in, and how to get the rest.

    With a command, do something with the models of the repository.
    """
    if context.invoked_subcommand is not None:
        return
    screen = Screen(as_json)

    def action(client: Client) -> None:
        found = client.models()
        if screen.as_json:
            for model in found:
                screen.json(model)
            return
        table = Table("model", "modality", "runs on", "what it does")
        for model in found:
            table.add_row(model.name, model.modality, _runs_on(model), model.description)
        screen.print(table)
        for model in found:
            if model.name not in model.served_by and model.get:
                screen.print(f"{model.name}: {model.get}")

    guarded(screen, url, action)


@app.command()
def push(  # noqa: PLR0913, PLR0917 - options
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="A folder with a model.yaml, or an .onnx file."),
    ],
    name: Annotated[str, typer.Option(help="Its name; the folder's or file's by default.")] = "",
    canary: Annotated[
        int | None, typer.Option(min=1, max=99, help="Percent of the requests that it gets.")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep it without using it.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Although its inputs or outputs are others than before.")
    ] = False,
    modality: Annotated[
        str, typer.Option(help="Whose workers run an .onnx file: text, audio or vision.")
    ] = "text",
    max_batch_size: Annotated[
        int, typer.Option(min=0, help="Rows of one call of an .onnx file; 0: never together.")
    ] = 0,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Push a model, or every model of a folder: the next version of each, in use at once.

    Example: clawdbot models push iris.onnx --canary 10
    """
    screen = Screen(as_json)

    def action(client: Client) -> None:
        if modality not in {"text", "audio", "vision"}:
            raise InvalidArgument("use text, audio or vision", field="--modality")
        hints = Hints(modality, max_batch_size)  # type: ignore[arg-type] # checked
        for source in sources:
            for pushed in client.repository.push(
                source, name, percent=canary or 100, hold=hold, force=force, hints=hints
            ):
                if screen.as_json:
                    screen.json(pushed)
                    continue
                new = "" if pushed.created else ", which was there already"
                in_use = f"in use: {pushed.current}" if pushed.current else "none is in use"
                screen.print(f"{pushed.name} version {pushed.version}{new}; {in_use}")

    guarded(screen, url, action)


@app.command()
def pull(
    reference: Reference,
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="New; the model's name by default.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Write a version into a new folder, as it was pushed."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        target = client.repository.pull(reference, folder)
        if screen.as_json:
            screen.json({"reference": reference, "folder": str(target)})
        else:
            screen.print(f"{reference} is in {target}")

    guarded(screen, url, action)


@app.command("list")
def list_(as_json: Json = False, url: Url = None) -> None:
    """List the models of the repository."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        found = client.repository.list()
        if screen.as_json:
            for view in found:
                screen.json(view)
            return
        table = Table("model", "in use", "versions", "canaries", "aliases", "MiB", "offered by")
        for view in found:
            size = sum(version.size_bytes for version in view.versions) / MIB
            aliases = ", ".join(f"{name} = {at}" for name, at in sorted(view.aliases.items()))
            canaries = ", ".join(f"{at}: {part} %" for at, part in view.canaries.items())
            numbers = ", ".join(str(version.version) for version in view.versions)
            table.add_row(
                view.name, _in_use(view), numbers, canaries, aliases, f"{size:.1f}", _workers(view)
            )
        screen.print(table)

    guarded(screen, url, action)


@app.command()
def inspect(reference: Reference, as_json: Json = False, url: Url = None) -> None:
    """Show a model of the repository, or one version of it."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        view = client.repository.get(split(reference)[0])
        if AT in reference:
            view = view.model_copy(update={"versions": (version_of(view, reference),)})
        if screen.as_json:
            screen.json(view)
            return
        _show(screen, view)

    guarded(screen, url, action)


@app.command()
def remove(
    reference: Reference,
    force: Annotated[
        bool, typer.Option("--force", help="Although an alias, a canary or a workflow needs it.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Remove a version, or a whole model."""
    screen = Screen(as_json)

    def action(client: Client) -> None:
        client.repository.remove(reference, force=force)
        if screen.as_json:
            screen.json({"removed": reference})
        else:
            screen.print(f"{reference} is removed")

    guarded(screen, url, action)


@app.command()
def alias(
    name: Name,
    word: Annotated[str, typer.Argument(metavar="ALIAS", help="What NAME@ALIAS is to mean.")],
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="Left out, the alias goes.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Let NAME@ALIAS be a version; with no version, forget the alias.

    Example: clawdbot models alias iris stable 3
    """

    def change(client: Client) -> RepositoryView:
        if version is None:
            return client.repository.unalias(name, word)
        return client.repository.alias(name, word, version)

    _steer(as_json, url, change)


@app.command()
def canary(
    name: Name,
    version: Number,
    percent: Annotated[int, typer.Argument(metavar="PERCENT", min=0, max=100)],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Give a version a part of the requests: 0 ends it, 100 puts it in use.

    Example: clawdbot models canary iris 4 10
    """
    _steer(as_json, url, lambda client: client.repository.canary(name, version, percent))


@app.command()
def promote(
    name: Name,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="The canary, else the newest, without.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Put a version in use."""
    _steer(as_json, url, lambda client: client.repository.promote(name, version))


@app.command()
def rollback(name: Name, as_json: Json = False, url: Url = None) -> None:
    """End the canaries; where there are none, go back to the version in use before."""
    _steer(as_json, url, lambda client: client.repository.rollback(name))


@app.command()
def policy(
    name: Name,
    latest: Annotated[int | None, typer.Option(min=1, help="So many of the newest.")] = None,
    keep_all: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    versions: Annotated[str, typer.Option(help="Those: 1,3")] = "",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say which versions workers keep ready, beside those in use.

    Example: clawdbot models policy iris --latest 2
    """

    def change(client: Client) -> RepositoryView:
        return client.repository.policy(name, _policy(latest, versions, keep_all=keep_all))

    _steer(as_json, url, change)


@app.command()
def load(name: Name, as_json: Json = False, url: Url = None) -> None:
    """Have workers offer a model again."""
    _steer(as_json, url, lambda client: client.repository.load(name))


@app.command()
def unload(name: Name, as_json: Json = False, url: Url = None) -> None:
    """Have workers offer a model no more; it stays in the repository."""
    _steer(as_json, url, lambda client: client.repository.unload(name))


def _steer(as_json: bool, url: str | None, change: Callable[[Client], RepositoryView]) -> None:
    screen = Screen(as_json)

    def action(client: Client) -> None:
        view = change(client)
        if screen.as_json:
            screen.json(view)
        else:
            _show(screen, view)

    guarded(screen, url, action)


def _policy(latest: int | None, versions: str, *, keep_all: bool) -> VersionPolicy:
    """Read a policy.

    Raises:
        InvalidArgument: None, or more than one, is given, or it is malformed.
    """
    if (latest is not None) + bool(versions) + keep_all != 1:
        raise InvalidArgument("give one of --latest, --all, --versions")
    if keep_all:
        return VersionPolicy(keep="all")
    if latest is not None:
        return VersionPolicy(keep="latest", count=latest)
    words = versions.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise InvalidArgument("give numbers with commas between them", field="--versions")
    return VersionPolicy(keep="specific", versions=tuple(int(word) for word in words))


def _show(screen: Screen, view: RepositoryView) -> None:
    facts = [f"in use {_in_use(view)}"]
    facts += [f"canary {at} gets {part} %" for at, part in view.canaries.items()]
    facts += [f"{name} is {at}" for name, at in sorted(view.aliases.items())]
    screen.print(f"{view.name}: {', '.join(facts)}")
    table = Table("version", "engine", "files", "MiB", "digest", "offered by", "ms by rows")
    for version in view.versions:
        workers = [offer.worker for offer in version.offers if offer.available]
        why = [offer.reason for offer in version.offers if not offer.available]
        table.add_row(
            str(version.version),
            version.spec.engine,
            counted(len(version.files), "file"),
            f"{version.size_bytes / MIB:.1f}",
            version.digest[:12],
            ", ".join(workers or why) or ("nobody yet" if version.offered else "kept in store"),
            _latencies(version.offers),
        )
    screen.print(table)


def _latencies(offers: Sequence[ModelOffer]) -> str:
    """Return how long a call takes by its rows, where it is quickest."""
    found: dict[int, float] = {}
    for offer in offers:
        for rows, taken_ms in offer.latency_ms.items():
            found[int(rows)] = min(taken_ms, found.get(int(rows), taken_ms))
    return ", ".join(f"{rows}: {taken_ms:.3g}" for rows, taken_ms in sorted(found.items()))


def _in_use(view: RepositoryView) -> str:
    if not view.loaded:
        return "none, unloaded"
    return str(view.current or "none")


def _workers(view: RepositoryView) -> str:
    found = [
        offer
        for version in view.versions
        if version.version == view.current
        for offer in version.offers
        if offer.available
    ]
    return counted(len(found), "worker")


def _runs_on(model: ModelView) -> str:
    if model.name in model.served_by:
        return "itself"
    return f"{', '.join(model.served_by)}, standing in" if model.served_by else "nothing here"
