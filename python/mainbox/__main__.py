"""`python -m mainbox` is the command `mainbox`."""

import os
import sys

from mainbox import binary

if __name__ == "__main__":
    program = binary()
    os.execv(program, [program, *sys.argv[1:]])
