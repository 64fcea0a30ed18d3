"""Packaging of Products.MaildropHost; what needs no code is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
INTO_PACKAGE = ("config", "SAMPLE_MAIL.txt")    # one copy in the repository, at its top; installed with the package


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:    # there they are found where they lie
            for name in INTO_PACKAGE:
                shutil.copy2(HERE / name, Path(self.build_lib, "maildrop", name))

    def get_outputs(self, include_bytecode=1):
        added = [] if self.editable_mode else [str(Path(self.build_lib, "maildrop", name)) for name in INTO_PACKAGE]
        return super().get_outputs(include_bytecode) + added


setup(cmdclass={"build_py": BuildPy})
