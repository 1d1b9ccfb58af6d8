"""Screens: the table of images, the pixels beside it, and what enters a mini-batch."""
