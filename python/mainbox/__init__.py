"""Runs `main()` of untrusted Python scripts in a sandbox, with mainbox on this machine or behind a URL.

from mainbox import Box

box = Box()
print(box.run("def main(x): return x + 1", 41).value)  # 42
"""

from mainbox._async_box import AsyncBox
from mainbox._box import Box
from mainbox._result import Content, MainboxError, Options, Result
from mainbox._service import binary

__all__ = ["AsyncBox", "Box", "Content", "MainboxError", "Options", "Result", "binary"]
