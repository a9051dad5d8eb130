"""Builds `torchassay._native` with CMake; everything else about the package is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hands the one extension to CMake, which finds pybind11 and, where it is, CUDA. torch is not needed."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


native = os.environ.get("TORCHASSAY_NATIVE", "1") != "0"
setup(
    packages=[*find_packages("python"), "torchassay.triton_kernels"],
    package_dir={"torchassay": "python/torchassay", "torchassay.triton_kernels": "triton_kernels"},
    package_data={"torchassay": ["py.typed"]},
    ext_modules=[Extension("torchassay._native", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
