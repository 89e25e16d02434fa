"""Simulates requests that wait for a worker, draws docs/benchmarks/scaling.svg, and compares the simulation with a real run.

    make scaling    # needs two idle CPUs

The model: requests arrive at random (a Poisson process) and wait in one queue. As many run at once as there are CPUs, each
for the CPU time of its kind. A request that finds 64 waiting, or has waited for 10 seconds, is refused. These are the
defaults of mainbox.
"""

import heapq
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUEUE = 64
QUEUE_SECONDS = 10.0
# Each point of the plot is the result of so many requests.
REQUESTS = 60_000
# Seconds of load for each row of the comparison.
CHECKED_SECONDS = 120
CHECKED_LOADS = (0.5, 0.8)


@dataclass(frozen=True)
class Kind:
    """A kind of request: its share of all, and the CPU time that it takes, seconds."""

    share: float
    seconds: float


def cpu_seconds(kind: str) -> float:
    """Returns the CPU time of a request when all CPUs are busy, with everything that the service does for it."""
    stored = json.loads((ROOT / "docs/benchmarks/host.json").read_text())
    what = f"{kind}, requests per second, 8 clients"
    return stored["cpus"] / next(row["value"] for row in stored["rows"] if row["what"] == what)


def percentile(sorted_values: list[float], share: float) -> float:
    """Returns the value below which that share of all values is."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def arrivals(kinds: list[Kind], load: float, cpus: int, chance: random.Random) -> Iterator[tuple[float, float]]:
    """Yields times of arrival and CPU times without end. `load` is the part of all CPU time that is asked for."""
    mean = sum(kind.share * kind.seconds for kind in kinds)
    now = 0.0
    while True:
        now += chance.expovariate(load * cpus / mean)
        yield now, chance.choices(kinds, [kind.share for kind in kinds])[0].seconds


def simulate(requests: Iterable[tuple[float, float]], cpus: int) -> tuple[list[float], float]:
    """Returns the waits of the requests that ran, sorted, seconds; and the share that was refused."""
    free = [0.0] * cpus
    waiting: list[float] = []
    waits = []
    refused = 0
    for at, seconds in requests:
        # Those that have begun by now wait no more.
        while waiting and waiting[0] <= at:
            heapq.heappop(waiting)
        begin = max(at, free[0])
        if len(waiting) >= QUEUE or begin - at > QUEUE_SECONDS:
            refused += 1
            continue
        heapq.heapreplace(free, begin + seconds)
        if begin > at:
            heapq.heappush(waiting, begin)
        waits.append(begin - at)
    return sorted(waits), refused / (len(waits) + refused)


def example() -> list[Kind]:
    """The requests of the plot: mostly short summaries with pandas, and some scripts that compute for a while."""
    return [Kind(0.90, cpu_seconds("pandas")), Kind(0.09, 0.2), Kind(0.01, 2.0)]


def slowest(kinds: list[Kind], load: float, cpus: int) -> tuple[float, float]:
    """Returns the wait that 99% of the requests do not exceed, seconds; and the share that is refused."""
    requests = itertools.islice(arrivals(kinds, load, cpus, random.Random(1)), REQUESTS)
    waits, refused = simulate(requests, cpus)
    return percentile(waits, 0.99), refused


def up_to(waits: dict[float, float], most: float) -> str:
    """Returns the highest load up to which waits are at most `most` seconds."""
    highest = None
    for load, wait in waits.items():
        if wait > most:
            break
        highest = load
    return "none" if highest is None else f"{highest:.0%}"


def plot() -> None:
    """Draws waits against load, and prints a table for docs/scaling.md."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mainbox"
    import matplotlib.pyplot as plt

    loads = [0.05 * step for step in range(1, 20)]
    figure, axes = plt.subplots(figsize=(7, 4))
    headers = ("CPUs", "mix: 0.1 s", "1 s", "refused at full load", "short scripts only: 0.1 s", "1 s")
    print(f"| {' | '.join(headers)} |\n|{'---|' * len(headers)}")
    short = [Kind(1, cpu_seconds("pandas"))]
    for cpus in (1, 2, 4, 8, 16):
        waits = {load: slowest(example(), load, cpus)[0] for load in loads}
        axes.plot(loads, [max(wait, 1e-3) for wait in waits.values()], label=f"{cpus} CPU{'s' * (cpus > 1)}")
        short_waits = {load: slowest(short, load, cpus)[0] for load in loads}
        refused = slowest(example(), 1.0, cpus)[1]
        row = (up_to(waits, 0.1), up_to(waits, 1), f"{refused:.0%}", up_to(short_waits, 0.1), up_to(short_waits, 1))
        print(f"| {cpus} | {' | '.join(row)} |")
    axes.set(yscale="log", xlabel="CPU time asked for, of all that there is", ylabel="wait of the slowest 1%, seconds")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs/benchmarks/scaling.svg", metadata={"Date": None, "Creator": None})


