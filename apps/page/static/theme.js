// Light, dark, or as the system says. Runs before the page is drawn, so that it does not flash.
"use strict";
(() => {
  const names = ["system", "light", "dark"];
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("vrwkv-theme"); } catch { return null; } };
  const keep = (name) => { try { localStorage.setItem("vrwkv-theme", name); } catch { /* a private window */ } };

  const show = (name) => {
    if (name === "system") root.removeAttribute("data-theme"); else root.dataset.theme = name;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${name}`;
  };

  let current = names.includes(stored()) ? stored() : "system";
  show(current);
  addEventListener("DOMContentLoaded", () => {
    show(current);
    document.getElementById("theme").addEventListener("click", () => {
      current = names[(names.indexOf(current) + 1) % names.length];
      keep(current);
      show(current);
    });
  });
})();
