// The tab for agents.

/** The lines for each client, as in docs/agents.md, for the address of this page. */
function linesForAgents(needsKey) {
  const url = new URL("mcp", location.href).href;
  const headers = needsKey ? { headers: { Authorization: "Bearer KEY" } } : {};
  const header = needsKey ? ' --header "Authorization: Bearer KEY"' : "";
  const variable = needsKey ? " --bearer-token-env-var MAINBOX_KEY" : "";
  const langchain = { transport: "http", url, ...headers };
  return [
    ["Claude Code", `claude mcp add --transport http mainbox ${url}${header}`],
    ["Codex", `codex mcp add mainbox --url ${url}${variable}`],
    ["VS Code, .vscode/mcp.json", JSON.stringify({ servers: { mainbox: { type: "http", url, ...headers } } })],
    ["Cursor, .cursor/mcp.json", JSON.stringify({ mcpServers: { mainbox: { url, ...headers } } })],
    ["LibreChat, librechat.yaml", `mcpServers: ${JSON.stringify({ mainbox: { type: "streamable-http", url, ...headers } })}`],
    ["n8n, MCP Client Tool: endpoint, with the transport HTTP Streamable", url],
    ["Open WebUI, an OpenAPI tool server", new URL(".", location.href).href],
    ["LangChain", `await MultiServerMCPClient(${JSON.stringify({ mainbox: langchain })}).get_tools()`],
  ];
}

function showAgents(needsKey) {
  at("agent-key").hidden = !needsKey;
  at("agents").replaceChildren(
    ...linesForAgents(needsKey).map(([client, line]) => {
      const text = make("pre", "", line);
      const copy = make("button", "", "Copy");
      copy.type = "button";
      copy.ariaLabel = `Copy the line for ${client.split(",")[0]}`;
      copy.addEventListener("click", async () => {
        getSelection().selectAllChildren(text);
        if (!navigator.clipboard) return; // Browsers have it on HTTPS and on localhost only.
        await navigator.clipboard.writeText(line);
        copy.textContent = "Copied";
      });
      return make("div", "agent", make("h2", "", client), text, copy);
    }),
  );
}

function choose(name) {
  for (const tab of ["run", "agent"]) {
    at(`tab-${tab}`).ariaSelected = String(tab === name);
    at(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
    at(`panel-${tab}`).hidden = tab !== name;
  }
}

for (const [tab, other] of [["run", "agent"], ["agent", "run"]]) {
  at(`tab-${tab}`).addEventListener("click", () => choose(tab));
  at(`tab-${tab}`).addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      choose(other);
      at(`tab-${other}`).focus();
    }
  });
}
