"""Attacks on one image at a time: digital, for comparison with the patch that works on all of them."""
