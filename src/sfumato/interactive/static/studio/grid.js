// The tab Grid: any two settings as axes, everything else as in Make.

import { work } from "./api.js";
import { button, el, field, pixels, say, seedsOf } from "./ui.js";

const number = (text) => {
  if (!text.trim() || !Number.isFinite(Number(text))) throw new Error(`'${text}' is no number.`);
  return Number(text);
};
const AXES = {
  guidance: { title: "Guidance scale", values: "1, 1.5, 2, 3, 5", split: /[\s,]+/, read: number },
  steps: { title: "Steps", values: "2, 5, 10, 20", split: /[\s,]+/, read: number },
  seed: { title: "Seed", values: "0-4", read: null },
  prompt: { title: "Prompt", values: "", split: /\n/, read: (text) => text },
  sampler: { title: "Sampler", values: "", split: /[\s,]+/, read: (text) => text },
  form: { title: "Form of guidance", values: "", split: /\n/, read: (text) => text },
  negative_prompt: { title: "Negative prompt", values: "", split: /\n/, read: (text) => text },
  model: { title: "Model", values: "", split: /\n/, read: (text) => text },
};
const MOST = 144;

export function gridTab(root, make) {
  let models = [];
  let job = null;
  const rows = axis("Rows", "guidance");
  const columns = axis("Columns", "seed");
  const draw = button("Draw", start, { className: "first", id: "draw-grid" });
  const stop = button("Cancel", () => job?.cancel(), { disabled: true });
  const save = button("Download as PNG", download, { disabled: true });
  const told = el("p", { className: "cost" });
  const place = el("div", { className: "scroll" }, el("p", { className: "empty" }, "Choose two settings. The others are those of Make."));
  root.append(el("div", { className: "two" },
    el("div", { className: "form card" }, ...rows.fields, ...columns.fields,
      el("div", { className: "row" }, draw, stop), save,
      el("small", {}, "Prompts, forms and models: one a line. Cells that were made before are there at once.")),
    el("div", {}, told, place)));

  function axis(label, chosen) {
    const name = el("select", { ariaLabel: label }, ...Object.entries(AXES).map(([value, { title }]) => el("option", { value }, title)));
    const values = el("textarea", { rows: 2, spellcheck: false, ariaLabel: `Values of ${label.toLowerCase()}` });
    const suggest = () => {
      const about = models.find((one) => one.name === make.shared().model);
      const offered = {
        sampler: about?.samplers?.join(", "),
        form: about?.forms?.filter((one) => !one.startsWith("autoguidance")).join("\n"),
        prompt: about?.examples?.slice(0, 5).join("\n"),
        model: models.filter((one) => one.state === "ready").map((one) => one.name).join("\n"),
      };
      values.value = offered[name.value] ?? AXES[name.value].values;
    };
    name.value = chosen;
    name.addEventListener("change", suggest);
    suggest();
    return {
      name, suggest,
      fields: [field(label, name), field("Values", values)],
      read() {
        const { split, read, title } = AXES[name.value];
        if (!read) return seedsOf(values.value);
        const words = values.value.split(split).map((word) => word.trim()).filter(Boolean);
        if (!words.length) throw new Error(`${title} has no values.`);
        return words.map(read);
      },
    };
  }

  async function start() {
    let across, down;
    try {
      down = rows.read();
      across = columns.read();
      if (rows.name.value === columns.name.value) throw new Error("Both axes are the same setting.");
      if (down.length * across.length > MOST) throw new Error(`${down.length * across.length} cells are more than ${MOST}.`);
    } catch (error) {
      return say(error.message);
    }
    say("");
    const base = { ...make.shared(), seed: make.seed() };
    const wanted = down.flatMap((a) => across.map((b) => ({ ...base, [rows.name.value]: a, [columns.name.value]: b })));
    const cells = wanted.map(() => el("div", { className: "cell" }));
    table(down, across, cells);
    let done = 0;
    job = work("/api/cells", { pictures: wanted }, {
      cell: ({ index, name }) => {
        cells[index].replaceChildren(pixels(`/api/cells/${name}`, `${AXES[rows.name.value].title} ${down[Math.floor(index / across.length)]}, ${AXES[columns.name.value].title} ${across[index % across.length]}`));
        told.textContent = `${++done} of ${wanted.length} cells`;
      },
      failed: ({ error, hint }) => say(`${error} ${hint}`),
      note: ({ text }) => { told.textContent = text; },
    });
    stop.disabled = false;
    draw.disabled = true;
    await job.ended;
    stop.disabled = true;
    draw.disabled = false;
    save.disabled = done === 0;
  }

  function table(down, across, cells) {
    const title = `${AXES[rows.name.value].title} ↓  ${AXES[columns.name.value].title} →`;
    place.replaceChildren(el("table", { className: "cells" },
      el("thead", {}, el("tr", {}, el("th", {}, title), ...across.map((value) => el("th", { scope: "col" }, String(value))))),
      el("tbody", {}, ...down.map((value, row) => el("tr", {}, el("th", { scope: "row" }, String(value)),
        ...cells.slice(row * across.length, (row + 1) * across.length).map((cell) => el("td", {}, cell)))))));
  }

  // The table as a picture, with its titles; nothing leaves the page.
  function download() {
    const [head, ...lines] = [...place.querySelectorAll("tr")];
    const side = 128, gap = 6, left = 170, top = 44;
    const across = head.children.length - 1;
    const canvas = el("canvas", { width: left + across * (side + gap), height: top + lines.length * (side + gap) });
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "#2b2420";
    pen.font = "14px system-ui, sans-serif";
    [...head.children].forEach((one, index) => pen.fillText(one.textContent, index ? left + (index - 1) * (side + gap) : 4, 26, index ? side : left - 8));
    lines.forEach((line, row) => {
      const y = top + row * (side + gap);
      pen.fillText(line.children[0].textContent, 4, y + side / 2, left - 12);
      [...line.querySelectorAll(".cell")].forEach((cell, column) => {
        const image = cell.querySelector("img");
        if (image?.naturalWidth) pen.drawImage(image, left + column * (side + gap), y, side, side);
      });
    });
    el("a", { href: canvas.toDataURL("image/png"), download: "grid.png" }).click();
  }

  return {
    update(known) {
      models = known.models;
      for (const one of [rows, columns]) if (["sampler", "form", "prompt", "model"].includes(one.name.value)) one.suggest();
    },
  };
}
