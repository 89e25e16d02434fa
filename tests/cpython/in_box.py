"""Runs one module of CPython's own tests. `make cpython` sends this as a script, and also runs it outside the sandbox."""

import io
import os
import sys
import unittest

# Of the lines that are not printed by the tests themselves.
PREFIX = "test: "


class Results(unittest.TestResult):
    """Notes why tests fail, and prints each before it runs, so that one that never ends can be named."""

    def __init__(self) -> None:
        super().__init__()
        self.why: dict[str, str] = {}
        self.out = sys.stdout

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """Prints the name of a test."""
        super().startTest(test)
        print(f"{PREFIX}{test.id()}", file=self.out, flush=True)

    def note(self, test: object, error: object) -> None:
        """Keeps the first error of a test. A failed setUpClass stands for all tests of its class."""
        name = test.id() if isinstance(test, unittest.TestCase) else str(test)
        kind, value, _ = error  # type: ignore[misc]
        self.why.setdefault(name, f"{kind.__name__}: {value}".split("\n")[0][:200])

    def addError(self, test: object, err: object) -> None:  # noqa: N802
        """Notes an error."""
        self.note(test, err)

    def addFailure(self, test: object, err: object) -> None:  # noqa: N802
        """Notes a failure."""
        self.note(test, err)

    def addSubTest(self, test: object, subtest: object, err: object) -> None:  # noqa: N802
        """Notes what a part of a test raised."""
        if err is not None:
            self.note(test, err)


def main(name: str) -> dict[str, object]:
    """Returns which tests of a module were skipped, and why some failed."""
    results = Results()
    sys.stderr = io.StringIO()
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(name)
    except unittest.SkipTest as skipped:
        return {"skipped": [], "failed": {name: f"SkipTest: {skipped}"}}
    suite.run(results)
    return {"skipped": [test.id() for test, _ in results.skipped], "failed": results.why}


if __name__ == "__main__" and len(sys.argv) > 1:
    import json

    results_of_module = main(sys.argv[1])
    with open(sys.argv[2], "w") as file:
        json.dump(results_of_module, file)
    os._exit(0)
