"""Installs `msda`. Pure Python so far: MSDA_BUILD=none (the default) says so; cpp and cuda wait for the compiled
forms.
"""

import os

from setuptools import setup

build = os.environ.get("MSDA_BUILD", "none")
if build != "none":
    raise SystemExit(
        f"MSDA_BUILD={build}: msda has no compiled back end yet; leave the variable unset or set it to none"
    )

setup(packages=["msda"])
