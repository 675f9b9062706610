"""The orchestrator turns submissions and results into events and tasks.

In:   `submit.<workflow>` (COMMANDS), `result.<part>.<run>` (RESULTS), and the clock.
Out:  `event.<part>.<run>` (EVENTS), `task.<modality>.<pool>.<lane>.<model>` (TASKS),
      `warm.<modality>.<pool>.<model>` (core NATS): what workers will be asked for next.

Guarantees: it is the only writer of a run's log; a commit is stored before any of its tasks is
sent, and an input is acked last, so a crash at any point costs a redelivery and nothing else; a
workflow may choose a mode that promises less (`behind`). Any number of replicas may run: optimistic
concurrency decides between them. Nothing is decided on a log that contradicts what was seen of it
(`history`). Finished runs leave the log in time (`housekeeping`).
"""
