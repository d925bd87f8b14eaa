// How a model samples, as a form: model, guidance, form, sampler, steps.

import { el, field } from "./ui.js";

// `changed` is called after every change by hand. `values()` are for the API.
export function settingsForm(changed, name) {
  const model = el("select", { name: "model" });
  const guidance = el("input", { type: "number", name: "guidance", min: 0, max: 1000, step: "any" });
  const form = el("select", { name: "form" });
  const parameters = el("input", { name: "parameters", spellcheck: false, placeholder: "none" });
  const sampler = el("select", { name: "sampler" });
  const steps = el("input", { type: "number", name: "steps", min: 1, max: 1000, step: 1 });
  const diffusion = el(
    "div", { className: "form" },
    el("div", { className: "pair" }, field("Guidance scale", guidance), field("Steps", steps)),
    field("Sampler", sampler),
    el("div", { className: "pair" }, field("Form of guidance", form), field("Its parameters", parameters)),
  );
  const root = el("div", { className: "form", ariaLabel: name }, field("Model", model), diffusion);
  let models = [];

  const known = () => models.find((one) => one.name === model.value);
  const options = (select, values) => {
    const before = select.value;
    select.replaceChildren(...values.map((value) => el("option", { value }, value)));
    if (values.includes(before)) select.value = before;
  };
  const setForm = (text) => {
    const [kind, ...rest] = text.split(":");
    if (![...form.options].some((one) => one.value === kind)) form.append(el("option", { value: kind }, kind));
    form.value = kind;
    parameters.value = rest.join(":");
  };
  const defaults = () => {
    const about = known();
    diffusion.hidden = !about?.defaults;
    if (!about?.defaults) return;
    options(sampler, about.samplers);
    options(form, about.forms.map((one) => one.split(":")[0]));
    guidance.value = about.defaults.guidance;
    sampler.value = about.defaults.sampler;
    steps.value = about.defaults.steps;
    setForm(about.defaults.form);
    for (const one of [sampler, steps, form, parameters]) one.disabled = about.distilled;
  };
  model.addEventListener("change", defaults);
  form.addEventListener("change", () => {
    const text = known()?.forms.find((one) => one.split(":")[0] === form.value);
    setForm(text ?? form.value);
  });
  root.addEventListener("input", () => changed());
  root.addEventListener("change", () => changed());

  return {
    root,
    about: known,
    show(list) {
      const before = known();
      models = list;
      options(model, list.map((one) => one.name));
      if (!before?.defaults || before.name !== model.value) defaults();
    },
    choose(name) {
      model.value = name;
      defaults();
    },
    values() {
      const about = known();
      if (!about?.defaults) return { model: model.value };
      const text = parameters.value.trim();
      return {
        model: model.value,
        guidance: guidance.value === "" ? null : Number(guidance.value),
        form: form.value + (text ? `:${text}` : ""),
        sampler: sampler.value,
        steps: steps.value === "" ? null : Number(steps.value),
      };
    },
    fill(values) {
      if (values.model && values.model !== model.value) this.choose(values.model);
      if (values.guidance != null) guidance.value = values.guidance;
      if (values.steps != null) steps.value = values.steps;
      if (values.sampler != null) sampler.value = values.sampler;
      if (values.form != null) setForm(values.form);
    },
  };
}
