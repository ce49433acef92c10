"""Expectation over Transformation (Athalye et al. 2018): placement, appearance and camera, joined by the renderer."""
