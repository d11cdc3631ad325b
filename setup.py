"""What is compiled, and the manual: pyproject.toml can say it only in forms that are to change."""

import os
import sys
import sysconfig

from setuptools import Extension, setup

#: Whether a wheel for any machine is wanted, which computes with NumPy.
IS_PURE = os.environ.get("WNCLI_NO_EXTENSIONS", "") not in ("", "0")
#: One build for all versions of CPython from 3.11 on; those without a lock have no such thing yet.
IS_STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")
# Rounding errors are taken apart, whatever CFLAGS says. Symbols for debuggers would be two thirds.
GCC = ["-std=c11", "-O3", "-g0", "-fno-fast-math", "-ffp-contract=off"]
MSVC = ["/std:c11", "/O2", "/fp:precise"]
# Linked for fast math, a library has the whole process take subnormals for zero once it is loaded.
LINK = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations"]

# It is optional: NumPy does the same where it cannot be built.
KERNEL = Extension(
    "wncli.arithmetic.kernels.kernel",
    ["wncli/arithmetic/kernels/kernel.c"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if IS_STABLE else [],
    py_limited_api=IS_STABLE,
    libraries=[] if sys.platform == "win32" else ["m"],  # not each Python has sqrt loaded
    extra_compile_args=MSVC if sys.platform == "win32" else GCC,
    extra_link_args=[] if sys.platform == "win32" else LINK,
    optional=True,
)

setup(
    ext_modules=[] if IS_PURE else [KERNEL],
    data_files=[("share/man/man1", ["docs/wn.1"])],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if IS_STABLE else {},
)
