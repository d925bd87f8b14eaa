// The page: tabs, the state of the models, dropped files.

import { call } from "./api.js";
import { say } from "./ui.js";
import { makeTab } from "./make.js";
import { gridTab } from "./grid.js";
import { compareTab } from "./compare.js";
import { evolveTab } from "./evolve.js";
import { trainTab } from "./train.js";

const place = (id) => document.getElementById(id);
const make = makeTab(place("make"));
const tabs = {
  make,
  grid: gridTab(place("grid"), make),
  compare: compareTab(place("compare"), make),
  evolve: evolveTab(place("evolve"), make),
  train: trainTab(place("train")),
};

// Tabs --------------------------------------------------------------------------------------------

const buttons = [...place("tabs").children];
function open(name, focus) {
  for (const one of buttons) {
    const own = one.getAttribute("aria-controls") === name;
    one.setAttribute("aria-selected", own);
    one.tabIndex = own ? 0 : -1;
    place(one.getAttribute("aria-controls")).hidden = !own;
    if (own && focus) one.focus();
  }
  say("");
  history.replaceState(null, "", `#${name}`);
  tabs[name].shown?.();
}
buttons.forEach((one, index) => {
  one.addEventListener("click", () => open(one.getAttribute("aria-controls")));
  one.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = buttons[(index + move + buttons.length) % buttons.length];
    open(next.getAttribute("aria-controls"), true);
  });
});
if (location.hash.slice(1) in tabs) open(location.hash.slice(1));

// Models ------------------------------------------------------------------------------------------

function line({ models, queue }) {
  const parts = models.map(({ name, state, stage, seconds, error }) => {
    if (state === "ready") return `${name} ready`;
    if (state === "failed") return `${name}: ${error}`;
    return state === "loading" ? `${name}: ${stage}, ${Math.round(seconds)} s` : `${name} waits`;
  });
  if (queue.waiting) parts.push(`${queue.waiting} waiting`);
  return parts.join(" · ");
}

let before = "";
async function refresh() {
  let loading = true;
  try {
    const known = await call("/api/models");
    place("status").textContent = line(known);
    const states = JSON.stringify(known.models.map((one) => one.state));
    if (states !== before) {
      before = states;
      for (const tab of Object.values(tabs)) tab.update?.(known);
    }
    loading = known.models.some((one) => ["waiting", "loading"].includes(one.state));
  } catch (error) {
    place("status").textContent = error.message;
  }
  setTimeout(refresh, loading ? 500 : 5000);
}
refresh();

// A dropped PNG -----------------------------------------------------------------------------------

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  open("make");
  try {
    await make.dropped(file);
  } catch (error) {
    say(error.message);
  }
});
