"""Studies: what a run does, repeated with something varied; one module for each."""
