"""Reports of the zygote to the supervisor while it imports: JSON, each after its length in four bytes (little-endian)."""

import json
import os
import struct
from typing import Any

LENGTH = struct.Struct("<I")


def send(descriptor: int, report: dict[str, Any]) -> None:
    """Sends a report. Ends the process if the supervisor is gone."""
    text = json.dumps(report).encode()
    rest = memoryview(LENGTH.pack(len(text)) + text)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except ConnectionError:
            os._exit(0)
