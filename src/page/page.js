"use strict";

const MISSING = {};
const PICTURES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", svg: "image/svg+xml" };
const ENTRIES_AT_ONCE = 200;
const LONGEST_HIGHLIGHTED = 100000;

const EXAMPLES = [
  {
    title: "A result and a line of output",
    script: `def main():
    print("Hello from a fresh process")
    return {"answer": 40 + 2}
`,
  },
  {
    title: "An input",
    script: `import statistics

def main(numbers):
    print("got", len(numbers), "numbers")
    return {
        "mean": statistics.mean(numbers),
        "median": statistics.median(numbers),
    }
`,
    input: "[3, 1, 4, 1, 5, 9, 2, 6]",
  },
  {
    title: "pandas, already in memory",
    needs: "pandas",
    script: `import pandas as pd

def main():
    sales = pd.DataFrame({
        "city": ["Oslo", "Rome", "Oslo", "Lima"],
        "sold": [3, 5, 4, 8],
    })
    print(sales)
    return sales.groupby("city")["sold"].sum()
`,
  },
  {
    title: "numpy: a fitted line",
    needs: "numpy",
    script: `import numpy as np

def main():
    x = np.arange(10)
    y = 2 * x + 1 + np.random.default_rng().normal(0, 0.1, 10)
    slope, offset = np.polyfit(x, y, 1)
    return {"slope": slope.round(2), "offset": offset.round(2)}
`,
  },
  {
    title: "Files in, files out",
    script: `import csv

def main():
    with open("cities.csv", newline="") as file:
        cities = list(csv.DictReader(file))
    with open("outputs/names.txt", "w") as file:
        file.writelines(city["name"] + "\\n" for city in cities)
    return cities
`,
    files: { "cities.csv": "name,people\nOslo,717710\nLima,10092000\n" },
  },
  {
    title: "matplotlib: a plot",
    needs: "matplotlib",
    script: `import matplotlib.pyplot as plt
import numpy as np

def main():
    x = np.linspace(0, 2 * np.pi, 200)
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(x, np.sin(x), label="sin")
    axes.plot(x, np.cos(x), label="cos")
    axes.legend()
    figure.savefig("outputs/waves.png", dpi=120)
    return "see the picture"
`,
  },
  {
    title: "An error, with its line",
    script: `def share(total, people):
    return total / people

def main():
    print("dividing")
    return share(10, 0)
`,
  },
  {
    title: "What the sandbox refuses",
    script: `import os, socket

def attempt(act):
    try:
        return repr(act())
    except OSError as error:
        return f"refused: {error}"

def main():
    return {
        "the network": attempt(lambda: socket.create_connection(("1.1.1.1", 53), 1)),
        "a file of the host": attempt(lambda: open("/etc/passwd").read()),
        "other processes": attempt(lambda: os.listdir(f"/proc/{os.getppid()}")),
        "writing elsewhere": attempt(lambda: open("/usr/lib/mine", "w")),
    }
`,
  },
];

const at = (id) => document.getElementById(id);
const editor = { script: at("script"), rows: at("highlight"), frame: at("editor"), badLine: 0 };
const chosen = new Map();
let running = null;

/** An element with a class, text or children. */
function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

// Python, line by line: what a line begins in (a string of three quotes, or nothing) decides with its text how it looks.

