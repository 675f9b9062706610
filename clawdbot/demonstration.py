"""`clawdbot demo`: the voice assistant, end to end."""

from pathlib import Path

from clawdbot.async_client import AsyncClient
from clawdbot.cli.output import Screen, event_line, run_table
from clawdbot.results import Run
from schemas.errors import EngineFailed, FailedPrecondition
from schemas.values import Binary
from schemas.workflow import Deployment


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "voice_assistant"
WORKFLOW = "voice_assistant"
ANSWER = "answer.wav"
WAIT_S = 120.0


def example(name: str) -> bytes:
    """Return a file of the voice assistant's example.

    Raises:
        FailedPrecondition: clawdbot was installed without its examples.
    """
    path = EXAMPLE / name
    if not path.exists():
        raise FailedPrecondition("the demo needs a checkout: its examples are not installed")
    return path.read_bytes()


async def show(screen: Screen, url: str, audio: Path | None, folder: Path) -> None:
    """Deploy, run, and print transcript, intent, reply, answer and timeline.

    Raises:
        EngineFailed: The run failed; says why.
    """
    async with AsyncClient(url) as client:
        deployed = await client.deploy(Deployment.model_validate_json(example("workflow.json")))
        for warning in deployed.warnings:
            screen.note(f"warning: {warning}")
        with screen.progress("listening"):
            spoken = Binary(media_type="audio/wav", data=example("weather.wav"))
            inputs = {"audio": spoken if audio is None else audio}
            run = await client.run(WORKFLOW, inputs, wait_s=WAIT_S)
        if run.status != "completed":
            why = run.error.message if run.error else f"the run is {run.status}"
            raise EngineFailed(why, field=run.error.field if run.error else None)
        answer = folder / ANSWER
        answer.write_bytes(await client.fetch(run.output("tts.audio")))
        if screen.as_json:
            screen.json(run)
            return
        _print(screen, run, answer)
        for event in await client.events(run.run_id):
            screen.line(event_line(event, run.started_at))


def _print(screen: Screen, run: Run, answer: Path) -> None:
    screen.print(f"transcript  {run.output('asr.text')}")
    intent, confidence = run.output("nlu.intent"), run.output("nlu.confidence")
    screen.print(f"intent      {intent} ({float(confidence):.0%})")
    screen.print(f"reply       {run.output('reply.text')}")
    screen.print(f"answer      {answer} ({run.output('tts.duration_s')} s, a WAV file)")
    screen.print(f"run         {run.run_id}")
    screen.print(run_table(run))
