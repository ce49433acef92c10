"""patchattack: does a vision model survive a printed patch in front of a camera?"""

__version__ = "0.1.0"
