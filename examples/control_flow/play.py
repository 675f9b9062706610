"""Deploys a workflow, runs it, and waits: what all examples of this folder do."""

from collections.abc import Callable
from typing import Any

from clawdbot import Client, Run, WorkflowBuilder


def play(name: str, workflow: WorkflowBuilder, **inputs: Any) -> Run:
    """Deploy a workflow and run it to its end."""
    with Client() as client:
        workflow.deploy(name, client=client)
        return client.run(name, inputs)


def begin(name: str, workflow: WorkflowBuilder, **inputs: Any) -> str:
    """Deploy a workflow and start a run; return its id."""
    with Client() as client:
        workflow.deploy(name, client=client)
        return client.run(name, inputs, wait_s=0).run_id


def watch(run_id: str, until: Callable[[Run], bool]) -> Run:
    """Follow a run's events until it is as one wants it to be."""
    with Client() as client:
        for _ in client.follow(run_id):
            if until(run := client.get(run_id)):
                return run
        return client.get(run_id)
