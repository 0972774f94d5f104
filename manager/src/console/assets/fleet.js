// The console's script: the theme, times that go on, and parts of the page that the hub sends again when they change.
"use strict";
{
  const root = document.documentElement;
  const themes = { light: "dark", dark: "light" };
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  if (themes[stored()]) root.dataset.theme = stored();

  // How far this machine's clock is from the hub's, whose times the page shows.
  let ahead = 0;

  const span = (s) => s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min`
    : s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;

  function age(time, now) {
    const ms = now - Number(time.dataset.ms);
    const words = span(Math.floor(Math.abs(ms) / 1000));
    const text = ms <= -1000 ? `in ${words}` : ms < 1000 ? "now" : `${words} ago`;
    if (time.textContent !== text) time.textContent = text;
    // What happened at a site is told by its clocks first.
    const here = new Date(Number(time.dataset.ms)).toLocaleString();
    const title = time.dataset.there ? `${time.dataset.there}, ${here} here` : here;
    if (time.title !== title) time.title = title;
  }

  function ages(within) {
    const now = Date.now() - ahead;
    within.querySelectorAll("time[data-ms]").forEach((time) => age(time, now));
    // The ends of a chart: in the time of whoever looks, where the site has no clocks of its own.
    within.querySelectorAll("time[data-at]").forEach((time) => {
      const text = new Date(Number(time.dataset.at)).toLocaleString();
      if (time.textContent !== text) time.textContent = text;
    });
  }

  // Makes one element like another, and leaves alone what is alike: focus, scrolling and opened details stay.
  function morph(from, to) {
    for (const { name, value } of [...to.attributes]) {
      if (from.getAttribute(name) !== value && !(from.matches("details") && name === "open")) from.setAttribute(name, value);
    }
    for (const { name } of [...from.attributes]) {
      const kept = from.matches("details") && name === "open" || from.matches("time") && name === "title";
      if (!to.hasAttribute(name) && !kept) from.removeAttribute(name);
    }
    // What the script itself writes is left to it.
    if (from.matches("time[data-ms], time[data-at]")) return;
    fill(from, to);
  }

  function fill(from, to) {
    const named = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
    let at = from.firstChild;
    for (const want of [...to.childNodes]) {
      let have = want.id && named.get(want.id) || at;
      if (have && have !== at) from.insertBefore(have, at);
      const alike = have && have.nodeType === want.nodeType && have.nodeName === want.nodeName
        && (have.id || "") === (want.id || "");
      if (!alike) {
        from.insertBefore(want, have === at ? at : have);
        continue;
      }
      if (have.nodeType === Node.ELEMENT_NODE) morph(have, want);
      else if (have.data !== want.data) have.data = want.data;
      at = have.nextSibling;
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  function put(id, html) {
    const element = document.getElementById(id);
    if (!element) return;
    const like = element.cloneNode(false);
    like.innerHTML = html;
    const before = element.tagName === "TR" && element.querySelector(".state")?.textContent;
    fill(element, like);
    ages(element);
    if (before && before !== element.querySelector(".state")?.textContent) {
      element.classList.remove("fresh");
      void element.offsetWidth;
      element.classList.add("fresh");
    }
  }

  function live(url) {
    const pulse = document.getElementById("pulse");
    let source = null;
    const tell = (state, text) => {
      pulse.dataset.state = state;
      const word = pulse.firstElementChild;
      if (word.textContent !== text) word.textContent = text;
    };
    const notice = (text) => {
      const place = document.getElementById("notice");
      place.textContent = text;
      place.hidden = !text;
    };
    const close = () => { source?.close(); source = null; };
    function open() {
      if (source) return;
      source = new EventSource(url);
      source.onopen = () => { tell("on", "live"); notice(""); };
      source.onerror = () => {
        tell("lost", "not live");
        // Closed for good: refused. Otherwise the browser tries again by itself.
        if (source?.readyState === EventSource.CLOSED) {
          close();
          setTimeout(() => document.hidden || open(), 5000);
        }
      };
      source.addEventListener("put", (message) => {
        for (const [id, html] of JSON.parse(message.data)) put(id, html);
      });
      source.addEventListener("over", () => {
        close();
        tell("lost", "logged out");
        notice("Your session is over: load the page again to log in.");
      });
      source.addEventListener("gone", (message) => {
        close();
        tell("lost", "not live");
        notice(message.data);
      });
    }
    // A browser opens six connections to a host: pages that nobody sees leave theirs to others.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { close(); tell("off", "paused"); } else open();
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", () => document.hidden || open());
    open();
  }

  function theme() {
    const button = document.getElementById("theme");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.theme = themes[root.dataset.theme || dark];
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* It lasts as long as the page. */ }
    });
  }

  // "/" goes to the search, as elsewhere.
  function keys() {
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, textarea, select");
      const search = document.querySelector("input[type=search]");
      if (event.key !== "/" || typing || !search || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      search.focus();
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    keys();
    const { now, live: url } = document.body.dataset;
    if (now) ahead = Date.now() - Number(now);
    ages(document);
    setInterval(() => ages(document), 1000);
    if (url) live(url);
  });
}
