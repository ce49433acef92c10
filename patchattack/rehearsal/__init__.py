"""The whole way without hardware: print, hold before a camera that drives past, measure, compare with the truth."""
