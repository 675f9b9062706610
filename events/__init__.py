"""The event-sourced log: subjects, domain events, the Run aggregate, and where it is kept.

`run` is pure (decide, evolve); `store` is the contract; `memory` and `jetstream` keep it.
"""
