"""The vocabulary every process shares: messages, API bodies, ids, errors, values.

Nothing here does I/O. `events`, `services` and `clawdbot` build on it; it builds on none of them.
"""
