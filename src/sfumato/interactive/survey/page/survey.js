"use strict";
// One page for both ways of asking: with a server every answer is sent at once, without one they
// stay in this browser until the person saves them as a file. Either way an answer is stored here
// before it is shown as given, so a reload or a server that is away loses none.

const plan = window.SURVEY;
const served = document.querySelector("meta[name=survey-server]").content === "yes";
const store = "survey-" + (plan ? plan.survey : "");
const byId = (id) => document.getElementById(id);
const RETRY_MS = 1000;
const TOO_SOON_MS = 150; // a second tap on the picture before is no answer to this one

let state = null; // {session, form, answers: [[number, trial, choice, ms], ...], sent}
let shownAt = null;
let sending = false;

function show(id) {
  for (const one of document.querySelectorAll("main")) one.hidden = one.id !== id;
  window.scrollTo(0, 0);
}

function fail(why) {
  byId("why").textContent = why;
  show("wrong");
}

function form() {
  return plan.forms[state.form];
}

function trialAt(number) {
  const [name, flip] = form()[number];
  const trial = plan.trials[name];
  const question = plan.questions[trial.question];
  const pictures = trial.pictures.slice();
  if (flip) pictures.reverse();
  return { name, pictures, question, trial, choices: trial.choices || question.choices };
}

function practices() {
  return form().filter(([name]) => plan.trials[name].practice).length;
}

// Storing ----------------------------------------------------------------------------------------

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify(state));
  } catch (error) {
    // A browser that stores nothing: with a server nothing is lost but on a reload without it.
  }
}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(store));
  } catch (error) {
    return null;
  }
}

function newName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    cache: "no-store",
  });
  if (response.status >= 500) throw new Error("the server is away");
  return { ok: response.ok, status: response.status, body: response.ok ? await response.json() : null };
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function persist(path, body) {
  for (;;) {
    try {
      const answer = await post(path, body);
      note("");
      return answer;
    } catch (error) {
      note(answered()
        ? "No connection. Your answers are kept here and sent as soon as there is one."
        : "No connection. This page goes on as soon as there is one.");
      await pause(RETRY_MS);
    }
  }
}

async function send() {
  if (!served || sending) return;
  sending = true;
  while (state.sent < state.answers.length) {
    const answer = state.answers[state.sent];
    const reply = await persist("api/answer", { session: state.session, answer });
    if (!reply.ok) return refused(reply);
    state.sent += 1;
    keep();
  }
  sending = false;
  if (state.answers.length === form().length) finish();
}

// Beginning --------------------------------------------------------------------------------------

function formWithoutServer() {
  const asked = Number(window.location.hash.slice(1));
  const count = plan.forms.length;
  if (Number.isInteger(asked) && asked >= 1 && asked <= count) return asked - 1;
  return crypto.getRandomValues(new Uint32Array(1))[0] % count;
}

async function begin() {
  byId("agree").disabled = true;
  if (!served) {
    state = { session: newName(), form: formWithoutServer(), answers: [], sent: 0 };
  } else {
    const reply = await persist("api/start", {});
    if (!reply.ok) return refused(reply);
    state = { session: reply.body.session, form: reply.body.form, answers: [], sent: 0 };
  }
  keep();
  next();
}

async function resume() {
  // The server knows what arrived; what it has not, is here and is sent again.
  if (served) {
    const reply = await persist("api/start", { session: state.session });
    if (reply.status === 404) return again();
    if (!reply.ok) return refused(reply);
    const here = new Map(state.answers.map((answer) => [answer[0], answer]));
    const there = reply.body.answered.map((number) => here.get(number) || [number, "", 0, 0]);
    const missing = state.answers.filter(([number]) => !reply.body.answered.includes(number));
    state.answers = there.concat(missing);
    state.sent = there.length;
    keep();
    send();
  }
  next();
}

function again() {
  localStorage.removeItem(store);
  state = null;
  consent();
}

function refused(reply) {
  fail(reply.status === 401
    ? "Open the address that you were given once more: your answers are kept here."
    : "This page and the server do not fit any more. Please tell whoever invited you.");
}

function consent() {
  byId("agree").disabled = false;
  document.title = plan.title;
  byId("title").textContent = plan.title;
  byId("consent-text").textContent = plan.consent;
  const count = plan.forms[0].length;
  const training = plan.forms[0].filter(([name]) => plan.trials[name].practice).length;
  byId("length").textContent = `There are ${count} questions` +
    (training ? `, the first ${training} of them for practice.` : ".");
  const pair = plan.trials[plan.forms[0][0][0]].pictures.length === 2;
  const tie = pair && plan.questions[0].choices.length === 3;
  byId("keys").textContent = pair
    ? "Choose with a click, or with the keys ← and →" + (tie ? ", and ↓ for no difference." : ".")
    : "Choose with a click, or with the number keys.";
  byId("agree").onclick = begin;
  show("consent");
}

// Trials -----------------------------------------------------------------------------------------

function element(tag, text) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  return made;
}

