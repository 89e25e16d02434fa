"""Real MCP clients against a real server: `make mcp`."""

import json
import os
import re
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from mcp import Client, StdioServerParameters

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / "target/debug/mainbox"
INSTALLED = REPOSITORY / ".mcp"
NODE = INSTALLED / "node_modules/.bin"
KEY = "0123456789abcdef"
# The newest of each era, and the name that the SDK has for it.
ERAS = {"2026-07-28": "auto", "2025-11-25": "legacy"}
DOCUMENT = (REPOSITORY / "docs/agents.md").read_text()


def environment(**settings: str) -> dict[str, str]:
    """Returns the environment for a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAINBOX_")}
    return kept | {"MAINBOX_PYTHON": os.environ["MAINBOX_PYTHON"], **settings}


def run_node(*command: str | Path, home: str | None = None, **variables: str) -> str:
    """Runs a program of the npm packages with their Node. Returns what it prints."""
    path = f"{NODE}:{os.environ['PATH']}"
    variables = {"HOME": home} | variables if home else variables
    variables = environment() | {"PATH": path, **variables}
    ended = subprocess.run(command, check=False, env=variables, cwd=home, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        raise AssertionError(f"{command} exits with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout + ended.stderr


def block(title: str) -> str:
    """Returns the first code block of docs/agents.md after this text."""
    return re.search(r"```\w+\n(.*?)```", DOCUMENT.partition(title)[2], re.DOTALL)[1]


class Server:
    """A healthy server, started for a test."""

    def __init__(self, **settings: str) -> None:
        settings = {"PORT": "0", "MAINBOX_HOST": "127.0.0.1", **settings}
        self.process = subprocess.Popen([BINARY], env=environment(**settings), stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if address := re.search(r'"address":"127\.0\.0\.1:(\d+)"', line):
                self.base = f"http://127.0.0.1:{address[1]}"
                break
        self.url = f"{self.base}/mcp"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.base}/health"):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server is not healthy")

    def metrics(self) -> str:
        """Returns the metrics."""
        with urllib.request.urlopen(f"{self.base}/metrics") as response:
            return response.read().decode()

    def end(self) -> None:
        """Stops the server."""
        self.process.terminate()
        self.process.wait()
        self.process.stderr.close()


class WithServer(unittest.IsolatedAsyncioTestCase):
    """Tests that share a server without API keys."""

    server: Server

    @classmethod
    def setUpClass(cls) -> None:
        """Starts the server."""
        cls.server = Server(MAINBOX_TIMEOUT_SECONDS="2")
        cls.addClassCleanup(cls.server.end)


class Conformance(WithServer):
    """The official suite, and the Inspector."""

    def test_the_suite_finds_only_what_is_listed(self) -> None:
        """An expected failure that passes is an error too."""
        for revision in ERAS:
            with self.subTest(revision):
                expected = REPOSITORY / f"tests/clients/expected-failures-{revision}.yaml"
                suite = [NODE / "conformance", "server", "--url", self.server.url]
                printed = run_node(*suite, "--requirements", revision, "--expected-failures", expected)
                self.assertRegex(printed, r"✓ tools-list: 3 passed, 0 failed")
                self.assertRegex(printed, r"✓ dns-rebinding-protection: 2 passed, 0 failed")

    def test_the_inspector_lists_and_calls_over_both_transports_in_both_eras(self) -> None:
        """--strict makes a schema that some model provider does not take an error."""
        stdio = ["-e", f"MAINBOX_PYTHON={os.environ['MAINBOX_PYTHON']}", str(BINARY), "mcp"]
        for target in ([self.server.url], stdio):
            for era in ("modern", "legacy"):
                with self.subTest(target=target, era=era):
                    inspector = [NODE / "inspector", "--cli", "--quiet", "--protocol-era", era]
                    tools = run_node(*inspector, "--method", "tools/list", "--strict", *target)
                    self.assertEqual([tool["name"] for tool in json.loads(tools)["tools"]], ["run_python"])
                    call = ["--method", "tools/call", "--tool-name", "run_python"]
                    script = ["--tool-args-json", json.dumps({"script": "print(6 * 7)"})]
                    result = json.loads(run_node(*inspector, *call, *script, *target))
                    self.assertEqual(result["content"], [{"type": "text", "text": "42\n"}])


class Sdk(WithServer):
    """The official SDK for Python, over HTTP in both eras and over stdio."""

    async def each(self, arguments: dict[str, object]) -> list[tuple[str, CallToolResult]]:
        """Calls the tool in each era over each transport. Returns the results, each with the mode of its client."""
        variables = environment(MAINBOX_TIMEOUT_SECONDS="2")
        stdio = StdioServerParameters(command=str(BINARY), args=["mcp"], env=variables)
        results = []
        for mode in ERAS.values():
            for target in (self.server.url, stdio):
                async with Client(target, mode=mode) as client:
                    results.append((mode, await client.call_tool("run_python", arguments)))
        return results

    async def test_a_data_frame_comes_back(self) -> None:
        """The older era wants an object."""
        script = "import pandas as pd\ndef main(input):\n    return pd.DataFrame(input)"
        for mode, result in await self.each({"script": script, "input": {"a": [1, 2]}}):
            rows = [{"a": 1}, {"a": 2}]
            self.assertFalse(result.is_error)
            self.assertEqual(result.content[0].text, '[{"a":1},{"a":2}]')
            self.assertEqual(result.structured_content, rows if mode == "auto" else {"result": rows})

    async def test_a_plot_comes_back_as_an_image(self) -> None:
        """As PNG in base64."""
        script = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\nplt.show()"
        for _, result in await self.each({"script": script}):
            names, image = result.content
            self.assertEqual((names.text, image.type, image.mime_type), ("Files: figure-1.png", "image", "image/png"))
            self.assertTrue(image.data.startswith("iVBORw0KGgo"))

    async def test_an_error_and_a_timeout_are_results(self) -> None:
        """So the model can correct its script."""
        for script, kind in (("def main():\n    return 1 / 0", "exception"), ("while True: pass", "timeout")):
            for _, result in await self.each({"script": script}):
                self.assertTrue(result.is_error)
                self.assertEqual(result.structured_content["kind"], kind)

    async def test_a_client_hears_of_the_progress_of_its_call(self) -> None:
        """What the script prints, while it runs."""
        # print() would write each line break by itself.
        script = "import sys, time\nsys.stdout.write('first\\n')\ntime.sleep(0.5)\nsys.stdout.write('second\\n')"
        stdio = StdioServerParameters(command=str(BINARY), args=["mcp"], env=environment())
        for mode in ERAS.values():
            for target in (self.server.url, stdio):
                heard = []

                async def hear(progress: float, _: float | None, message: str | None, heard: list = heard) -> None:
                    heard.append((progress, message))

                async with Client(target, mode=mode) as client:
                    await client.call_tool("run_python", {"script": script}, progress_callback=hear)
                self.assertEqual(heard, [(1, "first\n"), (2, "second\n")])

    async def test_a_call_that_is_given_up_is_cancelled(self) -> None:
        """The SDK closes the connection of the call, in the older era with that of the client."""
        for mode in ERAS.values():
            async with Client(self.server.url, mode=mode) as client:
                with self.assertRaises(MCPError):
                    script = {"script": "import time\ntime.sleep(9)"}
                    await client.call_tool("run_python", script, read_timeout_seconds=0.3)
        for _ in range(100):
            if 'kind="left"} 2' in self.server.metrics():
                return
            time.sleep(0.1)
        self.fail(self.server.metrics())

    async def test_a_wrong_key_is_refused(self) -> None:
        """And the right one is served."""
        server = Server(MAINBOX_API_KEYS=KEY, MAINBOX_PRELOAD="")
        self.addCleanup(server.end)
        for mode in ERAS.values():
            for key in (KEY, "f" * 16):
                http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"})
                transport = streamable_http_client(server.url, http_client=http)
                with self.subTest(mode=mode, key=key):
                    if key == KEY:
                        async with Client(transport, mode=mode) as client:
                            result = await client.call_tool("run_python", {"script": "print(1)"})
                            self.assertEqual(result.content[0].text, "1\n")
                    else:
                        with self.assertRaises(BaseException) as caught:
                            async with Client(transport, mode=mode):
                                pass
                        self.assertIn("Unknown API key", repr(caught.exception))


class Documented(WithServer):
    """The lines of docs/agents.md."""

    def test_claude_code_and_codex_take_their_lines(self) -> None:
        """Claude Code also connects."""
        server = Server(MAINBOX_API_KEYS=KEY, MAINBOX_PRELOAD="")
        self.addCleanup(server.end)
        with tempfile.TemporaryDirectory() as home:
            variables = {"MAINBOX_KEY": KEY, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
            for title in ("Claude Code:", "Codex:"):
                line = block(title).replace("http://localhost:8080/mcp", server.url)
                run_node("bash", "-c", line, home=home, **variables)
            listed = run_node(NODE / "claude", "mcp", "list", home=home, **variables)
            self.assertRegex(listed, rf"mainbox: {server.url} \(HTTP\) - . Connected")
            listed = run_node(NODE / "codex", "mcp", "list", home=home, **variables)
            self.assertRegex(listed, rf"mainbox +{server.url} +MAINBOX_KEY +enabled +Bearer token")

    def test_the_files_for_other_clients_are_well_formed_and_have_the_address(self) -> None:
        """These clients cannot run here."""
        for title in ("VS Code,", "Cursor,"):
            file = json.loads(block(title))
            servers = file.get("servers") or file["mcpServers"]
            self.assertEqual(servers["mainbox"]["url"], "http://localhost:8080/mcp")
        stdio = json.loads(block("Claude Desktop"))["mcpServers"]["mainbox"]
        self.assertEqual((stdio["command"], stdio["args"]), ("mainbox", ["mcp"]))

    def test_the_snippets_run(self) -> None:
        """With the packages that they name."""
        for title, python, expected in (
            ("LangChain,", "langchain", "42\n\n"),
            ("smolagents,", "smolagents", "42\n\n"),
            ("The MCP SDK for Python", "venv", "42.0\n"),
        ):
            with self.subTest(title):
                script = block(title).replace("http://localhost:8080", self.server.base)
                interpreter = INSTALLED / python / "bin/python3"
                ended = subprocess.run(
                    [interpreter, "-c", script], check=False, capture_output=True, text=True, timeout=60
                )
                self.assertEqual((ended.returncode, ended.stdout), (0, expected), ended.stderr)

    def test_the_snippets_for_live_output_run(self) -> None:
        """The Python and the JavaScript of docs/api.md."""
        document = (REPOSITORY / "docs/api.md").read_text().partition("## Live output")[2]
        python = re.search(r"```python\n(.*?)```", document, re.DOTALL)[1]
        javascript = re.search(r"```js\n(.*?)```", document, re.DOTALL)[1]
        server = Server()
        self.addCleanup(server.end)
        # An environment that has httpx.
        interpreter = INSTALLED / "langchain/bin/python3"
        printed = run_node(interpreter, "-c", python.replace("http://localhost:8080", server.base))
        self.assertEqual(printed, "0\n1\n2\n2 None\n")
        javascript = javascript.replace("http://localhost:8080", server.base)
        printed = run_node(NODE / "node", "--input-type=module", "-e", javascript)
        self.assertEqual(printed.split("{")[0], "0\n\n1\n\n2\n\n")
        self.assertIn("result: 2,", printed)

    def test_an_openapi_tool_server_is_found(self) -> None:
        """Open WebUI reads /openapi.json and calls operations by their id."""
        with urllib.request.urlopen(f"{self.server.base}/openapi.json") as response:
            document = json.load(response)
        self.assertEqual(document["paths"]["/execute"]["post"]["operationId"], "execute")


if __name__ == "__main__":
    unittest.main()
