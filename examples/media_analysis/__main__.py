"""Read an image and hear a recording, side by side: `python -m examples.media_analysis`."""

from pathlib import Path

from clawdbot import Client, WorkflowBuilder


HERE = Path(__file__).parent


def workflow() -> WorkflowBuilder:
    """Return three models that run in parallel, joined by a template."""
    return (
        WorkflowBuilder()
        .add_node("ocr", model="rapidocr")
        .add_node("asr", model="pocketsphinx")
        .add_node("vad", model="silero-vad")
        .add_node("report", template_id="media_report")
        .connect("ocr", "report")
        .connect("asr", "report")
        .connect("vad", "report")
    )


def main() -> None:
    """Deploy, run, print the report."""
    inputs = {
        "image": HERE / "note.png",
        "audio": HERE.parent / "voice_assistant" / "weather.wav",
    }
    with Client() as client:
        workflow().deploy("media_analysis", client=client)
        print(client.run("media_analysis", inputs).output("report.text"))


if __name__ == "__main__":
    main()
