// Requests to the studio, and the events of its jobs.

const ENDS = ["done", "failed", "cancelled"];
const EVENTS = ["waiting", "started", "step", "picture", "cell", "generation", "note", ...ENDS];

export async function call(path, { method, body, file } = {}) {
  const options = { method: method ?? (body || file ? "POST" : "GET"), headers: {} };
  if (body) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  } else if (file) {
    options.body = file;
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The studio does not answer. Is its command still running?");
  }
  const value = await answer.json().catch(() => ({ error: "The answer cannot be read." }));
  if (!answer.ok) throw new Error([value.error, value.hint].filter(Boolean).join(" "));
  return value;
}

// Queue a job and hand its events to `on`, by name. `cancel()` ends it; `ended` resolves with the
// name of its last event, after `on.failed` was called for an error.
export function work(path, body, on) {
  let job = null;
  let source = null;
  let unwanted = false;
  const cancel = () => {
    unwanted = true;
    if (job) fetch(`/api/jobs/${job}`, { method: "DELETE", keepalive: true });
  };
  const ended = (async () => {
    try {
      job = (await call(path, { body })).job;
    } catch (error) {
      if (!unwanted) on.failed?.({ error: error.message, hint: "" });
      return "failed";
    }
    if (unwanted) cancel();
    return new Promise((resolve) => {
      source = new EventSource(`/api/jobs/${job}/events`);
      const end = (name, values) => {
        source.close();
        on[name]?.(values);
        resolve(name);
      };
      for (const name of EVENTS) {
        source.addEventListener(name, (event) => {
          const values = JSON.parse(event.data);
          if (ENDS.includes(name)) end(name, values);
          else if (!unwanted) on[name]?.(values);
        });
      }
      source.onerror = () => {
        if (source.readyState === EventSource.CLOSED)
          end("failed", { error: "The studio does not answer.", hint: "" });
      };
    });
  })();
  addEventListener("pagehide", cancel);
  ended.then(() => removeEventListener("pagehide", cancel));
  return { cancel, ended };
}
