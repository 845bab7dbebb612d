"use strict";
(() => {
  const byId = (name) => document.getElementById(name);
  const root = document.documentElement;

  byId("theme").addEventListener("click", () => {
    const scheme = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.style.colorScheme = scheme === "dark" ? "light" : "dark";
  });

  if (!byId("pictures")) return;
  const pictures = JSON.parse(byId("pictures").textContent);

  // Text goes in as text, never as HTML: names come from files.
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const image = (uri, className) => {
    const element = make("img", className);
    element.decoding = "async";
    element.alt = "";
    element.src = uri;
    return element;
  };

  const view = (picture, [title, uri, over, smooth]) => {
    const button = make("button", "view");
    button.type = "button";
    button.style.aspectRatio = picture.aspect;
    button.setAttribute("aria-label", `${title} of ${picture.id}`);
    const photo = picture.panels[0];
    if (over !== null && photo[2] === null) button.append(image(photo[1], "under"));
    const top = image(uri, smooth ? "" : "hard");
    if (over !== null) top.style.opacity = over;
    button.append(top);
    return button;
  };

  const figure = (picture, panel, caption, open) => {
    const element = make("figure");
    const button = view(picture, panel);
    button.addEventListener("click", open);
    element.append(button, make("figcaption", "", caption));
    return element;
  };

  const chooser = (shown, [, uri, , , choices]) => {
    const row = make("div", "choices");
    for (const [name, address] of [["all", uri], ...choices]) {
      const button = make("button", "", name);
      button.type = "button";
      const press = () => {
        shown.src = address;
        for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
      };
      button.setAttribute("aria-pressed", String(address === uri));
      button.addEventListener("click", press);
      row.append(button);
    }
    return row;
  };

  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const facts = (picture) => {
    const found = [];
    if (picture.iou !== null) found.push(`IoU ${percent(picture.iou)}`);
    if (picture.score !== null) found.push(`score ${picture.score.toFixed(2)}`);
    return found;
  };

  // Pictures are made when their card comes near the window, so that thousands of cards open at once.
  const fillers = new WeakMap();
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      fillers.get(entry.target)();
    }
  }, { rootMargin: "800px" });
  const later = (element, fill) => { fillers.set(element, fill); near.observe(element); };

  const cards = pictures.map((picture, place) => {
    const card = make("article", "card");
    const title = make("h3", "", picture.id);
    title.append(make("span", "soft", picture.classes.join(", ")));
    for (const fact of facts(picture)) title.append(make("span", "soft", fact));
    for (const sign of picture.signs) title.append(make("span", "sign", sign));
    const panels = make("div", "panels");
    card.append(title, panels);
    later(card, () => panels.append(...picture.panels.map(
      (panel, number) => figure(picture, panel, panel[0], () => show(place, number)))));
    return card;
  });

  const gallery = byId("gallery"), search = byId("search"), classes = byId("class"), order = byId("order");
  const suspicious = byId("suspicious"), count = byId("count");
  // Where some pictures have truth, those without cannot be compared with them and come last.
  const byTruth = pictures.some((picture) => picture.iou !== null);
  const judged = (a, b) => byTruth ? (pictures[a].iou === null) - (pictures[b].iou === null) : 0;
  const ranks = (a, b) => pictures[a].rank[0] - pictures[b].rank[0] || pictures[a].rank[1] - pictures[b].rank[1];
  const orders = {
    list: (a, b) => a - b,
    id: (a, b) => (pictures[a].id < pictures[b].id ? -1 : 1),
    worst: (a, b) => judged(a, b) || ranks(a, b) || a - b,
    best: (a, b) => judged(a, b) || ranks(b, a) || a - b,
  };
  let shown = [];
  const apply = () => {
    const text = search.value.trim().toLowerCase();
    shown = pictures.map((_, place) => place).filter((place) => {
      const picture = pictures[place];
      return picture.id.toLowerCase().includes(text) && (!classes.value || picture.classes.includes(classes.value)) &&
        (!suspicious.checked || picture.signs.length > 0);
    }).sort(orders[order.value]);
    gallery.replaceChildren(...shown.map((place) => cards[place]));
    count.textContent = `${shown.length} of ${pictures.length} images`;
  };
  const reset = () => { search.value = ""; classes.value = ""; suspicious.checked = false; apply(); };
  for (const button of document.querySelectorAll("#chosen button")) {
    const place = Number(button.dataset.place);
    const number = pictures[place].panels.findIndex((panel) => panel[0] === button.dataset.panel);
    button.addEventListener("click", () => { reset(); show(place, number); });
  }
  search.addEventListener("input", apply);
  for (const control of [classes, order, suspicious]) control.addEventListener("change", apply);

  const dialog = byId("lightbox"), large = byId("large"), strip = byId("strip");
  let current = 0, panel = 0;
  const show = (place, number) => {
    const picture = pictures[place];
    if (!picture.panels.length) return;
    current = place;
    panel = Math.min(number, picture.panels.length - 1);
    byId("name").textContent = picture.id;
    const chosen = view(picture, picture.panels[panel]);
    chosen.disabled = true;
    chosen.style.maxWidth = `calc(68vh * ${picture.aspect})`;
    const element = make("figure");
    element.append(chosen, make("figcaption", "", picture.panels[panel][0]));
    const drawn = picture.panels[panel];
    if (drawn[4].length) element.append(chooser(chosen.lastChild, drawn));
    large.replaceChildren(element);
    strip.replaceChildren(...picture.panels.map((one, index) => {
      const small = figure(picture, one, one[0], () => show(place, index));
      small.firstChild.setAttribute("aria-pressed", String(index === panel));
      return small;
    }));
    const found = picture.instances.map(([name, score]) => `${name} ${score.toFixed(2)}`);
    byId("facts").textContent = [picture.classes.join(", "), ...facts(picture), ...picture.signs,
      found.length ? `instances: ${found.join(", ")}` : ""].filter(Boolean).join(" · ");
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const place = shown.indexOf(current) + by;
    if (place >= 0 && place < shown.length) show(shown[place], panel);
  };
  const turn = (by) => show(current, (panel + by + pictures[current].panels.length) % pictures[current].panels.length);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => turn(-1), ArrowDown: () => turn(1) };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
  apply();
})();
