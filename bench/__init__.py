"""Measurements of the product beside a floor taken in the same run; never tests, never timed tests.

`python -m bench` runs every scenario and prints one JSON line each, then a table with the goals.
"""
