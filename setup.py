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
            # Rounding errors are taken apart, whatever CFLAGS says.
            extra_compile_args=["-O2", "-fno-fast-math", "-ffp-contract=off"],
            optional=True,  # NumPy and zlib do the same where it cannot be built
        )
    ]
)
