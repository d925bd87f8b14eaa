// The tab Evolve: pick pictures, breed their noise, lock favourites, go back to any generation.

import { call, work } from "./api.js";
import { button, el, field, pixels, say, waitText } from "./ui.js";

export function evolveTab(root, make) {
  const name = el("input", { placeholder: "my-evolution", maxLength: 60, spellcheck: false, name: "name" });
  const prompts = el("textarea", { rows: 2, name: "prompts" });
  const seed = el("input", { type: "number", value: 0, min: 0 });
  const size = el("input", { type: "number", value: 12, min: 6, max: 36 });
  const angle = el("input", { type: "number", value: 45, min: 1, max: 90 });
  const begin = button("Begin", start, { className: "first", id: "begin-evolution" });
  const known = el("select", { ariaLabel: "Evolutions", on: { change: () => known.value && open(known.value) } });
  const told = el("p", { className: "cost", id: "evolve-told" });
  const facts = el("p", { id: "evolve-facts" });
  const trail = el("div", { className: "row", id: "trail" });
  const stage = el("div", { className: "pictures large", id: "generation" }, el("p", { className: "empty" }, "Begin an evolution, or open one."));
  const breed = button("Breed", advance, { className: "first", id: "breed", disabled: true });
  const clear = button("Pick none", () => { picks.clear(); show(); }, { className: "quiet" });
  let history = null;
  let shown = 0;
  let picks = new Set();
  let locked = new Set();
  let measured = false;

  root.append(el("div", { className: "two" },
    el("div", { className: "form card" }, field("Go on with", known), el("strong", {}, "A new one"),
      field("Name", name), field("Prompts, one a line (of a CAN: none for every class)", prompts),
      el("div", { className: "pair" }, field("First seed", seed), field("Pictures", size)),
      field("First mutation in degrees", angle),
      el("small", {}, "Model and sampling are those of Make; the sampler must draw no noise."), begin),
    el("div", {}, told, facts, trail, stage,
      el("p", { className: "row" }, breed, clear, el("small", {}, "Pick by click; a locked picture is picked in every generation and stays. Keep saves it as PNG.")))));

  async function list() {
    const found = await call("/api/evolutions").catch((error) => say(error.message));
    if (!found) return;
    measured = found.measured;
    known.replaceChildren(el("option", { value: "" }, found.evolutions.length ? "choose" : "none yet"),
      ...found.evolutions.map((one) => el("option", { value: one.name }, `${one.name} (${one.generations})`)));
    known.value = history?.name ?? "";
  }

  const remembered = () => `sfumato-locked-${history.name}`;
  async function open(wanted, number) {
    try {
      history = await call(`/api/evolutions/${encodeURIComponent(wanted)}`);
    } catch (error) {
      return say(error.message);
    }
    locked = new Set(JSON.parse(localStorage.getItem(remembered()) ?? "[]"));
    go(number ?? history.generations.length - 1);
    await list();
  }

  function go(number) {
    shown = number;
    picks = new Set();
    show();
  }

  function show() {
    const one = history.generations[shown];
    one.images.forEach((image, index) => { if (locked.has(image)) picks.add(index + 1); });
    const accuracy = one.accuracy == null ? (measured ? "not measured" : "not measured (--classifier auto)") : `${(100 * one.accuracy).toFixed(0)} %`;
    facts.textContent = `Generation ${shown}${one.parent === null ? "" : ` from ${one.parent} by ${one.picks.join(", ") || "none"}`}: deviation of the noise ${one.deviation.toFixed(3)}, class accuracy ${accuracy}`;
    trail.replaceChildren(...history.generations.map(({ number }) =>
      button(String(number), () => go(number), { className: number === shown ? "first" : "", ariaLabel: `Generation ${number}` })));
    const focused = [...stage.querySelectorAll("button.picture")].indexOf(document.activeElement);
    stage.replaceChildren(...one.images.map((image, index) => card(one, image, index)));
    if (focused >= 0) stage.querySelectorAll("button.picture")[focused]?.focus();
    breed.disabled = false;
    breed.textContent = picks.size ? `Breed ${picks.size} picked` : "All new ones";
  }

  function card(one, image, index) {
    const place = index + 1;
    const source = `/api/evolutions/${encodeURIComponent(history.name)}/images/${image}`;
    const toggle = () => {
      if (!locked.has(image)) picks[picks.has(place) ? "delete" : "add"](place);
      show();
    };
    const lock = () => {
      if (locked.delete(image)) picks.delete(place);
      else locked.add(image);
      localStorage.setItem(remembered(), JSON.stringify([...locked]));
      show();
    };
    const isLocked = locked.has(image);
    return el("figure", {},
      el("button", { type: "button", className: "picture", ariaPressed: String(picks.has(place)), ariaLabel: `Picture ${place}`, on: { click: toggle } }, pixels(source, `Picture ${place}`)),
      el("figcaption", {}, `${place}${index < one.kept ? " kept" : ""} `,
        button(isLocked ? "Locked" : "Lock", lock, { className: "quiet", ariaPressed: String(isLocked) }),
        el("a", { href: source, download: `${history.name}-${image}.png` }, "Keep")));
  }

  function follow(path, body, wanted) {
    begin.disabled = breed.disabled = true;
    let number;
    const job = work(path, body, {
      waiting: (one) => { told.textContent = `Waiting: ${waitText(one)}`; },
      started: () => { told.textContent = "Sampling a generation ..."; },
      note: ({ text }) => say(text),
      generation: (one) => { number = one.number; },
      failed: ({ error, hint }) => say(`${error} ${hint}`),
    });
    return job.ended.then(async () => {
      told.textContent = "";
      begin.disabled = false;
      breed.disabled = history === null;
      if (number !== undefined) await open(wanted, number);
    });
  }

  function start() {
    say("");
    const { model, guidance, form, sampler, steps } = make.shared();
    follow("/api/evolutions", {
      model, guidance, form, sampler, steps,
      name: name.value.trim() || "my-evolution",
      prompts: prompts.value.split("\n").map((text) => text.trim()).filter(Boolean),
      seed: Number(seed.value), size: Number(size.value), angle: Number(angle.value),
    }, name.value.trim() || "my-evolution");
  }

  function advance() {
    say("");
    follow(`/api/evolutions/${encodeURIComponent(history.name)}/advance`, { generation: shown, picks: [...picks] }, history.name);
  }

  return {
    shown() {
      if (!prompts.value) prompts.value = make.shared().prompt;
      list();
    },
  };
}