function note(text) {
  for (const one of document.querySelectorAll(".note")) one.textContent = text;
  if (!byId("end").hidden && text) byId("saved").textContent = text;
}

function answered() {
  return state ? state.answers.length : 0;
}

function next() {
  const number = answered();
  const training = practices();
  if (number >= form().length) return finish();
  if (training && number === training && !state.ready) {
    byId("go").onclick = () => {
      state.ready = true;
      keep();
      ask(number);
    };
    return show("ready");
  }
  ask(number);
}

function ask(number) {
  const { pictures, question, trial, choices } = trialAt(number);
  const training = practices();
  shownAt = null;
  byId("bar").value = number / form().length;
  byId("place").textContent = number < training
    ? `Practice ${number + 1} of ${training}`
    : `${number - training + 1} of ${form().length - training}`;
  byId("question").textContent = trial.text || question.text;
  byId("caption").textContent = trial.caption || "";
  byId("caption").hidden = !trial.caption;
  byId("ends").hidden = !question.ends;
  if (question.ends) [byId("low").textContent, byId("high").textContent] = question.ends;
  showPictures(number, pictures, choices);
  showChoices(choices, pictures.length === 2, Boolean(trial.choices), Boolean(question.ends));
  show("trial");
  preload(number + 1);
}

function showPictures(number, names, choices) {
  let waiting = names.length;
  const made = names.map((name, place) => {
    const image = element("img");
    image.alt = names.length === 2 ? choices[place === 0 ? 0 : choices.length - 1] : "Picture";
    image.draggable = false;
    load(image, name, () => {
      waiting -= 1;
      if (waiting === 0 && number === answered()) shownAt = performance.now();
    });
    if (names.length === 1) return image;
    const button = element("button");
    button.append(image);
    button.dataset.choice = place === 0 ? 0 : choices.length - 1;
    button.onclick = () => choose(Number(button.dataset.choice));
    return button;
  });
  byId("pictures").replaceChildren(...made);
}

function load(image, name, done) {
  image.onload = () => {
    image.classList.toggle("pixels", image.naturalWidth < 200);
    done();
  };
  image.onerror = () => setTimeout(() => { image.src = address(name, true); }, RETRY_MS);
  image.src = address(name, false);
}

function address(name, again) {
  return `pictures/${name}.png` + (again ? `?again=${Date.now()}` : "");
}

function preload(number) {
  if (number >= form().length) return;
  for (const name of trialAt(number).pictures) new Image().src = address(name, false);
}

function showChoices(choices, pair, list, numbers) {
  const keys = pair ? (choices.length === 3 ? ["←", "↓", "→"] : ["←", "→"]) : null;
  const box = byId("choices");
  box.className = list ? "list" : numbers ? "numbers" : "";
  box.replaceChildren(...choices.map((text, place) => {
    const button = element("button", text);
    const hint = keys ? keys[place] : String(place + 1);
    if (hint !== text) button.append(element("kbd", hint));
    button.dataset.choice = place;
    button.onclick = () => choose(place);
    return button;
  }));
}

function choose(choice) {
  const number = answered();
  if (shownAt === null || byId("trial").hidden) return;
  const ms = Math.round(performance.now() - shownAt);
  if (ms < TOO_SOON_MS) return;
  shownAt = null;
  state.answers.push([number, trialAt(number).name, choice, ms]);
  keep();
  send();
  for (const button of document.querySelectorAll("#trial button")) {
    button.classList.toggle("chosen", Number(button.dataset.choice) === choice);
  }
  document.activeElement.blur();
  setTimeout(next, TOO_SOON_MS);
}

document.addEventListener("keydown", (event) => {
  if (!state || byId("trial").hidden || event.repeat) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const { pictures, choices } = trialAt(answered());
  const last = choices.length - 1;
  const arrows = { ArrowLeft: 0, ArrowRight: last, ArrowDown: last === 2 ? 1 : -1 };
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  const choice = pictures.length === 2 && event.key in arrows ? arrows[event.key] : digit;
  if (choice < 0 || choice > last) return;
  event.preventDefault();
  choose(choice);
});

// The end ----------------------------------------------------------------------------------------

function finish() {
  const missing = served ? answered() - state.sent : 0;
  byId("file").hidden = served && !missing;
  byId("file").onclick = save;
  byId("other").hidden = !served || missing > 0;
  byId("other").onclick = again;
  byId("saved").textContent = !served
    ? "One step is left: save your answers as a file, and send it to whoever invited you."
    : missing
      ? "The last answers are being sent. Please keep this page open."
      : "Your answers are saved. You can close this page.";
  show("end");
}

function save() {
  const { session, form: number, answers } = state;
  const text = JSON.stringify({ survey: plan.survey, session, form: number, answers });
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `answers-${session.slice(0, 8)}.json`;
  link.click();
  byId("saved").textContent =
    `Saved as ${link.download}. Please send it to whoever invited you.`;
  byId("other").hidden = false;
}

if (!plan) {
  fail("The file plan.js is missing. Keep the whole folder together.");
} else {
  document.title = plan.title;
  state = kept();
  if (state) resume();
  else consent();
}
