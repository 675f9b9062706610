"""The `clawdbot` command."""

from clawdbot.cli.main import main


__all__ = ["main"]
