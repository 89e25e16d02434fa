// The start of the page.

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

/** Lists the examples whose packages are installed, or all of them if that is unknown. */
function offer(installed) {
  const there = EXAMPLES.filter((example) => !example.needs || !installed || example.needs in installed);
  at("example").replaceChildren(...there.map((example) => make("option", "", example.title)));
  at("example").onchange = () => load(there[at("example").selectedIndex]);
}

async function about() {
  const response = await fetch("about", { headers: authorization() });
  if (response.status === 401) {
    at("locked").hidden = false;
    showAgents(true);
    return;
  }
  const { version, python, installed, isolation, mcp } = await response.json();
  at("tabs").hidden = !mcp;
  told = Boolean(python);
  const chosen = at("example").selectedIndex;
  offer(installed);
  at("example").selectedIndex = Math.max(chosen, 0);
  at("about").textContent = [version, python ? `Python ${python}` : "starting", `isolation: ${isolation.tier}`].join(" \u00b7 ");
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat && !running) run();
  }
});
at("run").addEventListener("click", run);
at("key").value = rememberedKey();
at("key").addEventListener("change", () => about().catch(() => {}));
offer(null);
showAgents(rememberedKey() !== "");
load(EXAMPLES[0]);
about().catch(() => {});
