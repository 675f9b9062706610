"""The face of clawdbot: the SDK and the `clawdbot` command."""
