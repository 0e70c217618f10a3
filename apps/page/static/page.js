// The page: joins the connection, the cameras, the conversations and the buttons.

import { Cameras } from "./camera.js";
import { showFigures } from "./figures.js";
import { Link } from "./link.js";
import { loadState, saveState } from "./snapshot.js";
import { Talk } from "./talk.js";

const $ = (id) => document.getElementById(id);
const LOST = {
  restarted: "The server was restarted, and the model has forgotten this conversation. What is above is only to read.",
  forgotten: "The server gave this conversation's place to another page. What is above is only to read.",
};

let memory = 0, figures;
const link = new Link({ message, welcome, state, picture: (blob) => cameras.preview(blob) });
const talk = new Talk(refresh);
const cameras = new Cameras(link, () => {
  if (watching()) watch(true);
  refresh();
});

async function welcome(data, how) {
  const before = watching();
  memory = data.memory;
  $("model-name").textContent = `${data.model.name} · ${data.model.family} · ${data.model.precision}`;
  $("about").textContent = data.about;
  $("suggestions").replaceChildren(...data.questions.map(suggestion));
  banner(how === "again" ? "Connected again; the conversation goes on." : LOST[how]
    ?? (how === "lost" ? "The server no longer has your earlier conversation: this is a new one." : ""), how === "again" ? 4000 : 0);
  talk.welcome(data.tabs, how === "again" ? null : LOST[how] ?? "");
  if (how !== "again") figures = undefined;
  await cameras.welcome(data);
  if (before && !watching()) watch(true);
  refresh();
}

function message(data) {
  const happened = {
    ack: () => cameras.acknowledged(),
    figures: () => { memory = data.memory; talk.update(data.tabs); },
    asked: () => { figures = undefined; talk.asked(data); },
    text: () => { talk.said(data.tab, data); figures = data.figures; },
    done: () => {
      const entry = talk.said(data.tab, data);
      figures = data.figures;
      if (entry) $("announce").textContent = `Answer: ${entry.answer || "no text"}`;
    },
    undone: () => { talk.drop(data.tab); $("announce").textContent = "The last question was taken back."; },
    forked: () => { talk.fork(data.from, data); $("announce").textContent = "A fork is open."; $("question").focus(); },
    opened: () => { talk.open(data, data.entries); $("announce").textContent = "The saved conversation is open."; },
    cleared: () => { talk.clear(data.tab); figures = undefined; },
    closed: () => talk.close(data.tab),
    notice: () => banner(data.text, 8000),
    error: () => failed(data),
  }[data.type];
  happened?.();
  refresh();
}

function failed({ tab, found, wanted: wish, hint, question, kept, void: gone, answering }) {
  if (question !== undefined) {
    if (kept) talk.said(tab, { finish: "failed" });
    if (gone) talk.drop(tab);
    talk.answering(tab, answering);
    if (!$("question").value) $("question").value = question;
  }
  problem([found, wish && `wanted: ${wish}`, hint && `try: ${hint}`].filter(Boolean).map(sentence).join(" "));
}

function state(name, text) {
  $("connection").dataset.state = name;
  $("connection-text").textContent = name === "on" ? text : { lost: "Reconnecting", full: "Waiting" }[name] ?? "Not connected";
  if (name !== "on") banner(text);
  if (name !== "on") cameras.stream(false);
  for (const tab of talk.all) if (name !== "on") tab.answering = false;
  refresh();
}

async function ask(text) {
  const tab = talk.active;
  if (!text.trim() || !tab || tab.answering || !link.open) return;
  problem("");
  tab.answering = true;
  refresh();
  const seen = tab.watching === "none" && await cameras.shoot();
  const sent = link.send({ type: "ask", tab: tab.tab, text, camera: seen ? cameras.kind : "none" });
  if (sent) $("question").value = "";
  tab.answering = sent;
  size();
  refresh();
}

function watching() {
  return Boolean(talk.active) && talk.active.watching !== "none";
}

function watch(on) {
  link.send({ type: "watch", tab: talk.active.tab, camera: on ? cameras.kind : "none" });
}

function act(what) {
  problem("");
  if (talk.active) link.send({ type: "act", tab: talk.active.tab, what });
}

// Soon, and once for all that has happened until then: tokens can come faster than pictures are drawn.
function refresh() {
  if (refresh.due) return;
  refresh.due = true;
  const draw = () => {
    if (refresh.due) redraw();
    refresh.due = false;
  };
  requestAnimationFrame(draw);
  setTimeout(draw, 100); // windows in the background have no frames
}

// Bring the running answers, buttons, figures and the camera's stream up to date with what is so.
function redraw() {
  talk.redraw();
  const tab = talk.active, online = link.open && Boolean(tab);
  const busy = Boolean(tab?.answering), on = watching();
  $("ask").hidden = busy;
  $("stop").hidden = !busy;
  $("ask").disabled = !online;
  $("undo").disabled = !online || busy || !tab.undo;
  $("fork").disabled = $("reset").disabled = $("save").disabled = !online || busy;
  $("load").disabled = !online;
  $("close").hidden = talk.all.length < 2;
  $("watch").disabled = !online || (cameras.kind === "none" && !on);
  $("watch").setAttribute("aria-checked", on);
  $("watching-sign").hidden = !on;
  $("undo").title = on ? "Stop watching to undo" : "Take back the last question";
  $("watch-note").textContent = note(tab, on);
  cameras.stream(online && talk.all.some((one) => one.watching === "page"));
  showFigures({ memory, tab, skipped: cameras.skipped, figures });
}

function note(tab, on) {
  if (!on) return "Off: the model sees only the frame you ask about.";
  if (tab.window) return `This model takes frames only with a question: it is shown the last ${tab.window}.`;
  return "Every new frame goes into the state. A question is about all of them, and leaves no trace.";
}

function suggestion(text) {
  const item = document.createElement("li"), button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: text });
  button.addEventListener("click", () => ask(text));
  item.append(button);
  return item;
}

function banner(text, forMs = 0) {
  clearTimeout(banner.timer);
  $("banner").hidden = !text;
  $("banner-text").textContent = text ?? "";
  if (text && forMs) banner.timer = setTimeout(() => banner(""), forMs);
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}

// Errors over HTTP have their parts on lines.
function refused(error) {
  problem(error.message.split(/\s*\n\s*/).map(sentence).join(" "));
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem-text").textContent = text;
}

function size() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("question").addEventListener("input", size);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask($("question").value);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && talk.active?.answering) act("stop");
});
for (const what of ["undo", "fork", "reset", "close", "stop"]) $(what).addEventListener("click", () => act(what));
$("watch").addEventListener("click", () => watch(!watching()));
$("save").addEventListener("click", () => saveState(link.room, talk.active).catch(refused));
$("load").addEventListener("click", () => $("state-file").click());
$("state-file").addEventListener("change", () => {
  problem("");
  loadState(link.room, $("state-file")).catch(refused);
});
$("about-button").addEventListener("click", () => talk.about());
$("banner-close").addEventListener("click", () => banner(""));
$("problem-close").addEventListener("click", () => problem(""));

link.connect();
