"use strict";

const MISSING = {};
const LIVE = "application/x-ndjson";
const PICTURES = new Map(Object.entries({ png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", svg: "image/svg+xml" }));
const ENTRIES_AT_ONCE = 200;
const LONGEST_HIGHLIGHTED = 100000;

const at = (id) => document.getElementById(id);
const editor = { script: at("script"), rows: at("highlight"), frame: at("editor"), badLine: 0 };
const chosen = new Map();
const links = [];
let running = null;
let told = false;

/** Makes an element with a class, text or children. */
function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

// The request.

/** Lists the chosen files. */
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

/** Encodes bytes as base64. */
function toBase64(bytes) {
  let text = "";
  for (let place = 0; place < bytes.length; place += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(place, place + 0x8000));
  }
  return btoa(text);
}

/** Decodes base64. */
const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

at("files").addEventListener("change", async (event) => {
  for (const file of event.target.files) {
    chosen.set(file.name, { base64: toBase64(new Uint8Array(await file.arrayBuffer())) });
  }
  event.target.value = "";
  listFiles();
});

/** Builds the body of the request. The input is sent as typed, so that its numbers are not rounded. */
function body() {
  const input = at("input").value.trim();
  if (input) JSON.parse(input);
  const fields = [`"script":${JSON.stringify(editor.script.value)}`];
  if (input) fields.push(`"input":${input}`);
  if (chosen.size) fields.push(`"files":${JSON.stringify(Object.fromEntries(chosen))}`);
  return `{${fields.join()}}`;
}

/** Returns the header with the API key, if there is one. */
function authorization() {
  const key = at("key").value.trim();
  return key ? { Authorization: "Bearer " + key } : {};
}

/** Returns the key that was used in this tab before. */
function rememberedKey() {
  try {
    return sessionStorage.getItem("mainbox key") || "";
  } catch {
    return ""; // Some browsers block storage.
  }
}

/** Parses JSON and keeps every number as it was written. */
function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" && context?.source && String(value) !== context.source ? new Written(context.source) : value,
  );
}

/** The value of a number, rounded or not. */
const plain = (value) => (value instanceof Written ? Number(value.text) : value);

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
  let isLive = false;
  running = new AbortController();
  const began = performance.now();
  const clock = setInterval(() => {
    at("run").textContent = `Stop, ${((performance.now() - began) / 1000).toFixed(0)} s`;
  }, 500);
  at("run").textContent = "Stop";
  try {
    const response = await fetch("execute", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: LIVE, ...authorization() },
      body: request,
      signal: running.signal,
    });
    isLive = response.headers.get("Content-Type") === LIVE;
    const answer = isLive ? await follow(response) : { status: response.status, ...parse(await response.text()) };
    answered(answer, performance.now() - began);
  } catch (error) {
    const stopped = error.name === "AbortError";
    const output = isLive ? at("blocks").children : [];
    show("failed", stopped ? "Stopped" : "No response", [!stopped && sentence(error.message), ...output]);
  } finally {
    clearInterval(clock);
    running = null;
    at("run").textContent = "Run";
  }
}

// The response.

/** Shows output as it comes. Returns the last event: the body of a response, and what was measured. */
async function follow(response) {
  const blocks = new Map();
  show("running", "running", []);
  for await (const event of events(response)) {
    if (event.event === "result" || event.event === "error") return event;
    if (event.event === "keepalive") continue;
    if (!blocks.has(event.event)) {
      blocks.set(event.event, make("pre"));
      at("blocks").append(block(event.event, blocks.get(event.event)));
    }
    blocks.get(event.event).append(event.text);
  }
  throw new Error("The response ended before the script did");
}

