"""Engines: what runs a family's see, speak and trace. `mmchat.family.Engine` says what one must offer."""
