"""The benchmark: patches that are handed on, the suite that all of them are measured by, and the rows of its board."""
