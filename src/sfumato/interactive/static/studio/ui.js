// Small helpers of all tabs.

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function field(label, input) {
  return el("label", {}, label, input);
}

export function check(label, input) {
  return el("label", { className: "check" }, input, label);
}

export function button(text, act, properties = {}) {
  return el("button", { type: "button", on: { click: act }, ...properties }, text);
}

export function pixels(src, alt) {
  return el("img", { className: "pixels", src, alt });
}

let fading = 0;
export function say(text) {
  const place = document.getElementById("message");
  place.textContent = text;
  place.hidden = !text;
  clearTimeout(fading);
  if (text) fading = setTimeout(() => say(""), 12000);
}

// "0-3 7" is 0, 1, 2, 3, 7. Seeds that a number of JavaScript does not hold exactly stay text.
export function seedsOf(text) {
  const found = [];
  for (const word of text.split(/[\s,]+/).filter(Boolean)) {
    if (/^\d{16,19}$/.test(word)) {
      found.push(word);
      continue;
    }
    const [, first, last] = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(word) ?? [];
    if (first === undefined) throw new Error(`'${word}' is no seed. Give whole numbers, such as 0 1 2 or 0-7.`);
    for (let seed = Number(first); seed <= Number(last ?? first); seed++) {
      found.push(seed);
      if (found.length > 64) throw new Error("These are more than 64 seeds.");
    }
  }
  if (!found.length) throw new Error("There is no seed. Give whole numbers, such as 0 1 2 or 0-7.");
  return found;
}

export function randomSeeds(count) {
  return Array.from({ length: count }, () => Math.floor(Math.random() * 2 ** 31));
}

export function later(act, milliseconds) {
  let waiting = 0;
  return (...values) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => act(...values), milliseconds);
  };
}

export function waitText({ ahead, wait_seconds }) {
  return ahead ? `${ahead} before this, about ${Math.ceil(wait_seconds)} s` : "next";
}

export async function copy(text, place) {
  try {
    await navigator.clipboard.writeText(text);
    place.textContent = "Copied";
  } catch {
    place.textContent = "Select it and copy";
  }
}
