"""Small networks of our own, trained on the procedural world, so that everything runs offline."""
