"""A printed patch before a camera: find it, compare the frame with itself without it, and say when it works."""
