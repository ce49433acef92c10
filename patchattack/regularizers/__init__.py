"""What a patch pays besides the attack's loss: one file per regulariser.

A regulariser is a module with an attribute ``weight`` and ``forward(texture [3, h, w], mask [1, h, w]) -> scalar``,
not yet weighted and independent of the patch's resolution.
"""
