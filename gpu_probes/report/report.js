// Draws the figures, shows a tooltip for the mark under the pointer, and lets the arrow keys move between marks.
// Text reaches the page only as textContent; the page's policy allows no other script and no network.

const tooltip = document.getElementById("tooltip");
const live = document.getElementById("live");

/** Pairs of name and text, without empty ones. */
function pairs(value) {
  const entries = typeof value === "object" && value !== null ? Object.entries(value) : [["", value]];
  return entries.filter(([, text]) => text !== "" && text !== null && text !== undefined);
}

function showTooltip(value, x, y) {
  const list = document.createElement("dl");
  for (const [name, text] of pairs(value)) {
    list.append(Object.assign(document.createElement("dt"), { textContent: name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: text }));
  }
  tooltip.replaceChildren(list);
  tooltip.hidden = false;
  const box = tooltip.getBoundingClientRect();
  const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
  const above = y - box.height - 14;
  tooltip.style.left = `${Math.max(8, left)}px`;
  tooltip.style.top = `${above > 8 ? above : y + 18}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
}

// The tooltip is fixed on the screen: it must not stay behind when the page scrolls.
for (const moving of ["wheel", "touchmove", "resize"]) window.addEventListener(moving, hideTooltip, { passive: true });

function onHover(handler, event, item, value) {
  if (value === null || value === undefined || value === "") hideTooltip();
  else showTooltip(value, event.clientX, event.clientY);
}

/** Marks with a tooltip, in rows from top to bottom, each left to right; Vega binds a mark's item to its element. */
function rowsOf(chart) {
  const rows = new Map();
  const seen = new Set();
  for (const element of chart.querySelectorAll("svg .role-mark *")) {
    const item = element.__data__;
    if (!item?.tooltip || !item.mark || item.mark.marktype === "group") continue;
    const key = item.datum?.row ?? "";
    // Something drawn twice, such as the best cell and the dot on it, is one stop.
    const content = JSON.stringify([key, item.tooltip]);
    if (seen.has(content)) continue;
    seen.add(content);
    const box = element.getBoundingClientRect();
    if (!rows.has(key)) rows.set(key, []);
    rows.get(key).push({ element, value: item.tooltip, x: box.x + box.width / 2, y: box.y + box.height / 2 });
  }
  const middle = (marks) => marks.reduce((sum, mark) => sum + mark.y, 0) / marks.length;
  return [...rows.values()].map((marks) => marks.sort((a, b) => a.x - b.x)).sort((a, b) => middle(a) - middle(b));
}

/** Where a key leads; the end of a row leads to the next one, so that a single key reaches every mark. */
function moved(rows, { row, column }, key) {
  const last = rows.length - 1;
  const nearest = (to) => {
    const x = rows[row][column].x;
    const distances = rows[to].map((mark) => Math.abs(mark.x - x));
    return { row: to, column: distances.indexOf(Math.min(...distances)) };
  };
  switch (key) {
    case "ArrowRight":
      if (column + 1 < rows[row].length) return { row, column: column + 1 };
      return row < last ? { row: row + 1, column: 0 } : { row, column };
    case "ArrowLeft":
      if (column > 0) return { row, column: column - 1 };
      return row > 0 ? { row: row - 1, column: rows[row - 1].length - 1 } : { row, column };
    case "ArrowDown":
      return nearest(Math.min(row + 1, last));
    case "ArrowUp":
      return nearest(Math.max(row - 1, 0));
    case "Home":
      return { row: 0, column: 0 };
    case "End":
      return { row: last, column: rows[last].length - 1 };
    default:
      return null;
  }
}

function ringAround(chart, element) {
  const canvas = chart.querySelector(".canvas");
  let ring = chart.querySelector(".ring");
  if (!ring) {
    ring = Object.assign(document.createElement("div"), { className: "ring" });
    canvas.append(ring);
  }
  const [box, origin] = [element.getBoundingClientRect(), canvas.getBoundingClientRect()];
  Object.assign(ring.style, {
    left: `${box.x - origin.x - 3}px`,
    top: `${box.y - origin.y - 3}px`,
    width: `${box.width + 6}px`,
    height: `${box.height + 6}px`,
  });
}

function walkable(chart) {
  let place = null;
  const leave = () => {
    hideTooltip();
    chart.querySelector(".ring")?.remove();
    place = null;
  };
  chart.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return leave();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = rowsOf(chart);
    if (!rows.length) return;
    // The figure may have been redrawn with other marks since the last key.
    const known = place && rows[place.row]?.[place.column] ? place : null;
    const next = moved(rows, known ?? { row: 0, column: 0 }, event.key);
    if (!next) return;
    event.preventDefault();
    place = known || event.key === "End" ? next : { row: 0, column: 0 };
    const { element, value } = rows[place.row][place.column];
    element.scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = element.getBoundingClientRect();
    ringAround(chart, element);
    showTooltip(value, box.right, box.top);
    live.textContent = pairs(value).map(([name, text]) => `${name} ${text}`.trim()).join(", ");
  });
  chart.addEventListener("blur", leave);
}

async function draw(chart) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  // ast: expressions are interpreted, so that the page does not need permission to evaluate strings.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: onHover };
  const canvas = chart.querySelector(".canvas");
  try {
    await window.vegaEmbed(canvas, spec, options);
    walkable(chart);
  } catch (error) {
    console.error(error);
    canvas.textContent = "This figure could not be drawn; its data are in the table below.";
  }
}

await Promise.all([...document.querySelectorAll(".chart")].map(draw));
document.documentElement.dataset.drawn = "yes";
