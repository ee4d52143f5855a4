"""Installs `msda` with what this machine can compile: see compile_ops.py. Without a compiler it is plain Python."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.dist import Distribution

sys.path.insert(0, str(Path(__file__).resolve().parent))
import compile_ops  # noqa: E402


class Build(build_py):
    """Python files, then the compiled library beside them."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "msda"
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("*.so"):
            stale.unlink()
        self.compiled = compile_ops.build(target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, getattr(self, "compiled", []))]


class Editable(editable_wheel):
    """An editable install runs from the sources: the library goes there too."""

    def run(self) -> None:
        compile_ops.build(Path(__file__).resolve().parent / "msda")
        super().run()


class Wheel(bdist_wheel):
    """The library belongs to the platform, and to no version of Python or torch."""

    def get_tag(self) -> tuple[str, str, str]:
        compiled = list((Path(self.bdist_dir) / "msda").glob("*.so")) if self.bdist_dir else []
        if not compiled:
            return "py3", "none", "any"
        _, _, platform = super().get_tag()
        return "py3", "none", compile_ops.manylinux(compiled, platform)


class Platform(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    packages=["msda"],
    package_data={"msda": ["csrc/*"]},
    distclass=Platform,
    cmdclass={"build_py": Build, "editable_wheel": Editable, "bdist_wheel": Wheel},
)
