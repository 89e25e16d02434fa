"""Measures the time for which AWS Lambda bills a request, and prints what a million requests cost: `make scaling`.

AWS's runtime interface emulator reports the duration of each invocation as Lambda does, but gives the function all CPUs of
this machine. The requests come one after the other, so a second CPU has nothing to run but the next worker's start.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaling import ROOT, SHORT, cpu_seconds

SCRIPTS = {
    "trivial": "def main(): return 1",
    "a sum with pandas": SHORT,
    "one second of CPU": (
        "import time\ndef main():\n    end = time.process_time() + 1\n    while time.process_time() < end: pass"
    ),
}
# How often each is measured, by its script.
REQUESTS = {"trivial": 150, "a sum with pandas": 150, "one second of CPU": 10}
# What the stored benchmark calls each. The last one is a trivial request and a second.
BENCHMARK = {"trivial": "trivial", "a sum with pandas": "pandas", "one second of CPU": "trivial"}

# Prices in dollars, without free tiers, taxes and traffic, looked up in November 2026.
# aws.amazon.com/lambda/pricing, x86, us-east-1: a request, a GB for a second. Billed in steps of 1 ms.
LAMBDA_REQUEST, LAMBDA_GB_SECOND = 0.20e-6, 0.0000166667
# One CPU, the size in template.yaml.
LAMBDA_GB = 1769 / 1024
# cloud.google.com/run/pricing, billing by requests, tier 1: a request, a CPU and a GiB for a second. In steps of 100 ms.
CLOUD_RUN_REQUEST, CLOUD_RUN_CPU_SECOND, CLOUD_RUN_GIB_SECOND = 0.40e-6, 0.000024, 0.0000025
# The size in service.yaml.
CLOUD_RUN_CPUS, CLOUD_RUN_GIB = 2, 1
# aws.amazon.com/ec2/pricing, m7g.large on demand, us-east-1: two CPUs for an hour.
VM_CPUS, VM_HOUR = 2, 0.0816
# The load at which deploy/kubernetes adds pods.
LOAD = 0.7
# e2b.dev/pricing: a CPU and a GiB for a second, for as long as a sandbox exists.
MICROVM_CPU_SECOND, MICROVM_GIB_SECOND = 0.000014, 0.0000045
# Its default size, and how long it exists for one request: the start, the script, the end.
MICROVM_CPUS, MICROVM_GIB, MICROVM_SECONDS = 2, 0.5, 1


@dataclass(frozen=True)
class Script:
    """What is known about a script, seconds."""

    # The duration that Lambda reports.
    duration: float
    # The CPU time with everything that mainbox does for the request.
    cpu: float
    # The script alone, in an interpreter that has run it before.
    warm: float


def aws_lambda(script: Script) -> float:
    """On Lambda, where one request after the other runs in an environment."""
    return lambda_request(script.duration)


def warm_interpreter(script: Script) -> float:
    """On Lambda, in the function's own interpreter: no isolation, and what a script leaves behind stays."""
    return lambda_request(script.warm)


def lambda_request(seconds: float) -> float:
    """A request to a function of one CPU that takes so long."""
    return LAMBDA_REQUEST + step(seconds, 0.001) * LAMBDA_GB * LAMBDA_GB_SECOND


def cloud_run_rare(script: Script) -> float:
    """On Cloud Run with requests that never overlap: an instance is billed for each."""
    return CLOUD_RUN_REQUEST + step(script.duration, 0.1) * cloud_run_second()


def cloud_run_busy(script: Script) -> float:
    """On Cloud Run with instances at `LOAD`, where requests share the billed time."""
    return CLOUD_RUN_REQUEST + script.cpu / CLOUD_RUN_CPUS / LOAD * cloud_run_second()


def cloud_run_second() -> float:
    """An instance for a second."""
    return CLOUD_RUN_CPUS * CLOUD_RUN_CPU_SECOND + CLOUD_RUN_GIB * CLOUD_RUN_GIB_SECOND