const KEYWORDS = new Set("False None True and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield match case".split(" "));
const BUILTINS = new Set("abs all any bool bytes dict enumerate filter float format frozenset getattr hasattr hash int isinstance iter len list map max min next object open ord print range repr reversed round set setattr sorted str sum super tuple type zip".split(" "));
const TOKEN = /(#.*)|((?:[rbfut]{0,2})("""|'''))|((?:[rbfut]{0,2})(?:"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?))|(\b(?:0[xob][\da-f_]+|\d[\d_]*(?:\.[\d_]*)?(?:e[+-]?\d+)?j?)\b)|(@[\w.]+)|([^\W\d]\w*)/giu;

/** The parts of a line, each with a class, and the quotes that it ends in. */
function parts(line, quotes) {
  const found = [];
  let place = 0;
  const take = (end, name) => {
    if (end > place) found.push([line.slice(place, end), name]);
    place = end;
  };
  const closing = (from) => {
    const end = line.indexOf(quotes, from);
    take(end < 0 ? line.length : end + 3, "string");
    if (end >= 0) quotes = "";
  };
  if (quotes) closing(0);
  let before = "";
  while (!quotes && place < line.length) {
    TOKEN.lastIndex = place;
    const match = TOKEN.exec(line);
    if (!match) break;
    const [text, comment, , triple, string, number, decorator, word] = match;
    take(match.index, "");
    if (triple) {
      quotes = triple;
      closing(match.index + text.length);
    } else {
      let name = comment ? "comment" : string ? "string" : number ? "number" : decorator ? "definition" : "";
      if (word) {
        if (KEYWORDS.has(word)) name = "keyword";
        else if (before === "def" || before === "class") name = "definition";
        else if (BUILTINS.has(word) && line[match.index - 1] !== ".") name = "builtin";
      }
      take(match.index + text.length, name);
      before = word || "";
    }
  }
  take(line.length, "");
  return [found, quotes];
}

/** Draws the rows that have changed. */
function highlight() {
  const lines = editor.script.value.split("\n");
  const plain = editor.script.value.length > LONGEST_HIGHLIGHTED;
  let quotes = "";
  lines.forEach((line, number) => {
    const key = quotes + "\n" + line;
    let row = editor.rows.children[number];
    if (row && row.key === key) {
      quotes = row.after;
      return;
    }
    if (!row) row = editor.rows.appendChild(make("div", "row"));
    const [found, after] = plain ? [[[line, ""]], ""] : parts(line, quotes);
    row.replaceChildren(...found.map(([text, name]) => (name ? make("span", name, text) : text)));
    if (!line) row.textContent = "\u200b";
    row.key = key;
    row.after = quotes = after;
  });
  while (editor.rows.children.length > lines.length) editor.rows.lastChild.remove();
}

/** Marks the line to blame; none when it is 0. */
function mark(line) {
  editor.rows.children[editor.badLine - 1]?.classList.remove("bad");
  editor.rows.children[line - 1]?.classList.add("bad");
  editor.badLine = line;
}

/** Scrolls the editor, and nothing around it, to where a line is. */
function reveal(line) {
  const { offsetTop, offsetHeight } = editor.rows.children[line - 1] || editor.rows;
  const { scrollTop, clientHeight } = editor.frame;
  if (offsetTop < scrollTop || offsetTop + offsetHeight > scrollTop + clientHeight) {
    editor.frame.scrollTop = offsetTop - clientHeight / 2;
  }
}

/** Puts the cursor at the beginning of a line. */
function go(line) {
  const place = editor.script.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  editor.script.focus({ preventScroll: true });
  editor.script.setSelectionRange(place, place);
  reveal(line);
  editor.frame.scrollIntoView({ block: "nearest" });
}

/** Types text in the place of what is selected, so that it can be undone. */
function type(text) {
  if (!document.execCommand("insertText", false, text)) {
    editor.script.setRangeText(text, editor.script.selectionStart, editor.script.selectionEnd, "end");
    editor.script.dispatchEvent(new Event("input"));
  }
}

let leaving = false;
editor.script.addEventListener("keydown", (event) => {
  if (event.key === "Tab" && !event.shiftKey && !leaving) {
    event.preventDefault();
    type("    ");
  } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.isComposing) {
    event.preventDefault();
    const line = editor.script.value.slice(0, editor.script.selectionStart).split("\n").pop();
    type("\n" + line.match(/^\s*/)[0] + (/:\s*(#.*)?$/.test(line) ? "    " : ""));
  }
  leaving = event.key === "Escape";
});
editor.script.addEventListener("input", () => {
  highlight();
  mark(0);
});

// The request.

/** Shows what `chosen` has. */
function listFiles() {
  at("chosen").replaceChildren(
    ...Array.from(chosen.keys(), (name) => {
      const remove = make("button", "", name + " \u00d7");
      remove.type = "button";
      remove.title = "Remove " + name;
      remove.addEventListener("click", () => {
        chosen.delete(name);
        listFiles();
      });
      return make("li", "", remove);
    }),
  );
}

/** Bytes as base64. */
function toBase64(bytes) {
  let text = "";
  for (let place = 0; place < bytes.length; place += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(place, place + 0x8000));
  }
  return btoa(text);
}

/** Base64 as bytes. */
const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

at("files").addEventListener("change", async (event) => {
  for (const file of event.target.files) {
    chosen.set(file.name, { base64: toBase64(new Uint8Array(await file.arrayBuffer())) });
  }
  event.target.value = "";
  listFiles();
});

/** The body of the request; the input goes as it is written, so that its numbers stay what they are. */
function body() {
  const input = at("input").value.trim();
  if (input) JSON.parse(input);
  const fields = [`"script":${JSON.stringify(editor.script.value)}`];
  if (input) fields.push(`"input":${input}`);
  if (chosen.size) fields.push(`"files":${JSON.stringify(Object.fromEntries(chosen))}`);
  return `{${fields.join()}}`;
}

/** The header that brings the key, if there is one. */
function authorization() {
  const key = at("key").value.trim();
  return key ? { Authorization: "Bearer " + key } : {};
}

/** Asks for the key, and says whether somebody gave one in this tab before. */
function askForKey() {
  at("locked").hidden = false;
  try {
    at("key").value ||= sessionStorage.getItem("mainbox key") || "";
  } catch {
    // Some browsers keep nothing.
  }
}

/** JSON with every number as it was written. */
function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" && context?.source && String(value) !== context.source ? new Written(context.source) : value,
  );
}

