"""Where scenes come from: one file per source."""
