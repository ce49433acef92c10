"""Adapters of the networks under test: one file per family."""
