// The tab Compare: two models or settings on the same prompt and seeds, blind on request.

import { work } from "./api.js";
import { button, check, el, field, pixels, say, seedsOf } from "./ui.js";
import { settingsForm } from "./settings.js";

export function compareTab(root, make) {
  const prompt = el("input", { maxLength: 2000, name: "prompt" });
  const seeds = el("input", { value: "0-7", spellcheck: false });
  const blind = el("input", { type: "checkbox", name: "blind" });
  const sides = [settingsForm(() => {}, "Settings of A"), settingsForm(() => {}, "Settings of B")];
  const begin = button("Compare", start, { className: "first", id: "compare-button" });
  const stop = button("Cancel", () => job?.cancel(), { disabled: true });
  const told = el("p", { className: "cost" });
  const stage = el("div", {}, el("p", { className: "empty" }, "Both sides get the same prompt and the same seeds."));
  let job = null;
  let pairs = []; // of each seed: the pictures of A and B, whether B is on the left, the vote
  let current = 0;

  root.append(el("div", { className: "two" },
    el("div", { className: "form card" }, field("Prompt", prompt), field("Seeds", seeds),
      check("Blind: sides are mixed and votes counted", blind), el("div", { className: "row" }, begin, stop),
      el("strong", {}, "A"), sides[0].root, el("strong", {}, "B"), sides[1].root),
    el("div", {}, told, stage)));
  addEventListener("keydown", (event) => {
    if (root.hidden || event.target.closest("[role=tablist]")) return;
    const vote = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
    if (vote && asking() && !["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) {
      event.preventDefault();
      choose(vote);
    }
  });

  const asking = () => blind.checked && current < pairs.length;
  async function start() {
    let wanted;
    try {
      wanted = seedsOf(seeds.value);
    } catch (error) {
      return say(error.message);
    }
    say("");
    const pictures = wanted.flatMap((seed) => sides.map((side) => ({ ...side.values(), prompt: prompt.value, seed })));
    pairs = wanted.map((seed) => ({ seed, names: [null, null], swapped: Math.random() < 0.5, vote: null }));
    current = 0;
    blind.disabled = true;
    let done = 0;
    job = work("/api/cells", { pictures }, {
      cell: ({ index, name }) => {
        pairs[Math.floor(index / 2)].names[index % 2] = name;
        told.textContent = `${++done} of ${pictures.length} pictures`;
        if (!blind.checked || Math.floor(index / 2) === current) draw();
      },
      failed: ({ error, hint }) => say(`${error} ${hint}`),
    });
    stop.disabled = false;
    begin.disabled = true;
    draw();
    stage.scrollIntoView({ block: "nearest" });
    const end = await job.ended;
    stop.disabled = true;
    begin.disabled = false;
    blind.disabled = false;
    if (end === "done" && !blind.checked) told.textContent = "";
  }

  const picture = (name, text) => el("div", { className: "cell" }, name ? pixels(`/api/cells/${name}`, text) : "");

  function draw() {
    if (blind.checked && current < pairs.length) return ask();
    const sum = blind.checked ? [result()] : [];
    stage.replaceChildren(...sum, el("div", { className: "pictures large" }, ...pairs.flatMap(({ seed, names }) =>
      ["A", "B"].map((side, index) => el("figure", {}, picture(names[index], `${side}, seed ${seed}`), el("figcaption", {}, `${side} · seed ${seed}`))))));
  }

  function ask() {
    const pair = pairs[current];
    const [left, right] = pair.swapped ? [...pair.names].reverse() : pair.names;
    const there = Boolean(left && right);
    const side = (name, vote, text) => el("figure", {},
      el("button", { type: "button", className: "picture", disabled: !there, ariaLabel: text, on: { click: () => choose(vote) } }, picture(there ? name : null, text)),
      el("figcaption", {}, text));
    stage.replaceChildren(
      el("p", {}, `Which is better? ${current + 1} of ${pairs.length}`),
      el("div", { className: "sides" }, side(left, "left", "left (arrow left)"), side(right, "right", "right (arrow right)")),
      el("p", { className: "row" }, button("No difference (arrow down)", () => choose("tie"), { disabled: !there })));
  }

  function choose(vote) {
    const pair = pairs[current];
    if (!pair?.names.every(Boolean)) return;
    pair.vote = vote === "tie" ? "tie" : (vote === "left") === pair.swapped ? "B" : "A";
    current += 1;
    draw();
    stage.querySelector("button")?.focus();
  }

  function result() {
    const count = (side) => pairs.filter((one) => one.vote === side).length;
    const [a, b, ties] = [count("A"), count("B"), count("tie")];
    const low = (x) => `${Math.round(100 * x)} %`;
    const [from, to] = wilson(a, a + b);
    const share = a + b ? ` A was better in ${low(a / (a + b))} of the decided pairs (95 % interval ${low(from)} to ${low(to)}).` : "";
    return el("p", { className: "card", id: "votes" }, `A ${a}, B ${b}, no difference ${ties}.${share}`);
  }

  return {
    shown() {
      if (!prompt.value) prompt.value = make.shared().prompt;
    },
    update({ models }) {
      sides.forEach((side) => side.show(models));
      if (models.length > 1 && sides[0].values().model === sides[1].values().model && !pairs.length) sides[1].choose(models[1].name);
    },
  };
}

// Wilson's 95 % interval of a share.
function wilson(right, count) {
  if (!count) return [0, 1];
  const z = 1.96, p = right / count, n = count;
  const middle = p + (z * z) / (2 * n), half = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [(middle - half) / (1 + (z * z) / n), (middle + half) / (1 + (z * z) / n)];
}
