"""Run every example: `python -m examples.control_flow`."""

from importlib import import_module


NAMES = (
    *("switch", "loop", "foreach", "try_catch", "saga", "sub_workflow", "dynamic", "timers"),
    *("approval", "events", "http", "policies", "alternatives"),
)


def main() -> None:
    """One after the other."""
    for name in NAMES:
        import_module(f"examples.control_flow.{name}").main()


if __name__ == "__main__":
    main()
