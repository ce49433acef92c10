"""From a texture to paper."""
