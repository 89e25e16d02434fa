// The editor: colors, line numbers, the line that failed. Uses `editor` and `make` of page.js.

// Python is highlighted line by line. A line depends on its text and on whether it begins inside a triple-quoted string.

const KEYWORDS = new Set("False None True and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield match case".split(" "));
const BUILTINS = new Set("abs all any bool bytes dict enumerate filter float format frozenset getattr hasattr hash int isinstance iter len list map max min next object open ord print range repr reversed round set setattr sorted str sum super tuple type zip".split(" "));
const TOKEN = /(#.*)|((?:[rbfut]{0,2})("""|'''))|((?:[rbfut]{0,2})(?:"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?))|(\b(?:0[xob][\da-f_]+|\d[\d_]*(?:\.[\d_]*)?(?:e[+-]?\d+)?j?)\b)|(@[\w.]+)|([^\W\d]\w*)/giu;

/** Splits a line into parts, each with a class. Also returns the quotes of the string that the line ends inside. */
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

/** Draws the rows that changed. */
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

/** Marks the line that failed; 0 removes the mark. */
function mark(line) {
  editor.rows.children[editor.badLine - 1]?.classList.remove("bad");
  editor.rows.children[line - 1]?.classList.add("bad");
  editor.badLine = line;
}

/** Scrolls the editor to a line, without scrolling the page. */
function reveal(line) {
  const { offsetTop, offsetHeight } = editor.rows.children[line - 1] || editor.rows;
  const { scrollTop, clientHeight } = editor.frame;
  if (offsetTop < scrollTop || offsetTop + offsetHeight > scrollTop + clientHeight) {
    editor.frame.scrollTop = offsetTop - clientHeight / 2;
  }
}

/** Moves the cursor to the beginning of a line. */
function go(line) {
  const place = editor.script.value.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  editor.script.focus({ preventScroll: true });
  editor.script.setSelectionRange(place, place);
  reveal(line);
  editor.frame.scrollIntoView({ block: "nearest" });
}

/** Replaces the selection by text, so that it can be undone. */
function type(text) {
  if (!document.execCommand("insertText", false, text)) {
    editor.script.setRangeText(text, editor.script.selectionStart, editor.script.selectionEnd, "end");
    editor.script.dispatchEvent(new Event("input"));
  }
}

/** Indents the selected lines, or without a selection of several lines, the text after the cursor. */
function indent() {
  const { value, selectionStart, selectionEnd } = editor.script;
  if (!value.slice(selectionStart, selectionEnd).includes("\n")) {
    type("    ");
    return;
  }
  const start = value.lastIndexOf("\n", selectionStart - 1) + 1;
  editor.script.setSelectionRange(start, selectionEnd);
  const moved = value.slice(start, selectionEnd).replace(/^(?=.)/gm, "    ");
  type(moved);
  editor.script.setSelectionRange(start, start + moved.length);
}

let leaving = false;
editor.script.addEventListener("keydown", (event) => {
  if (event.key === "Tab" && !event.shiftKey && !leaving) {
    event.preventDefault();
    indent();
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