/** The events of a live response. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield parse(line);
  }
}

/** Shows a status and the blocks below it. */
function show(name, text, blocks, times = "") {
  at("status").replaceChildren(make("span", name, text), make("span", "times", times));
  at("blocks").replaceChildren(...blocks.filter(Boolean));
  // On a phone, the result is below the editor.
  const { top, bottom } = at("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) at("answer").scrollIntoView();
}

/** Makes a block with a heading. */
function block(title, content, name = "") {
  return make("div", "block " + name, make("h2", "", title), content);
}

function sentence(text) {
  return make("div", "block error", make("p", "sentence", text));
}

/** Formats what the service measured. */
function times(answer, total) {
  const milliseconds = (value) => Number(value).toFixed(value < 100 ? 1 : 0) + " ms";
  const told = [];
  if (answer.timings) {
    const { run_ms: run, cpu_ms: cpu, queue_ms: queue } = answer.timings;
    told.push(`run ${milliseconds(plain(run))}`, `cpu ${milliseconds(plain(cpu))}`, `queue ${milliseconds(plain(queue))}`);
    if (answer.peak_memory_bytes) told.push(`memory ${(answer.peak_memory_bytes / 1048576).toFixed(1)} MB`);
  }
  told.push(`round trip ${milliseconds(total)}`);
  return told.join(" \u00b7 ");
}

function answered(answer, total) {
  if (answer.status === 401) {
    at("locked").hidden = false;
    at("key").focus();
  } else {
    remember();
    if (!told) about().catch(() => {});
  }
  const output = [
    answer.stdout && block("stdout", make("pre", "", answer.stdout)),
    answer.stderr && block("stderr", make("pre", "", answer.stderr)),
    answer.truncated && block("truncated at the limit", make("p", "", answer.truncated.join(", "))),
    answer.warning && block("warning", make("p", "", answer.warning), "warning"),
  ];
  if (answer.status === 200) {
    const files = Object.entries(answer.files || {});
    const blocks = [result(answer.result), pictures(files), listed(files), ...output];
    show("good", "ok", blocks, times(answer, total));
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
  show("failed", answer.kind || String(answer.status), [error, trace, ...output], times(answer, total));
}

/** Stores a key that was accepted, for this tab. */
function remember() {
  try {
    if (at("key").value) sessionStorage.setItem("mainbox key", at("key").value.trim());
  } catch {
    // Some browsers block storage.
  }
}

function result(value) {
  const copy = make("button", "", "Copy");
  copy.type = "button";
  const written = (_, value) => (value instanceof Written ? JSON.rawJSON?.(value.text) ?? value.text : value);
  // Browsers allow the clipboard only for HTTPS pages and for pages of the local machine.
  copy.hidden = !navigator.clipboard;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(JSON.stringify(value, written, 2));
    copy.textContent = "Copied";
  });
  const tree = make("div", "tree", node(value, MISSING, 0));
  return make("div", "block", make("div", "head", make("h2", "", "result"), copy), tree);
}

/** Makes a tree of a value. The content of a closed node is made when it is opened. */
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

/** Appends some entries, and a button for the next. */
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
const kindOf = (name) => PICTURES.get(name.split(".").pop().toLowerCase());

function pictures(files) {
  const figures = files
    .filter(([name]) => kindOf(name))
    .map(([name, file]) => {
      const image = make("img", "picture");
      image.alt = name;
      image.src = `data:${kindOf(name)};base64,${file.base64 ?? toBase64(contentOf(file))}`;
      return make("figure", "", image, make("figcaption", "", name));
    });
  return figures.length ? block("pictures", make("div", "", ...figures)) : null;
}

function listed(files) {
  links.splice(0).forEach(URL.revokeObjectURL);
  if (!files.length) return null;
  const rows = files.map(([name, file]) => {
    const content = contentOf(file);
    const link = make("a", "", name);
    // A download of plain bytes, since nothing that a script made may open as a page of this origin.
    link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
    links.push(link.href);
    link.download = name.split("/").pop();
    return make("li", "", link, ` ${content.length} bytes`);
  });
  return block("files", make("ul", "", ...rows));
}
