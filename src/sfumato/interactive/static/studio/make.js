// The tab Make: prompt, seeds and settings; pictures as they come; the gallery.

import { call, work } from "./api.js";
import { button, check, copy, el, field, later, pixels, randomSeeds, say, seedsOf, waitText } from "./ui.js";
import { settingsForm } from "./settings.js";

const PAGE = 60;

export function makeTab(root) {
  const prompt = el("textarea", { name: "prompt", maxLength: 2000, rows: 2 });
  const negative = el("input", { name: "negative_prompt", maxLength: 2000 });
  const seeds = el("input", { name: "seeds", value: "0", spellcheck: false });
  const lock = el("input", { type: "checkbox", name: "lock", checked: true });
  const live = el("input", { type: "checkbox", name: "live", title: "A picture as you type; it is not kept" });
  const examples = el("datalist", { id: "examples" });
  const cost = el("p", { className: "cost", id: "cost" });
  const make = button("Make", start, { className: "first", id: "make-button" });
  const stop = button("Cancel", () => job?.cancel(), { disabled: true, id: "cancel-button" });
  const stage = el("div", { className: "pictures large", id: "stage" });
  const progress = el("progress", { hidden: true, max: 1, value: 0 });
  const told = el("p", { className: "cost", id: "told" });
  const notes = el("div", { id: "notes" });
  const gallery = el("div", { className: "pictures", id: "gallery" });
  const count = el("span", { className: "soft" });
  const more = button("Older pictures", () => older(), { hidden: true, className: "quiet" });
  const chips = el("div", { className: "row chips", id: "chips" });
  const settings = settingsForm(edited, "Settings");
  const dialog = document.getElementById("details");
  let job = null;
  let again = {}; // of a restored picture: what no field shows
  let oldest = "";

  const negativeField = field("Negative prompt", negative);
  root.append(
    el("div", { className: "two" },
      el("div", { className: "form card" },
        field("Prompt", prompt), chips, negativeField,
        el("div", {}, field("Seeds", seeds),
          el("div", { className: "row" }, check("Lock seeds", lock),
            button("New seeds", () => { draw(); edited(); }, { className: "quiet" }))),
        el("div", { className: "row" }, make, stop, check("Live", live)), cost, settings.root),
      el("div", {}, told, progress, notes, stage,
        el("h2", {}, "Gallery ", count), gallery, more)),
    examples);
  stage.append(el("p", { className: "empty" }, "Pictures appear here while they are sampled."));

  for (const one of [prompt, negative, seeds]) one.addEventListener("input", () => edited());
  live.addEventListener("change", () => {
    const fast = state.live;
    if (live.checked && fast) settings.choose(fast);
    edited();
  });
  addEventListener("keydown", (event) => {
    if (root.hidden || dialog.open) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
    if (event.key === "Escape") job?.cancel();
  });

  let state = { models: [], live: null };
  const ask = later(async () => {
    try {
      const { nfe } = await call("/api/check", { body: picture(firstSeed()) });
      cost.textContent = nfe === null ? "The model is loading." : `NFE ${nfe}: ${nfe === 1 ? "one network evaluation" : "network evaluations"} a picture`;
      cost.classList.remove("note");
    } catch (error) {
      cost.textContent = error.message;
      cost.classList.add("note");
    }
  }, 200);
  const redraw = later(() => start(), 150);

  function edited() {
    again = {};
    negativeField.hidden = Boolean(settings.about()?.distilled || settings.about()?.can);
    suggest();
    ask();
    if (live.checked) redraw();
  }

  function suggest() {
    const known = settings.about()?.examples ?? [];
    if (chips.dataset.of === known.join("|")) return;
    chips.dataset.of = known.join("|");
    chips.replaceChildren(...known.slice(0, 4).map((text) =>
      button(text, () => { prompt.value = text; edited(); }, { className: "quiet", title: "Try this prompt" })));
    if (!prompt.value && known.length) prompt.value = known[known.length > 7 ? 7 : 0];
  }

  function firstSeed() {
    try { return seedsOf(seeds.value)[0]; } catch { return 0; }
  }

  function draw() {
    let length = 1;
    try { length = seedsOf(seeds.value).length; } catch { /* one */ }
    seeds.value = randomSeeds(length).join(" ");
  }

  function shared() {
    const hidden = negativeField.hidden ? "" : negative.value;
    return { ...settings.values(), prompt: prompt.value, negative_prompt: hidden, ...again };
  }

  function picture(seed) {
    return { ...shared(), seed };
  }

  async function start() {
    const quick = live.checked;
    if (job) {
      if (!quick) return;
      job.cancel(); // what was typed since is wanted
    }
    let wanted;
    try {
      if (!lock.checked && !quick) draw();
      wanted = seedsOf(seeds.value);
    } catch (error) {
      say(error.message);
      return;
    }
    say("");
    notes.replaceChildren();
    // Live pictures stay until the next ones are there.
    const stays = quick && stage.children.length === wanted.length && stage.querySelector("img");
    const boxes = stays ? [...stage.children] : wanted.map((seed) => box(seed));
    if (!stays) stage.replaceChildren(...boxes);
    const own = work("/api/sample", { ...shared(), seeds: wanted, keep: !quick }, {
      waiting: (one) => { told.textContent = `Waiting: ${waitText(one)}`; },
      started: () => { told.textContent = "Sampling ..."; },
      step: ({ index, step, of, png }) => {
        told.textContent = `Picture ${index + 1} of ${wanted.length}: evaluation ${step} of ${of}`;
        progress.value = (index + step / of) / wanted.length;
        if (png) show(boxes[index], png, "preview");
      },
      picture: ({ index, name, png, settings: values }) => {
        show(boxes[index], png ?? `/api/gallery/${name}`, "", name, values);
        if (name) add({ name, settings: values }, true);
      },
      note: ({ text }) => notes.append(el("p", { className: "note" }, text)),
      failed: ({ error, hint }) => say(`${error} ${hint}`),
      cancelled: () => { if (own === job) told.textContent = "Cancelled."; },
    });
    job = own;
    stop.disabled = false;
    make.disabled = !quick;
    progress.hidden = quick;
    progress.value = 0;
    const end = await own.ended;
    if (own !== job) return;
    job = null;
    stop.disabled = true;
    make.disabled = false;
    progress.hidden = true;
    if (end === "done") told.textContent = "";
  }

  function box(seed) {
    const picture = el("div", { className: "cell" });
    return el("figure", {}, picture, el("figcaption", {}, `seed ${seed}`));
  }

  function show(place, src, kind, name, values) {
    const image = place.querySelector("img");
    if (image && kind === "preview") {
      image.src = src;
      return;
    }
    const made = pixels(src, values ? `${values.prompt}, seed ${values.seed}` : "Preview");
    if (kind) made.classList.add(kind);
    place.replaceChild(name ? opens(made, { name, settings: values }) : wrapped(made), place.firstElementChild);
    if (values) place.querySelector("figcaption").textContent = `seed ${values.seed}`;
  }

  const wrapped = (image) => el("div", { className: "cell" }, image);
  const opens = (image, one) => el("button", { className: "picture", type: "button", on: { click: () => details(one) } }, image);

  // Gallery ---------------------------------------------------------------------------------------

  function add(one, first) {
    const { prompt: text = "", seed = "" } = one.settings;
    const figure = el("figure", { id: one.name },
      opens(pixels(`/api/gallery/${one.name}`, `${text}, seed ${seed}`), one),
      el("figcaption", { title: text }, text || `seed ${seed}`));
    gallery[first ? "prepend" : "append"](figure);
    if (first) total(1);
  }

  let all = 0;
  function total(more) {
    all += more;
    count.textContent = all ? `${all}` : "is empty";
  }

  async function older() {
    const page = await call(`/api/gallery?limit=${PAGE}&before=${encodeURIComponent(oldest)}`).catch((error) => say(error.message));
    if (!page) return;
    all = 0;
    total(page.count);
    page.pictures.forEach((one) => add(one, false));
    oldest = page.pictures.at(-1)?.name ?? oldest;
    more.hidden = page.pictures.length < PAGE;
  }
  older();

  // One picture -----------------------------------------------------------------------------------

  async function details({ name, settings: values }) {
    const file = await fetch(`/api/gallery/${name}`).then((answer) => (answer.ok ? answer.blob() : null), () => null);
    if (!file) return say("The picture is gone.");
    const found = await call("/api/inspect", { file }).catch(() => ({ settings: values, picture: null, notes: [] }));
    const code = found.picture?.model ? await call("/api/check", { body: { ...found.picture, seed: found.settings.seed || 0 } }).catch(() => null) : null;
    const facts = Object.entries(found.settings).map(([key, value]) => el("tr", {}, el("td", {}, key), el("td", {}, value)));
    dialog.replaceChildren(el("div", { className: "two" },
      el("div", { className: "form" }, pixels(`/api/gallery/${name}`, values.prompt ?? ""),
        el("a", { href: `/api/gallery/${name}`, download: fileName(found.settings), id: "download" }, "Download PNG"),
        button("Restore its settings", () => { dialog.close(); restore(found); }, { id: "restore" }),
        button("Use its seed", () => { dialog.close(); seeds.value = values.seed; lock.checked = true; edited(); }),
        button("Delete", async () => {
          await call(`/api/gallery/${name}`, { method: "DELETE" }).catch((error) => say(error.message));
          document.getElementById(name)?.remove();
          total(-1);
          dialog.close();
        }),
        button("Close", () => dialog.close(), { className: "quiet" })),
      el("div", {}, ...found.notes.map((text) => el("p", { className: "note" }, text)),
        ...(code ? [snippet("Copy as command", code.command), snippet("Copy as Python", code.python)] : []),
        el("table", { className: "facts" }, el("tbody", {}, ...facts)))));
    dialog.showModal();
  }

  function snippet(title, text) {
    const own = button(title, () => copy(text, own), { className: "quiet" });
    return el("div", {}, own, el("pre", {}, text));
  }

  function fileName({ prompt: text = "", seed = "" }) {
    const words = text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
    return `${words || "picture"}-seed${seed}.png`;
  }

  function restore({ picture: one, notes: found, settings: { seed } }) {
    if (one.model) settings.fill(one);
    prompt.value = one.prompt;
    negative.value = one.negative_prompt;
    seeds.value = seed || 0; // as text: a number here would lose its last digits
    lock.checked = true;
    live.checked = false;
    edited();
    again = { alone: one.alone, timestep_spacing: one.timestep_spacing };
    notes.replaceChildren(...found.map((text) => el("p", { className: "note" }, text)));
    told.textContent = "Its settings are restored: Make gives the same picture.";
    prompt.focus();
  }

  async function dropped(file) {
    if (file.size > 8e6) throw new Error("The file has more than 8 MB.");
    restore(await call("/api/inspect", { file }));
  }

  return {
    shared, dropped,
    seed: firstSeed,
    update(known) {
      state = known;
      settings.show(known.models);
      negativeField.hidden = Boolean(settings.about()?.distilled || settings.about()?.can);
      suggest();
      ask();
    },
  };
}
