// The live figures, and numbers as people read them.

const $ = (id) => document.getElementById(id);

export function seconds(value) {
  if (value === undefined) return "–";
  return value < 1 ? `${Math.max(1, Math.round(value * 1000))} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function rate(value) {
  if (!value) return "–";
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

export function bytes(value) {
  if (value < 1 << 20) return `${Math.round(value / 1024)} KiB`;
  return value < 1 << 30 ? `${(value / (1 << 20)).toFixed(value < 10 << 20 ? 1 : 0)} MiB` : `${(value / (1 << 30)).toFixed(2)} GiB`;
}

export function count(value, noun) {
  return `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;
}

// One answer's cost on one line.
export function cost(figures) {
  const parts = [`${seconds(figures.ttft_s)} to the first token`];
  if (figures.tokens_per_s) parts.push(`${rate(figures.tokens_per_s)} tokens/s`);
  if (figures.tokens) parts.push(count(figures.tokens, "token"));
  return parts.join(" · ");
}

// `tab` is the one that is shown, `skipped` the frames that never left the browser.
export function showFigures({ memory, tab, skipped, figures }) {
  write("ttft", seconds(figures?.ttft_s));
  write("ttft-unit", figures ? "from asking" : "no answer yet");
  write("speed", rate(figures?.tokens_per_s));
  write("memory", memory ? bytes(memory) : "–");
  if (!tab) return;
  const dropped = tab.dropped + skipped;
  write("dropped", dropped.toLocaleString("en"));
  write("dropped-unit", `of ${count(tab.fed + tab.unchanged + dropped, "frame")}`);
  write("memory-unit", `tab ${bytes(tab.bytes)}`);
  write("age", tab.tokens.toLocaleString("en"));
  write("age-unit", `tokens, ${count(tab.pictures, "picture")}`);
}

function write(id, text) {
  const place = $(id);
  if (place.textContent !== text) place.textContent = text;
}
