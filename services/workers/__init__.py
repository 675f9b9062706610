"""A worker runs models of one modality: `CLAWDBOT_MODALITY=text|audio|vision`.

In:   `task.<modality>.<pool>.<lane>.<model>` (TASKS), `infer.<modality>.<model>` (core NATS),
      `warm.<modality>.<pool>.<model>` (core NATS): a model that will be wanted.
Out:  `result.<part>.<run>` (RESULTS), and its card in the MODELS bucket.

Guarantees: a task is acked after its result is stored; a task whose worker died is delivered to
another one; a worker that a task killed too often answers for it with a failure. It goes on with
the nodes after a task as long as they are quick.
"""
