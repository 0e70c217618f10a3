// Conversations as tabs: what was asked, about which frame, what was answered. Text from the model is only ever text.

import { cost } from "./figures.js";

const $ = (id) => document.getElementById(id);
const ENDS = { length: "cut off at the longest answer", cancelled: "stopped", failed: "failed" };

export class Talk {
  #tabs = new Map(); #active = 0; #changed; #unread = new Set();

  // `changed` is called when another tab is shown.
  constructor(changed) {
    this.#changed = changed;
    $("tabs").addEventListener("keydown", (event) => this.#arrow(event));
  }

  get active() { return this.#tabs.get(this.#active); }
  get all() { return [...this.#tabs.values()]; }

  // Begin with the tabs of a welcome. With `note`, what is on the page stays above it, to read.
  welcome(tabs, note) {
    const old = note ? this.active?.entries ?? [] : [];
    const before = note === null ? this.#active : 0;
    this.#tabs = new Map(tabs.map((tab) => [tab.tab, make(tab)]));
    const first = this.#tabs.get(before) ?? this.all[0];
    if (note && old.length) first.entries.unshift(...old.map(forgotten), { note });
    this.show(first.tab);
  }

  open(tab, entries) {
    this.#tabs.set(tab.tab, make({ ...tab, entries }));
    this.show(tab.tab);
  }

  // Take over what the server says of its tabs.
  update(tabs) {
    const there = new Set(tabs.map((tab) => tab.tab));
    let changed = false;
    for (const tab of tabs) {
      const mine = this.#tabs.get(tab.tab);
      if (mine) changed = mine.watching !== tab.watching || changed;
      // Whether it answers is known here before the server has heard of the question.
      if (mine) Object.assign(mine, tab, { entries: mine.entries, answering: mine.answering });
    }
    for (const number of this.#tabs.keys()) if (!there.has(number)) this.#tabs.delete(number);
    if (!this.active && this.#tabs.size) this.show(this.all[0].tab);
    else if (changed) this.#drawTabs();
  }

  fork(from, tab) {
    this.open(tab, this.#tabs.get(from)?.entries ?? []);
  }

  close(number) {
    this.#tabs.delete(number);
    if (this.#active === number) this.show(this.all.at(-1).tab);
    else this.#drawTabs();
    document.querySelector("[role=tab][aria-selected=true]")?.focus();
  }

  clear(number) {
    const tab = this.#tabs.get(number);
    if (tab) tab.entries = [];
    if (number === this.#active) this.#draw();
  }

  // A question was taken in.
  asked({ tab: number, question, picture, kept }) {
    const tab = this.#tabs.get(number);
    if (!tab) return;
    tab.entries.push({ question, picture, kept, answer: "", finish: "", figures: {} });
    tab.answering = true;
    if (number === this.#active) this.#add(tab.entries.at(-1));
  }

  // More of the running answer of a tab, or its end; returns its entry.
  said(number, { text = "", figures = {}, finish = "" }) {
    const entry = this.#tabs.get(number)?.entries.at(-1);
    if (!entry) return null;
    entry.answer += text;
    entry.figures = figures;
    entry.finish = finish;
    if (finish) this.#tabs.get(number).answering = false;
    this.#unread.add(entry);
    return entry;
  }

  // Write what was said since the last time.
  redraw() {
    for (const entry of this.#unread) if (entry.element) fill(entry);
    if (this.#unread.size) this.#follow();
    this.#unread.clear();
  }

  // Whether a tab answers now.
  answering(number, now) {
    const tab = this.#tabs.get(number);
    if (tab) tab.answering = now;
  }

  // The last question is gone.
  drop(number) {
    const tab = this.#tabs.get(number);
    if (!tab?.entries.length || tab.entries.at(-1).note) return null;
    const entry = tab.entries.pop();
    tab.answering = false;
    if (number === this.#active) this.#draw();
    return entry;
  }

  // Show what the model can answer, or hide it; without a conversation it is always there.
  about(open = $("intro").hidden) {
    $("intro").hidden = !open && Boolean(this.active?.entries.length);
    $("about-button").setAttribute("aria-expanded", !$("intro").hidden);
    if (!$("intro").hidden) $("scroll").scrollTop = 0;
  }

  show(number) {
    this.#active = number;
    this.#drawTabs();
    this.#draw();
    this.#changed();
  }

  #drawTabs() {
    const buttons = this.all.map((tab) => {
      const button = document.createElement("button");
      const on = tab.tab === this.#active;
      Object.assign(button, { type: "button", id: `tab-${tab.tab}`, textContent: tab.name, tabIndex: on ? 0 : -1 });
      button.setAttribute("role", "tab");
      button.setAttribute("aria-selected", on);
      button.setAttribute("aria-controls", "panel");
      if (tab.watching !== "none") button.append(Object.assign(document.createElement("span"), { className: "note", textContent: " watching" }));
      button.addEventListener("click", () => this.show(tab.tab));
      return button;
    });
    const focused = $("tabs").contains(document.activeElement);
    $("tabs").replaceChildren(...buttons);
    $("panel").setAttribute("aria-labelledby", `tab-${this.#active}`);
    const selected = $(`tab-${this.#active}`);
    if (selected) $("tabs").scrollLeft = selected.offsetLeft - $("tabs").offsetLeft - 40;
    if (focused) selected?.focus();
  }

  #arrow(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const tabs = this.all;
    if (!step || tabs.length < 2) return;
    const here = tabs.findIndex((tab) => tab.tab === this.#active);
    this.show(tabs[(here + step + tabs.length) % tabs.length].tab);
    event.preventDefault();
  }

  #draw() {
    const entries = this.active.entries;
    $("history").replaceChildren();
    entries.forEach((entry) => this.#add(entry));
    this.about(entries.length === 0);
  }

  #add(entry) {
    this.about(false);
    $("history").append(entry.note ? noted(entry) : drawn(entry));
    this.#follow(true);
  }

  // Keep the end in sight, unless a person is reading further up. Where the window is narrow, the whole page scrolls.
  // By hand: scrollIntoView would move the place where the Tab key goes on from.
  #follow(always = false) {
    const box = $("scroll"), last = $("history").lastElementChild;
    if (!last) return;
    const own = getComputedStyle(box).overflowY !== "visible";
    const end = own ? box.getBoundingClientRect().bottom : innerHeight - $("form").offsetHeight;
    const hidden = last.getBoundingClientRect().bottom + 6 - end;
    if (hidden > 0 && (always || hidden < 200)) (own ? box : window).scrollBy(0, hidden);
  }
}

function make(tab) {
  return { ...tab, entries: tab.entries.map((entry) => ({ ...entry })) };
}

function forgotten(entry) {
  return entry.note ? entry : { ...entry, old: true, finish: entry.finish || "cancelled" };
}

function noted(entry) {
  const item = document.createElement("li");
  item.className = "divider";
  item.textContent = entry.note;
  return item;
}

function drawn(entry) {
  const item = document.createElement("li");
  item.className = entry.old ? "turn old" : "turn";
  if (entry.picture) {
    const image = new Image();
    image.src = entry.picture;
    image.alt = "The frame this was asked about";
    item.append(image);
  } else {
    item.append(Object.assign(document.createElement("span"), { className: "no-frame", textContent: "no frame" }));
  }
  const body = document.createElement("div");
  for (const name of ["question", "answer", "meta"]) {
    const line = document.createElement("p");
    line.className = name;
    body.append(line);
  }
  item.append(body);
  entry.element = item;
  fill(entry);
  return item;
}

function fill(entry) {
  const [question, answer, meta] = entry.element.querySelectorAll("p");
  question.textContent = entry.question;
  answer.textContent = entry.answer || (entry.finish ? "(no text)" : "");
  entry.element.classList.toggle("running", !entry.finish);
  const notes = [entry.figures.ttft_s === undefined ? "" : cost(entry.figures)];
  if (ENDS[entry.finish]) notes.push(ENDS[entry.finish]);
  if (!entry.kept) notes.push("asked while watching, not kept in the state");
  if (entry.old) notes.push("forgotten by the model");
  meta.textContent = notes.filter(Boolean).join(" · ") || (entry.finish ? "" : "reading the picture …");
}
