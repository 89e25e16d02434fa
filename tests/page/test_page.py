"""The playground page in headless Chromium: `make page`. Screenshots go to target/page."""

import base64
import json
import os
import re
import subprocess
import tempfile
import threading
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
SHOTS = REPOSITORY / "target" / "page"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
KEY = "0123456789abcdef"
# Without the last three flags, Chromium sends requests to hosts of its vendor.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """A healthy server, started for a test."""

    def __init__(self, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAINBOX_")}
        environment |= {"PORT": "0", "MAINBOX_PYTHON": os.environ["PAGE_PYTHON"], **settings}
        self.process = subprocess.Popen(
            [REPOSITORY / "target/debug/mainbox"], env=environment, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self.url = ""
        for line in self.process.stderr:
            if address := re.search(r'"address":"(?:\[::\]|0\.0\.0\.0|127\.0\.0\.1):(\d+)"', line):
                self.url = f"http://127.0.0.1:{address[1]}/"
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        health = ["target/debug/mainbox", "health"]
        for _ in range(300):
            healthy = subprocess.run(
                health,
                check=False,
                env=environment | {"PORT": self.url.split(":")[2][:-1]},
                capture_output=True,
                cwd=REPOSITORY,
            )
            if healthy.returncode == 0:
                return
            threading.Event().wait(0.1)
        raise RuntimeError("the server is not healthy")

    def end(self) -> None:
        """Stops the server."""
        self.process.terminate()
        self.process.wait()
        self.process.stderr.close()


class PageTest(unittest.TestCase):
    """What a visitor does on the page."""

    @classmethod
    def setUpClass(cls) -> None:
        """Starts one server and one browser for all tests."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        cls.server = Server()
        cls.addClassCleanup(cls.server.end)
        cls.playwright = cls.enterClassContext(sync_playwright())
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        cls.addClassCleanup(cls.browser.close)

    @contextmanager
    def context(self, **options: object) -> Iterator[BrowserContext]:
        """Opens a fresh browser profile. A request to another host, or an error in the console, fails the test."""
        context = self.browser.new_context(**options)
        problems: list[str] = []
        context.on("request", lambda request: problems.append(request.url) if self.is_elsewhere(request.url) else None)
        context.on("console", lambda message: problems.append(message.text) if self.is_problem(message) else None)
        context.on("weberror", lambda error: problems.append(str(error.error)))
        try:
            yield context
        finally:
            context.close()
        self.assertEqual(problems, [])

    @staticmethod
    def is_elsewhere(url: str) -> bool:
        """Returns whether a request leaves this machine."""
        return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))

    @staticmethod
    def is_problem(message: object) -> bool:
        """Returns whether a console message is a problem. Chromium also logs every response that is not a 200."""
        return message.type in ("error", "warning") and "the server responded with a status of" not in message.text

    @contextmanager
    def page(self, url: str | None = None, **options: object) -> Iterator[Page]:
        """Loads the page."""
        with self.context(**options) as context:
            page = context.new_page()
            page.goto(url or self.server.url)
            yield page

    def run_script(self, page: Page, script: str) -> None:
        """Runs a script with the keyboard only."""
        page.get_by_label("Python script").fill(script)
        page.keyboard.press("Control+Enter")

    def test_every_example_shows_its_outcome(self) -> None:
        """Runs every example; only the one about an error fails."""
        with self.page() as page:
            expect(page.locator("#about")).to_contain_text("isolation: namespaces")
            options = page.locator("#example option").all_text_contents()
            self.assertEqual(len(options), 8)
            for option in options:
                page.get_by_label("Example").select_option(option)
                page.get_by_role("button", name="Run", exact=True).click()
                expect(page.locator("#status")).to_contain_text("exception" if "error" in option else "ok")
                expect(page.locator("#status")).to_contain_text("run ")
                page.locator("#status").evaluate("element => element.replaceChildren()")

    def test_a_result_is_a_tree_that_unfolds(self) -> None:
        """Opens folded values; large numbers are not rounded."""
        script = "def main(): return {'deep': {'er': [[1, 'two', None]]}, 'big': 2**70, 'html': '<img src=x onerror=alert(1)>'}"
        with self.page() as page:
            self.run_script(page, script)
            tree = page.locator(".tree")
            expect(tree).to_contain_text("1180591620717411303424")
            expect(tree).to_contain_text("<img src=x onerror=alert(1)>")
            expect(tree.locator("img")).to_have_count(0)
            expect(tree).not_to_contain_text("two")
            tree.locator("summary", has_text="er").last.click()
            tree.locator("summary", has_text="0").last.click()
            expect(tree).to_contain_text('"two"')
            self.run_script(page, "def main(): return list(range(1000))")
            top = page.locator(".tree > details > summary")
            expect(top).to_have_text("[1000]")
            top.click()
            page.get_by_role("button", name="800 more").click()
            expect(page.get_by_role("button", name="600 more")).to_be_visible()

    def test_an_error_marks_its_line_and_editing_removes_the_mark(self) -> None:
        """The line is that of the script."""
        with self.page() as page:
            self.run_script(page, "def main():\n    print('before')\n    return 1 / 0\n")
            expect(page.locator(".sentence")).to_have_text("ZeroDivisionError: division by zero")
            expect(page.locator("#status")).to_contain_text("exception")
            expect(page.locator(".row.bad")).to_have_text("    return 1 / 0")
            expect(page.locator("#blocks")).to_contain_text("before")
            expect(page.locator("#blocks")).to_contain_text('File "script.py", line 3, in main')
            page.get_by_role("button", name="line 3").click()
            page.keyboard.type("#")
            expect(page.locator(".row.bad")).to_have_count(0)
            self.assertEqual(page.get_by_label("Python script").input_value().split("\n")[2], "#    return 1 / 0")

    def test_the_editor_helps_to_write_python(self) -> None:
        """Indents, colors, and lets the keyboard leave the editor."""
        with self.page() as page:
            page.get_by_label("Python script").fill("")
            page.keyboard.type("def main():\nif True:\nreturn '''a\n")
            page.keyboard.type("b''' # no comment")
            script = page.get_by_label("Python script")
            self.assertEqual(
                script.input_value(), "def main():\n    if True:\n        return '''a\n        b''' # no comment"
            )
            rows = page.locator("#highlight .row")
            expect(rows.nth(0).locator(".definition")).to_have_text("main")
            expect(rows.nth(1).locator(".keyword")).to_have_text(["if", "True"])
            expect(rows.nth(3).locator(".string")).to_have_text("        b'''")
            expect(rows.nth(3).locator(".comment")).to_have_text("# no comment")
            page.keyboard.press("Tab")
            self.assertTrue(script.input_value().endswith("# no comment    "))
            page.keyboard.press("Control+A")
            page.keyboard.press("Tab")
            self.assertEqual(script.input_value().split("\n")[1], "        if True:")
            page.keyboard.press("Escape")
            page.keyboard.press("Tab")
            expect(page.get_by_label("Input, JSON")).to_be_focused()

    def test_input_and_files_reach_the_script_and_outputs_are_shown(self) -> None:
        """Includes a picture, a download, and a number that JavaScript would round."""
        script = """import base64
def main(n):
    open("outputs/dot.png", "wb").write(open("dot.png", "rb").read())
    open("outputs/note.txt", "w").write("é")
    return n + 1
"""
        dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        with self.page() as page, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "dot.png"
            file.write_bytes(base64.b64decode(dot))
            page.get_by_label("Files for the working directory").set_input_files(file)
            expect(page.get_by_role("button", name="dot.png")).to_be_visible()
            page.get_by_label("Input, JSON").fill("9007199254740993")
            self.run_script(page, script)
            expect(page.locator(".tree")).to_have_text("9007199254740994")
            picture = page.get_by_role("img", name="dot.png")
            self.assertEqual(picture.evaluate("image => image.decode().then(() => image.naturalWidth)"), 1)
            with page.expect_download() as download:
                page.get_by_role("link", name="note.txt").click()
            self.assertEqual(Path(download.value.path()).read_text(), "é")
            page.get_by_label("Input, JSON").fill("{")
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.locator("#status")).to_contain_text("The input is not JSON")

    def test_a_run_can_be_stopped(self) -> None:
        """The button shows the time since the start."""
        with self.page() as page:
            self.run_script(page, "import time\ndef main(): time.sleep(9)")
            expect(page.get_by_role("button", name="Stop, 1 s")).to_be_visible()
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#status")).to_contain_text("Stopped")

    def test_output_is_shown_while_the_script_runs_and_stays_when_it_is_stopped(self) -> None:
        """Stopping ends the script, and keeps what it has printed."""
        script = """import sys, time
def main():
    for number in range(90):
        print("line", number)
        print("<b>warning</b>", file=sys.stderr)
        time.sleep(0.1)
"""
        with self.page() as page:
            self.run_script(page, script)
            expect(page.locator("#blocks")).to_contain_text("line 3\nline 4")
            expect(page.locator("#blocks")).to_contain_text("<b>warning</b>")
            expect(page.locator("#status")).to_have_text("running")
            expect(page.locator("#blocks h2")).to_have_text(["stdout", "stderr"])
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#status")).to_contain_text("Stopped")
            expect(page.locator("#blocks")).to_contain_text("line 4")
            metrics = page.request.get(self.server.url + "metrics")
            for _ in range(100):
                if "mainbox_running 0\n" in metrics.text():
                    break
                metrics = page.request.get(self.server.url + "metrics")
            self.assertIn("mainbox_running 0\n", metrics.text())

    def test_hostile_outputs_are_shown_as_text(self) -> None:
        """Names, pictures and text that a script returns never run in the page."""
        script = """def main():
    open("outputs/x.svg", "w").write('<svg xmlns="http://www.w3.org/2000/svg" onload="parent.hurt = 1"><script>parent.hurt = 1</script></svg>')
    open("outputs/&lt;b&gt;.html", "w").write("<script>opener.hurt = 1</script>")
    print("<script>hurt = 1</script>")
    return {"</script><script>hurt = 1</script>": 1, "__proto__": {"hurt": 1}}
"""
        with self.page() as page:
            self.run_script(page, script)
            expect(page.locator("#status")).to_contain_text("ok")
            expect(page.locator("#blocks")).to_contain_text("&lt;b&gt;.html")
            expect(page.locator("#blocks script, #blocks b")).to_have_count(0)
            self.assertIsNone(page.evaluate("window.hurt ?? {}.hurt ?? null"))

    def test_the_javascript_of_the_readme_runs_a_script(self) -> None:
        """Runs the snippet in a page of the same origin."""
        snippet = (REPOSITORY / "README.md").read_text().split("```javascript\n")[1].split("```")[0]
        with self.page() as page:
            call = "execute('def main(x): return x * 2', 21, 'execute')"
            self.assertEqual(page.evaluate(f"async () => {{ {snippet} return {call} }}"), 42)
            call = "execute('def main(x): raise ValueError', 21, 'execute').catch((error) => error.kind)"
            self.assertEqual(page.evaluate(f"async () => {{ {snippet} return {call} }}"), "exception")

    def test_a_service_on_loopback_refuses_a_name_that_a_stranger_points_at_it(self) -> None:
        """Opens it under a foreign name, as after DNS rebinding."""
        server = Server(MAINBOX_HOST="127.0.0.1", MAINBOX_PRELOAD="")
        self.addCleanup(server.end)
        rebound = [*FLAGS, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=rebound)
        self.addCleanup(browser.close)
        page = browser.new_page()
        answer = page.goto(server.url.replace("127.0.0.1", "evil.example"))
        self.assertEqual((answer.status, answer.json()["kind"]), (403, "forbidden_origin"))
        self.assertEqual(page.goto(server.url).status, 200)

    def test_an_api_key_is_requested_and_kept_for_the_tab(self) -> None:
        """Without the key no script runs."""
        server = Server(MAINBOX_API_KEYS=KEY, MAINBOX_PRELOAD="")
        self.addCleanup(server.end)
        with self.page(server.url) as page:
            expect(page.get_by_label("API key")).to_be_visible()
            self.run_script(page, "def main(): return 'open'")
            expect(page.locator("#status")).to_contain_text("unauthorized")
            expect(page.get_by_label("API key")).to_be_focused()
            page.keyboard.type(KEY)
            page.keyboard.press("Control+Enter")
            expect(page.locator(".tree")).to_have_text('"open"')
            page.reload()
            expect(page.locator("#about")).to_contain_text("isolation")
            self.run_script(page, "def main(): return 'again'")
            expect(page.locator(".tree")).to_have_text('"again"')

    def test_examples_of_missing_packages_are_hidden(self) -> None:
        """Uses an interpreter without packages."""
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["python3", "-m", "venv", "--without-pip", folder], check=True)
            server = Server(MAINBOX_PYTHON=f"{folder}/bin/python3", MAINBOX_PRELOAD="")
            self.addCleanup(server.end)
            with self.page(server.url) as page:
                expect(page.locator("#example option")).to_have_count(5)
                self.assertNotIn("matplotlib", page.locator("#example").inner_text())

    def test_programs_get_the_index_and_browsers_too_when_the_page_is_off(self) -> None:
        """The Accept header decides."""
        server = Server(MAINBOX_PAGE="off", MAINBOX_PRELOAD="")
        self.addCleanup(server.end)
        with self.context() as context:
            for url, accept, media in [
                (self.server.url, "text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
                (self.server.url, "*/*", "application/json"),
                (self.server.url, "application/json", "application/json"),
                (server.url, "text/html", "application/json"),
            ]:
                response = context.request.get(url, headers={"Accept": accept})
                self.assertEqual((response.headers["content-type"], response.headers["vary"]), (media, "accept"))
            html = context.request.get(self.server.url, headers={"Accept": "text/html"})
            policy = html.headers["content-security-policy"]
            self.assertTrue(policy.startswith("default-src 'none'; script-src 'sha256-"), policy)
            self.assertNotIn("unsafe", policy)
            self.assertLess(len(html.body()), 64 * 1024)

    def test_the_tab_for_agents_has_a_line_for_each_client(self) -> None:
        """The lines have the address of the page, and ask for a key only if one is needed."""
        with self.page(permissions=["clipboard-read", "clipboard-write"]) as page:
            expect(page.locator("#about")).to_contain_text("isolation")
            tab = page.get_by_role("tab", name="Use it from an agent")
            page.get_by_role("tab", name="Run a script").focus()
            page.keyboard.press("ArrowRight")
            expect(tab).to_be_focused()
            expect(page.get_by_label("Python script")).to_be_hidden()
            line = f"claude mcp add --transport http mainbox {self.server.url}mcp"
            expect(page.locator(".agent pre").first).to_have_text(line)
            expect(page.locator(".agent")).to_have_count(8)
            for text in page.locator(".agent pre").all_text_contents():
                self.assertIn(self.server.url, text)
                self.assertNotIn("KEY", text)
            page.get_by_role("button", name="Copy the line for Claude Code").click()
            expect(page.get_by_role("button", name="Copy the line for Claude Code")).to_have_text("Copied")
            self.assertEqual(page.evaluate("navigator.clipboard.readText()"), line)
            page.set_viewport_size({"width": 390, "height": 844})
            self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 390)
            page.screenshot(path=SHOTS / "agents-light-390.png", full_page=True)
            page.get_by_role("tab", name="Run a script").click()
            expect(page.get_by_label("Python script")).to_be_visible()
        locked = Server(MAINBOX_API_KEYS=KEY)
        self.addCleanup(locked.end)
        with self.page(locked.url) as page:
            page.get_by_role("tab", name="Use it from an agent").click()
            header = '--header "Authorization: Bearer KEY"'
            expect(page.locator(".agent pre").first).to_contain_text(header)
        without = Server(MAINBOX_MCP="off")
        self.addCleanup(without.end)
        with self.page(without.url) as page:
            expect(page.locator("#about")).to_contain_text("isolation")
            expect(page.get_by_role("tab", name="Use it from an agent")).to_be_hidden()

    def test_it_looks_right_in_both_themes_and_on_a_phone(self) -> None:
        """Nothing is wider than the window. The screenshots are for people."""
        for scheme in ("light", "dark"):
            for width, height in ((1280, 800), (390, 844)):
                with self.page(color_scheme=scheme, viewport={"width": width, "height": height}) as page:
                    expect(page.locator("#about")).to_contain_text("isolation")
                    for name, example in (("plot", "matplotlib: a plot"), ("error", "An error, with its line")):
                        page.get_by_label("Example").select_option(example)
                        page.get_by_role("button", name="Run", exact=True).click()
                        expect(page.locator("#status")).to_contain_text("exception" if name == "error" else "ok")
                        expect(page.locator("#status")).to_be_in_viewport()
                        wide = page.evaluate("document.documentElement.scrollWidth")
                        self.assertLessEqual(wide, width, f"{name} at {width}")
                        page.screenshot(path=SHOTS / f"{name}-{scheme}-{width}.png", full_page=True)

    def test_text_is_readable_in_both_themes(self) -> None:
        """Every color of text has at least the contrast that WCAG level AA requires, 4.5."""
        measure = """() => {
            const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
            const luminance = (color) => {
                const [r, g, b] = numbers(color).map((part) => part / 255).map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const paper = (element) => {
                const color = getComputedStyle(element).backgroundColor;
                return numbers(color)[3] === 0 ? paper(element.parentElement) : color;
            };
            const low = [];
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const element = walker.currentNode.parentElement;
                if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, textarea, select")) continue;
                const pair = [getComputedStyle(element).color, paper(element)].map(luminance).sort((a, b) => b - a);
                const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
                if (contrast < 4.5) low.push([element.className || element.tagName, walker.currentNode.data.slice(0, 20), contrast]);
            }
            return low;
        }"""
        for scheme in ("light", "dark"):
            with self.page(color_scheme=scheme) as page:
                for example in ("An error, with its line", "pandas, already in memory", "Files in, files out"):
                    page.locator("#status").evaluate("element => element.replaceChildren()")
                    page.get_by_label("Example").select_option(example)
                    page.get_by_role("button", name="Run", exact=True).click()
                    expect(page.locator("#status")).to_contain_text("run ")
                    self.assertEqual(json.dumps(page.evaluate(measure)), "[]", f"{scheme} {example}")
                page.get_by_role("tab", name="Use it from an agent").click()
                self.assertEqual(json.dumps(page.evaluate(measure)), "[]", f"{scheme} agents")


if __name__ == "__main__":
    unittest.main()