def virtual_machine(script: Script) -> float:
    """On machines at `LOAD`."""
    return script.cpu / VM_CPUS / LOAD * VM_HOUR / 3600


def microvm(script: Script) -> float:
    """At a service with a microVM for each request."""
    seconds = MICROVM_SECONDS + script.warm
    return seconds * (MICROVM_CPUS * MICROVM_CPU_SECOND + MICROVM_GIB * MICROVM_GIB_SECOND)


ROWS: dict[str, Callable[[Script], float]] = {
    "mainbox on AWS Lambda": aws_lambda,
    "mainbox on Cloud Run, requests that never overlap": cloud_run_rare,
    f"mainbox on Cloud Run at {LOAD:.0%} load": cloud_run_busy,
    f"mainbox on virtual machines at {LOAD:.0%} load": virtual_machine,
    "a function on AWS Lambda that runs scripts in its own interpreter": warm_interpreter,
    "a service that starts a microVM for each script": microvm,
}


def step(seconds: float, size: float) -> float:
    """Rounds up to a multiple of `size`."""
    return math.ceil(seconds / size) * size


def durations() -> dict[str, float]:
    """Returns the median durations that the emulator reports, seconds."""
    emulator = next(ROOT.glob(".sam/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64"))
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder)
        shutil.copy(ROOT / "bootstrap", task)
        (task / "mainbox").symlink_to(ROOT / "target/release/mainbox")
        (task / "tmp").mkdir()
        log = task / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "TMPDIR": f"{folder}/tmp",
            "MAINBOX_PYTHON": str(ROOT / ".venv/bin/python3"),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
        }
        address = "127.0.0.1:9900"
        arguments = ["--runtime-interface-emulator-address", address, "--runtime-api-address", "127.0.0.1:9901"]
        with log.open("w") as output:
            process = subprocess.Popen(
                [emulator, *arguments, task / "bootstrap"], stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        try:
            time.sleep(1)
            return {name: duration(address, name, log) for name in SCRIPTS}
        finally:
            process.terminate()
            process.wait()


def duration(address: str, name: str, log: Path) -> float:
    """Returns the median duration of the requests with a script, seconds."""
    url = f"http://{address}/2015-03-31/functions/function/invocations"
    # The first one starts the service, and is not counted.
    for _ in range(1 + REQUESTS[name]):
        with urllib.request.urlopen(url, json.dumps({"script": SCRIPTS[name]}).encode(), timeout=60) as response:
            answer = response.read()
        assert b'"result":' in answer, answer
        # The next worker starts meanwhile, as between the requests of real users.
        time.sleep(0.02)
    time.sleep(0.5)
    reported = re.findall(r"\tDuration: ([\d.]+) ms", log.read_text())[-REQUESTS[name] :]
    assert len(reported) == REQUESTS[name], reported
    return statistics.median(map(float, reported)) / 1000


def warm_seconds(name: str) -> float:
    """Returns how long a script takes in an interpreter that has run it before, seconds."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        names: dict[str, Callable[[], object]] = {}
        exec(SCRIPTS[name], names)
        names["main"]()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Prints both tables."""
    billed = durations()
    scripts = {
        name: Script(
            duration=billed[name],
            cpu=cpu_seconds(BENCHMARK[name]) + (1 if name == "one second of CPU" else 0),
            warm=warm_seconds(name),
        )
        for name in SCRIPTS
    }
    print(f"| seconds | {' | '.join(scripts)} |\n|---|{'---|' * len(scripts)}")
    for field in ("duration", "cpu", "warm"):
        print(f"| {field} | {' | '.join(f'{getattr(script, field):.4f}' for script in scripts.values())} |")
    print(f"\n| a million of | {' | '.join(scripts)} |\n|---|{'---|' * len(scripts)}")
    for name, cost in ROWS.items():
        print(f"| {name} | {' | '.join(f'${cost(script) * 1e6:.2f}' for script in scripts.values())} |")


if __name__ == "__main__":
    main()
