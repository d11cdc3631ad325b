"""What is compiled: pyproject.toml can say it only in a form that is still to change."""

from pathlib import Path

from setuptools import Extension, setup

LOOPS = Path("wncli/arithmetic/kernels")

# It is optional: NumPy does the same where it cannot be built.
setup(
    ext_modules=[
        Extension(
            "wncli.arithmetic.kernels.kernel",
            [str(LOOPS / "kernel.c")],
            depends=[str(header) for header in sorted(LOOPS.glob("*.h"))],
            # Rounding errors are taken apart, whatever CFLAGS says.
            extra_compile_args=["-O2", "-fno-fast-math", "-ffp-contract=off"],
            optional=True,
        ),
    ]
)
