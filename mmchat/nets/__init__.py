"""Torch blocks that two families or more share."""
