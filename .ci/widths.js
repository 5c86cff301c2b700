// Opens each page in a frame of each width and posts a sentence for everything that can't be seen whole.

async function measure(pages, widths) {
  const found = [];
  for (const width of widths)
    for (const page of pages) {
      const texts = await look(page, width).catch((error) => [`can't be measured: ${error}`]);
      for (const text of texts) found.push(`${page} at ${width} px: ${text}`);
    }
  await fetch("found", { method: "POST", body: JSON.stringify(found) });
}

async function look(page, width) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 1000px; border: 0`;
  frame.src = page;
  await new Promise((loaded) => { frame.onload = loaded; document.body.append(frame); });
  const doc = frame.contentDocument;
  for (const menu of doc.querySelectorAll(".collapse:not(#quarto-sidebar)")) menu.classList.add("show");
  for (const fold of doc.querySelectorAll("details")) fold.open = true;
  for (const picture of doc.images) picture.loading = "eager";
  await Promise.all([...doc.images].map((picture) => picture.decode().catch(() => {})));
  await doc.fonts.ready;
  const found = hidden(doc, frame.contentWindow);
  frame.remove();
  return found;
}

// What stands on the page and ends beyond the box that shows it, the first five of them.
function hidden(doc, win) {
  const found = new Set();
  const kinds = new Map();
  const kind = (box) => kinds.get(box) ?? kinds.set(box, win.getComputedStyle(box).overflowX).get(box);
  const all = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let node = all.nextNode(); node; node = all.nextNode()) {
    const text = node.nodeType === Node.TEXT_NODE;
    if (text ? !node.data.trim() : !/^(img|svg|math|table|pre|input|button)$/i.test(node.tagName)) continue;
    const box = text ? node.parentElement : node;
    if (!box.checkVisibility({ visibilityProperty: true }) || box.closest("script, style, .visually-hidden")) continue;
    if (text && box.closest("math, svg, table")) continue; // they are looked at as a whole
    const range = doc.createRange();
    range.selectNode(node);
    const place = (text ? range : node).getBoundingClientRect();
    const over = beyond(place, text ? box : box.parentElement, doc, kind);
    if (over > 1) found.add(`${Math.round(over)} px cut off of ${name(node)}`);
  }
  return [...found].slice(0, 5);
}

// How many pixels of a rectangle can't be reached: a box that scrolls shows all of what is in it.
function beyond(rect, box, doc, kind) {
  if (!rect.width) return 0;
  for (; box && box !== doc.body; box = box.parentElement) {
    if (kind(box) === "visible") continue;
    const edge = box.getBoundingClientRect();
    if (kind(box) !== "hidden" && kind(box) !== "clip") { rect = edge; continue; }
    if (edge.width <= 1) return 0;
    if (rect.right > edge.right + 1) return rect.right - edge.right;
  }
  if (rect.right <= 0) return 0; // a menu that waits outside
  return Math.max(rect.right - doc.documentElement.clientWidth, -rect.left);
}

function name(node) {
  const words = (node.data || node.alt || node.textContent || "").trim().replace(/\s+/g, " ").slice(0, 50);
  return `<${(node.tagName || node.parentElement.tagName).toLowerCase()}> ${words}`;
}