/** A number that JavaScript would round. */
class Written {
  constructor(text) {
    this.text = text;
  }
}

async function run() {
  if (running) {
    running.abort();
    return;
  }
  mark(0);
  let request;
  try {
    request = body();
  } catch (error) {
    show("failed", "The input is not JSON", [sentence(error.message)]);
    at("input").focus();
    return;
  }
  running = new AbortController();
  const began = performance.now();
  const clock = setInterval(() => {
    at("run").textContent = `Stop, ${((performance.now() - began) / 1000).toFixed(0)} s`;
  }, 500);
  at("run").textContent = "Stop";
  try {
    const response = await fetch("execute", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: request,
      signal: running.signal,
    });
    const answer = parse(await response.text());
    answered(response, answer, performance.now() - began);
  } catch (error) {
    const stopped = error.name === "AbortError";
    show("failed", stopped ? "Stopped" : "No answer", stopped ? [] : [sentence(error.message)]);
  } finally {
    clearInterval(clock);
    running = null;
    at("run").textContent = "Run";
  }
}

// The answer.

/** Shows one state and the blocks below it. */
function show(name, text, blocks, times = "") {
  at("status").replaceChildren(make("span", name, text), make("span", "times", times));
  at("blocks").replaceChildren(...blocks.filter(Boolean));
  // On a phone it is below.
  const { top, bottom } = at("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) at("answer").scrollIntoView();
}

/** A block under a heading. */
function block(title, content, name = "") {
  return make("div", "block " + name, make("h2", "", title), content);
}

function sentence(text) {
  return make("div", "block error", make("p", "sentence", text));
}

/** What the service measured, for people. */
function times(response, total) {
  const measured = (response.headers.get("Server-Timing") || "").split(", ").map((entry) => entry.split(";dur="));
  const { run, cpu, queue } = Object.fromEntries(measured);
  const milliseconds = (value) => (value < 100 ? Number(value).toFixed(1) : Number(value).toFixed(0)) + " ms";
  const told = run ? [`run ${milliseconds(run)}`, `cpu ${milliseconds(cpu)}`, `queue ${milliseconds(queue)}`] : [];
  const peak = Number(response.headers.get("Mainbox-Peak-Memory"));
  if (run && peak) told.push(`memory ${(peak / 1048576).toFixed(1)} MB`);
  told.push(`here ${milliseconds(total)}`);
  const isolation = response.headers.get("Mainbox-Isolation");
  if (isolation) told.push(isolation);
  return told.join(" \u00b7 ");
}

function answered(response, answer, total) {
  if (response.status === 401) {
    askForKey();
    at("key").focus();
  } else {
    remember();
  }
  const output = [
    answer.stdout && block("stdout", make("pre", "", answer.stdout)),
    answer.stderr && block("stderr", make("pre", "", answer.stderr)),
    answer.truncated && block("cut at its limit", make("p", "", answer.truncated.join(", "))),
    answer.warning && block("warning", make("p", "", answer.warning), "warning"),
  ];
  if (response.ok) {
    const files = Object.entries(answer.files || {});
    const blocks = [result(answer.result), pictures(files), listed(files), ...output];
    show("good", "ok", blocks, times(response, total));
    return;
  }
  const line = typeof answer.line === "number" ? answer.line : 0;
  mark(line);
  const place = make("button", "", `line ${line}`);
  place.type = "button";
  place.addEventListener("click", () => go(line));
  const error = make("div", "block error", make("p", "sentence", answer.error || "No reason given"));
  if (line) {
    error.append(place);
    reveal(line);
  }
  const trace = answer.traceback && block("traceback", make("pre", "", answer.traceback));
  show("failed", answer.kind || String(response.status), [error, trace, ...output], times(response, total));
}

/** Keeps a key that was right for this tab. */
function remember() {
  try {
    if (at("key").value) sessionStorage.setItem("mainbox key", at("key").value.trim());
  } catch {
    // Some browsers keep nothing.
  }
}

function result(value) {
  const copy = make("button", "", "Copy");
  copy.type = "button";
  const written = (_, value) => (value instanceof Written ? JSON.rawJSON?.(value.text) ?? value.text : value);
  copy.addEventListener("click", () => navigator.clipboard?.writeText(JSON.stringify(value, written, 2)));
  const tree = make("div", "tree", node(value, MISSING, 0));
  return make("div", "block", make("div", "head", make("h2", "", "result"), copy), tree);
}

/** A value as a tree that unfolds; what is folded is made only when it is opened. */
function node(value, name, depth) {
  const label = name === MISSING ? "" : make("span", "name", String(name));
  const colon = name === MISSING ? "" : ": ";
  if (value === null || typeof value !== "object" || value instanceof Written) {
    return make("div", "leaf", label, colon, leaf(value));
  }
  const entries = Array.isArray(value) ? value.map((item, place) => [place, item]) : Object.entries(value);
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  const details = make("details", "", make("summary", "", label, colon, make("span", "size", size)));
  const fill = () => {
    if (details.open && details.children.length === 1) more(details, entries, 0, depth);
  };
  details.addEventListener("toggle", fill);
  details.open = depth < 2 && entries.length <= 50;
  fill();
  return details;
}

/** Some entries, and a button for the next. */
function more(details, entries, from, depth) {
  const to = from + ENTRIES_AT_ONCE;
  details.append(...entries.slice(from, to).map(([name, item]) => node(item, name, depth + 1)));
  if (to < entries.length) {
    const next = make("button", "", `${entries.length - to} more`);
    next.type = "button";
    next.addEventListener("click", () => {
      next.remove();
      more(details, entries, to, depth);
    });
    details.append(next);
  }
}

function leaf(value) {
  if (value instanceof Written) return make("span", "number", value.text);
  const name = { string: "string", number: "number" }[typeof value] || "keyword";
  return make("span", name, JSON.stringify(value));
}

const contentOf = (file) => (typeof file === "string" ? new TextEncoder().encode(file) : fromBase64(file.base64));
const kindOf = (name) => PICTURES[name.split(".").pop().toLowerCase()];

function pictures(files) {
  const figures = files
    .filter(([name]) => kindOf(name))
    .map(([name, file]) => {
      const image = make("img", "picture");
      image.alt = name;
      image.src = `data:${kindOf(name)};base64,${toBase64(contentOf(file))}`;
      return make("figure", "", image, make("figcaption", "", name));
    });
  return figures.length ? block("pictures", make("div", "", ...figures)) : null;
}

function listed(files) {
  if (!files.length) return null;
  const rows = files.map(([name, file]) => {
    const content = contentOf(file);
    const link = make("a", "", name);
    // As bytes to be saved: nothing of a script's is opened as a page of this origin.
    link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
    link.download = name.split("/").pop();
    return make("li", "", link, ` ${content.length} bytes`);
  });
  return block("files", make("ul", "", ...rows));
}

// The start.

function load(example) {
  editor.script.value = example.script;
  at("input").value = example.input || "";
  chosen.clear();
  Object.entries(example.files || {}).forEach(([name, content]) => chosen.set(name, content));
  listFiles();
  editor.frame.scrollTo(0, 0);
  highlight();
  mark(0);
}

/** Offers the examples whose packages are there; all of them when nobody says. */
function offer(installed) {
  const there = EXAMPLES.filter((example) => !example.needs || !installed || example.needs in installed);
  at("example").replaceChildren(...there.map((example) => make("option", "", example.title)));
  at("example").onchange = () => load(there[at("example").selectedIndex]);
}

async function about() {
  const response = await fetch("about", { headers: authorization() });
  if (response.status === 401) {
    askForKey();
    return;
  }
  const told = await response.json();
  offer(told.installed);
  at("about").textContent = `${told.version} \u00b7 Python ${told.python} \u00b7 isolation: ${told.isolation.tier}`;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
at("run").addEventListener("click", run);
at("key").addEventListener("change", () => about().catch(() => {}));
offer(null);
load(EXAMPLES[0]);
about().catch(() => {});
