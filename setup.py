"""The compiled loops: what pyproject.toml can say only in a form that is still to change."""

from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("wncli/compiled")

setup(
    ext_modules=[
        Extension(
            "wncli.compiled.kernel",
            [str(FOLDER / "kernel.c")],
            depends=[str(header) for header in sorted(FOLDER.glob("*.h"))],
            extra_compile_args=["-O2", "-ffp-contract=off"],  # rounding errors are taken apart
            optional=True,  # NumPy and zlib do the same where it cannot be built
        )
    ]
)
