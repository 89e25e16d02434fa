"""What Python runs first: makes modules of the harness that arrives on descriptor 3, and enters the last of them."""

import gc
import json
import os
import sys
import types

if sys.version_info < (3, 11):
    sys.exit(f"mainbox needs CPython 3.11 or newer; MAINBOX_PYTHON is {sys.version.split()[0]}")

gc.disable()  # what is imported stays; looking for garbage in it only takes time
boot = json.loads(os.read(3, 1 << 20))
for name, source in boot["harness"]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
for name, _ in boot["harness"]:
    del sys.modules[name]  # scripts find no trace of it among the modules
module.serve(boot)
