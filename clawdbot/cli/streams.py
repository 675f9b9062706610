"""The command that shows what models say while they compute."""

from typing import Annotated

import typer

from clawdbot.cli.options import Json, Url, guarded
from clawdbot.cli.output import ExitCode, Screen
from clawdbot.cli.runs import Files, Inputs, failed, print_outputs
from clawdbot.cli.values import inputs_of
from clawdbot.client import Client
from schemas.api import NodePart
from schemas.ids import new_id


class Said:
    """Prints texts as they grow; who begins to speak, or again, gets a new line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._speaker: tuple[str, int] | None = None

    def add(self, part: NodePart) -> None:
        """Print a part, as far as it is text."""
        text = "".join(value for value in part.outputs.values() if isinstance(value, str))
        speaker = part.node, part.attempt
        if text and self._speaker not in {None, speaker}:
            self._screen.say("\n")
        if text:
            self._speaker = speaker
            self._screen.say(text)

    def end(self) -> bool:
        """End the line; tell whether anything was printed."""
        if self._speaker is not None:
            self._screen.say("\n")
        return self._speaker is not None


def stream(
    workflow: Annotated[str, typer.Argument(help="Name of a deployed workflow.")],
    inputs: Inputs = None,
    files: Files = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run a workflow and print what its models say, while they compute.

    Where none says anything, what the run gives is printed. With --json: each event, each part.

    Example: clawdbot stream talk -i text="Why is the sky blue?"
    """
    screen = Screen(as_json)

    def action(client: Client) -> int:
        said, run_id = Said(screen), new_id()
        try:
            for item in client.stream(workflow, inputs_of(inputs, files), run_id=run_id):
                if screen.as_json:
                    screen.json(item)
                elif isinstance(item, NodePart):
                    said.add(item)
        finally:
            is_said = said.end()
        found = client.get(run_id)
        code = failed(screen, found)
        if code == ExitCode.OK and not is_said and not screen.as_json:
            print_outputs(screen, client, found)
        return code

    guarded(screen, url, action)
