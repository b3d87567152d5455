"use strict";
{
  const list = document.getElementById("queries");
  const cards = [...list.children];
  const form = document.getElementById("filters");

  const orders = {
    "number": (a, b) => a.dataset.number - b.dataset.number,
    "iou": (a, b) => a.dataset.iou - b.dataset.iou,
    "-iou": (a, b) => b.dataset.iou - a.dataset.iou,
    "kind": (a, b) => a.dataset.kind.localeCompare(b.dataset.kind),
  };

  function refresh() {
    const wanted = Object.fromEntries(new FormData(form));
    const [low, high] = (wanted.iou ?? "0,2").split(",").map(Number);
    const words = wanted.words.trim().toLowerCase().split(/\s+/);
    let shown = 0;
    for (const card of cards) {
      const { kind, iou } = card.dataset;
      const text = card.querySelector("h2").textContent.toLowerCase();
      card.hidden = Boolean(wanted.kind && kind !== wanted.kind)
        || (iou === "" ? wanted.iou !== "0,2" && wanted.iou !== undefined : Number(iou) < low || Number(iou) >= high)
        || !words.every((word) => text.includes(word));
      shown += !card.hidden;
    }
    list.append(...[...cards].sort((a, b) => orders[wanted.sort](a, b) || orders.number(a, b)));
    form.elements.count.value = shown === cards.length ? `${shown} queries` : `${shown} of ${cards.length} queries`;
    document.getElementById("empty").hidden = shown > 0;
  }
  if (form) {
    form.addEventListener("input", refresh);
    form.addEventListener("submit", (event) => event.preventDefault());
    refresh();
  }

  // A frame in a long strip is a sliver; the lens shows it whole.
  const lens = document.getElementById("lens");
  let current = null;
  function look(frame) {
    current?.classList.remove("at");
    current = frame;
    lens.hidden = !frame;
    if (!frame) return;
    frame.classList.add("at");
    lens.firstElementChild.className = frame.dataset.image;
    lens.lastElementChild.textContent = frame.dataset.words;
    const place = frame.getBoundingClientRect();
    const left = place.left + place.width / 2 - lens.offsetWidth / 2;
    const above = place.top - lens.offsetHeight - 8;
    lens.style.left = `${Math.max(8, Math.min(left, innerWidth - lens.offsetWidth - 8))}px`;
    lens.style.top = `${above > 8 ? above : place.bottom + 8}px`;
  }
  for (const strip of document.querySelectorAll(".strip")) {
    strip.addEventListener("pointermove", (event) => look(event.target.closest(".frame") ?? current));
    strip.addEventListener("pointerleave", () => look(null));
    strip.addEventListener("focus", () => strip.matches(":focus-visible") && look(strip.firstElementChild));
    strip.addEventListener("blur", () => look(null));
    strip.addEventListener("keydown", (event) => {
      const here = current?.parentElement === strip ? current : strip.firstElementChild;
      const next = {
        ArrowLeft: here.previousElementSibling ?? here,
        ArrowRight: here.nextElementSibling ?? here,
        Home: strip.firstElementChild,
        End: strip.lastElementChild,
        Escape: null,
      };
      if (!(event.key in next)) return;
      event.preventDefault();
      look(next[event.key]);
      strip.setAttribute("aria-description", next[event.key]?.dataset.words ?? "");
    });
  }
  addEventListener("scroll", () => look(null), { passive: true });

  // A video is in the page once, and is unpacked when somebody wants to see it. Not every browser seeks in data: URIs.
  const videos = JSON.parse(document.getElementById("videos").textContent);
  const unpacked = new Map();
  async function source(number) {
    const packed = videos[number];
    if (!packed.startsWith("data:")) return packed;
    if (!unpacked.has(number)) unpacked.set(number, fetch(packed).then((answer) => answer.blob()).then(URL.createObjectURL));
    return unpacked.get(number);
  }
  for (const card of cards) {
    const video = card.querySelector("video");
    if (!video) continue;
    card.classList.add("seekable");
    const player = video.parentElement;
    const playhead = card.querySelector(".playhead");
    async function open() {
      player.open = true;
      if (!video.src) video.src = await source(video.dataset.video);
    }
    player.addEventListener("toggle", () => (player.open ? open() : video.pause()));
    video.addEventListener("timeupdate", () => {
      playhead.hidden = false;
      playhead.style.left = `${Math.min(100, (100 * video.currentTime) / card.dataset.duration)}%`;
    });
    card.addEventListener("click", async (event) => {
      const start = event.target.closest("[data-start]")?.dataset.start;
      if (start === undefined) return;
      await open();
      video.currentTime = Number(start);
      video.play();
    });
  }
}
