"""The suites of the benchmark: each yields rows, of times measured in interleaved pairs."""
