"""Workflows to learn from; each runs with one command against a mesh that is up."""
