"use strict";
{
  const cards = [...document.querySelectorAll(".video")].map((element) => ({
    element,
    video: element.querySelector("video"),
    still: element.querySelector(".still"),
    playheads: [...element.querySelectorAll(".playhead")],
    frames: [...element.querySelector(".strip").children],
    duration: Number(element.dataset.duration),
    playable: true,
    until: Infinity,
  }));
  let current = cards[0];

  function mark(card, second) {
    for (const playhead of card.playheads) {
      playhead.hidden = false;
      playhead.style.left = `${Math.min(100, (100 * second) / card.duration)}%`;
    }
  }

  const picture = (frame) => getComputedStyle(frame.firstElementChild).backgroundImage;

  function show(card, second) {
    const frame = card.frames.findLast((item) => Number(item.dataset.second) <= second) ?? card.frames[0];
    card.still.style.backgroundImage = picture(frame);
    mark(card, second);
  }

  function go(card, start, end = Infinity, play = true) {
    for (const other of cards) if (other !== card) other.video.pause();
    current = card;
    card.until = end;
    if (card.playable) {
      card.video.currentTime = start;
      if (play) card.video.play().catch(() => {});
    } else {
      show(card, start);
    }
  }

  for (const card of cards) {
    const { video } = card;
    video.poster = picture(card.frames[0]).slice(5, -2);  // what stands between url(" and ")
    video.addEventListener("error", () => {
      card.playable = false;
      video.hidden = true;
      card.still.hidden = false;
      card.element.querySelector(".unplayable").hidden = false;
      show(card, 0);
    });
    // The error may have come before this script.
    if (video.error) video.dispatchEvent(new Event("error"));
    video.addEventListener("play", () => { current = card; });
    video.addEventListener("seeked", () => mark(card, video.currentTime));
    video.addEventListener("timeupdate", () => {
      mark(card, video.currentTime);
      if (video.currentTime < card.until) return;
      card.until = Infinity;
      video.pause();
    });
    for (const strip of card.element.querySelectorAll(".strip")) {
      strip.addEventListener("click", (event) => {
        const place = strip.getBoundingClientRect();
        go(card, (card.duration * (event.clientX - place.left)) / place.width, Infinity, false);
      });
    }
  }

  // In the order of the page: the ranking first, then every timeline.
  const moments = [...document.querySelectorAll(".moment, .result")];
  function choose(button) {
    document.querySelector(".at")?.classList.remove("at");
    button.classList.add("at");
    const card = cards[Number(button.dataset.card)];
    if (button.matches(".moment")) card.element.scrollIntoView({ block: "start" });
    go(card, Number(button.dataset.start), Number(button.dataset.end));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-start]");
    if (button) choose(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const step = { j: 1, k: -1 }[event.key.toLowerCase()];
    if (step && moments.length) {
      const at = moments.indexOf(document.querySelector(".at"));
      const next = moments[(Math.max(at, step < 0 ? 0 : -1) + step + moments.length) % moments.length];
      next.focus({ preventScroll: true });
      choose(next);
    } else if (event.key.toLowerCase() === "p") {
      if (current.video.paused) current.video.play().catch(() => {});
      else current.video.pause();
    } else {
      return;
    }
    event.preventDefault();
  });
}
