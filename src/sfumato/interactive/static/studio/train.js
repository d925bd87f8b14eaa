// The tab Train: runs in a folder, read as they are.

import { call } from "./api.js";
import { el, say } from "./ui.js";

const SVG = "http://www.w3.org/2000/svg";
const thousands = (number) => (number ?? 0).toLocaleString("en");

export function trainTab(root) {
  const list = el("div", { className: "scroll" });
  const one = el("div", {});
  root.append(list, one);
  let chosen = null;
  let timer = 0;

  async function refresh() {
    clearTimeout(timer);
    if (root.hidden) return;
    const known = await call("/api/runs").catch((error) => say(error.message));
    if (!known) return;
    table(known);
    if (chosen) await details();
    if (known.runs.some((run) => run.state === "training")) timer = setTimeout(refresh, 5000);
  }

  function table({ folder, runs }) {
    if (!runs.length) {
      list.replaceChildren(el("p", { className: "empty" }, `There are no runs in ${folder}. \`sfumato train\` makes one; --runs names another folder.`));
      return;
    }
    const rows = runs.map((run) => {
      const best = run.best ? `${(100 * run.best.value).toFixed(1)} %` : "";
      const open = el("button", { type: "button", className: "quiet", on: { click: () => { chosen = run.folder; refresh(); } } }, run.folder);
      return el("tr", { className: run.folder === chosen ? "chosen" : "" }, el("td", {}, open), el("td", {}, run.state), el("td", {}, run.preset),
        el("td", { className: "number" }, `${thousands(run.images_seen)} of ${run.total_images === null ? "?" : thousands(run.total_images)}`),
        el("td", { className: "number" }, run.loss === null ? "" : run.loss.toFixed(4)), el("td", { className: "number" }, best), el("td", {}, run.date.slice(0, 10)));
    });
    const names = ["Run", "State", "Preset", "Images", "Loss", "Accuracy", "Date"];
    list.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...names.map((text, i) => el("th", { className: i > 2 && i < 6 ? "number" : "" }, text)))), el("tbody", {}, ...rows)));
  }

  async function details() {
    const name = encodeURIComponent(chosen);
    const known = await call(`/api/run?name=${name}`).catch((error) => say(error.message));
    if (!known) return;
    const samples = known.samples.map((file) => el("figure", {}, el("img", { src: `/api/run/sample?name=${name}&file=${encodeURIComponent(file)}`, alt: file }), el("figcaption", {}, file)));
    one.replaceChildren(el("h2", {}, chosen), chart(known.losses, "training loss", true),
      ...(known.accuracies.length > 1 ? [chart(known.accuracies, "class accuracy", false)] : []),
      el("h2", {}, "Newest samples"), samples.length ? el("div", { className: "form" }, ...samples) : el("p", { className: "soft" }, "None yet."));
  }

  return { shown: refresh };
}

// A curve over images seen; `log` for a logarithmic axis.
function chart(points, title, log) {
  if (points.length < 2) return el("p", { className: "soft" }, `There is no curve of the ${title} yet.`);
  const [width, height, left, bottom, top] = [760, 240, 64, 30, 26];
  const scale = log ? Math.log10 : (value) => value;
  const values = points.map(([, value]) => scale(Math.max(value, 1e-12)));
  const last = points.at(-1)[0];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const x = (images) => left + (images / last) * (width - left - 12);
  const y = (value) => top + (1 - (value - low) / span) * (height - top - bottom);
  const make = (tag, properties, text = "") => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const chart = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} over images seen` });
  for (const share of [0, 0.5, 1]) {
    const value = low + share * span;
    chart.append(make("path", { class: "rule", d: `M${left} ${y(value)}H${width - 12}` }),
      make("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, (log ? 10 ** value : value).toPrecision(3)));
  }
  chart.append(make("path", { d: points.map(([images], i) => `${i ? "L" : "M"}${x(images).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("") }),
    make("text", { x: left, y: 14 }, title),
    make("text", { x: left, y: height - 8 }, "0"),
    make("text", { x: width - 12, y: height - 8, "text-anchor": "end" }, `${last.toLocaleString("en")} images seen`));
  return chart;
}
