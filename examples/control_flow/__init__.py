"""One example for each control structure; `python -m examples.control_flow` runs them all."""