SHORT = "import pandas as pd\ndef main():\n    return pd.DataFrame({'a': [1, 2, 3]}).sum()"
LONG = "import time\ndef main():\n    end = time.process_time() + 0.1\n    while time.process_time() < end: pass"


class Client:
    """Sends requests to a service of its own."""

    def __init__(self, cpus: int) -> None:
        environment = {"PORT": "0", "MAINBOX_HOST": "127.0.0.1", "MAINBOX_CONCURRENCY": str(cpus), **os.environ}
        environment.setdefault("MAINBOX_PYTHON", str(ROOT / ".venv/bin/python3"))
        self.process = subprocess.Popen(
            [ROOT / "target/release/mainbox"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stderr
        line = next(line for line in self.process.stderr if '"address"' in line)
        self.address = json.loads(line)["address"]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        while self.get("/health") != 200:
            time.sleep(0.05)

    def get(self, path: str) -> int:
        """Returns the status of the response."""
        connection = http.client.HTTPConnection(self.address)
        connection.request("GET", path)
        return connection.getresponse().status

    def run(self, script: str) -> float | None:
        """Returns how long the request waited for a worker, seconds, or `None` if it was refused."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("POST", "/execute", script, {"Content-Type": "text/x-python"})
        response = connection.getresponse()
        response.read()
        connection.close()
        if response.status != 200:
            return None
        timing = dict(part.strip().split(";dur=") for part in (response.getheader("Server-Timing") or "").split(","))
        return float(timing["queue"]) / 1000

    def throughput(self, script: str, clients: int, seconds: float) -> float:
        """Returns how many requests a second the service answers when it is never idle."""
        end = time.monotonic() + seconds
        counts = [0] * clients

        def send(index: int) -> None:
            while time.monotonic() < end:
                self.run(script)
                counts[index] += 1

        together([threading.Thread(target=send, args=(index,)) for index in range(clients)])
        return sum(counts) / seconds


def together(threads: list[threading.Thread]) -> None:
    """Runs threads to their ends."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check() -> None:
    """Prints what the simulation says and what a real service does with the same requests."""
    cpus = os.cpu_count() or 1
    client = Client(cpus)
    try:
        scripts = {cpus / client.throughput(script, 2 * cpus, 8): script for script in (SHORT, LONG)}
        short, long = scripts
        kinds = [Kind(0.8, short), Kind(0.2, long)]
        print(f"{cpus} CPUs; a request takes {short * 1000:.1f} or {long * 1000:.1f} ms of one CPU")
        print("| load | requests per second | wait | simulated | measured |")
        print("|---|---|---|---|---|")
        for load in CHECKED_LOADS:
            # Both get the same requests, since which ones come together decides how long the slowest wait.
            stream = arrivals(kinds, load, cpus, random.Random(3))
            requests = list(itertools.takewhile(lambda request: request[0] < CHECKED_SECONDS, stream))
            simulated, _ = simulate(requests, cpus)
            measured = measure(client, scripts, requests)
            per_second = len(requests) / CHECKED_SECONDS
            for name, share in (("median", 0.5), ("90%", 0.9), ("99%", 0.99)):
                values = f"{percentile(simulated, share) * 1000:.0f} ms | {percentile(measured, share) * 1000:.0f} ms"
                print(f"| {load:.0%} | {per_second:.0f} | {name} | {values} |")
    finally:
        client.process.terminate()
        client.process.wait()


def measure(client: Client, scripts: dict[float, str], requests: list[tuple[float, float]]) -> list[float]:
    """Sends requests at their times. Returns their waits, sorted, seconds."""
    waits: list[float | None] = []
    threads = []
    begin = time.monotonic()
    for at, seconds in requests:
        time.sleep(max(0, begin + at - time.monotonic()))
        thread = threading.Thread(target=lambda script=scripts[seconds]: waits.append(client.run(script)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    assert None not in waits, "requests were refused"
    return sorted(wait for wait in waits if wait is not None)


if __name__ == "__main__":
    {"plot": plot, "check": check}[sys.argv[1]]()
