"""Wrappers that turn a victim into a defended victim, one file per family."""
