"""Under which conditions a patch works: one measurement after another over size, angle, place, light and camera."""
