"""Ask the voice assistant something: `python -m examples.voice_assistant [WAV]`."""

import sys
from pathlib import Path

from clawdbot import Client
from schemas.workflow import Deployment


HERE = Path(__file__).parent


def main() -> None:
    """Deploy the workflow from its file, run it, keep the spoken answer."""
    audio = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "weather.wav"
    with Client() as client:
        client.deploy(Deployment.model_validate_json((HERE / "workflow.json").read_text()))
        run = client.run("voice_assistant", {"audio": audio})
        print("heard: ", run.output("asr.text"))
        print("intent:", run.output("nlu.intent"))
        print("reply: ", run.output("reply.text"))
        Path("answer.wav").write_bytes(client.fetch(run.output("tts.audio")))
        print("spoken answer in answer.wav")


if __name__ == "__main__":
    main()
