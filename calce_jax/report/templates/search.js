"use strict";
{
  const video = document.querySelector(".watch video");
  const still = document.querySelector(".still");
  const cards = [...document.querySelectorAll(".video")].map((element) => ({
    name: element.dataset.name,
    address: element.dataset.address,
    playheads: [...element.querySelectorAll(".playhead")],
    strips: [...element.querySelectorAll(".strip")],
    frames: [...element.querySelector(".strip").children],
    duration: Number(element.dataset.duration),
    playable: true,
  }));
  let current = cards[0];
  let until = Infinity;
  let stillAt = 0;

  const frameAt = (card, second) =>
    card.frames.findLast((item) => Number(item.dataset.second) <= second) ?? card.frames[0];
  // Of a video whose pictures could not be made there is none.
  const picture = (frame) => (frame ? getComputedStyle(frame.firstElementChild).backgroundImage : "none");
  const setPoster = (card, second) => {
    const url = picture(frameAt(card, second));
    if (url === "none") video.removeAttribute("poster");
    else video.poster = url.slice(5, -2);  // what stands between url(" and ")
  };

  // As calce_jax/moments/player_time.py writes and reads times.
  function format(second) {
    const tenths = Math.round(second * 10);
    const minutes = Math.floor(tenths / 600);
    const two = (number) => String(number).padStart(2, "0");
    const clock = `${two(minutes % 60)}:${two(Math.floor((tenths % 600) / 10))}.${tenths % 10}`;
    return minutes >= 60 ? `${Math.floor(minutes / 60)}:${clock}` : clock;
  }
  function parse(text) {
    const match = /^(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:[.,]\d+)?)$/.exec(text.trim());
    if (!match) return NaN;
    return Number(match[1] ?? 0) * 3600 + Number(match[2] ?? 0) * 60 + Number(match[3].replace(",", "."));
  }

  const now = () => (current.playable ? video.currentTime : stillAt);
  function mark(second) {
    document.querySelector("#now-time").textContent = format(second);
    for (const playhead of current.playheads) {
      playhead.hidden = false;
      playhead.style.left = `${Math.min(100, (100 * second) / current.duration)}%`;
    }
  }

  function show(second) {
    stillAt = second;
    still.style.backgroundImage = picture(frameAt(current, second));
    mark(second);
  }

  function showPlayable() {
    video.hidden = !current.playable;
    still.hidden = current.playable;
    document.querySelector(".unplayable").hidden = current.playable;
  }

  function select(card) {
    if (card === current) return;
    current = card;
    document.querySelector("#now-file").textContent = card.name;
    if (card.playable) video.src = card.address;
    else video.pause();
    showPlayable();
  }

  function go(card, start, end = Infinity, play = true) {
    select(card);
    until = end;
    setPoster(card, start);
    if (card.playable) {
      video.currentTime = start;
      if (play) video.play().catch(() => {});
      mark(start);
    } else {
      show(start);
    }
  }

  const first = document.querySelector(".row .moment");
  setPoster(cards[0], first?.dataset.card === "0" ? Number(first.dataset.start) : 0);
  function refuse() {
    current.playable = false;
    showPlayable();
    show(stillAt);
  }
  video.addEventListener("error", refuse);
  // The error may have come before this script.
  if (video.error) refuse();
  video.addEventListener("seeked", () => mark(video.currentTime));
  video.addEventListener("timeupdate", () => {
    mark(video.currentTime);
    if (video.currentTime < until) return;
    until = Infinity;
    video.pause();
  });
  for (const card of cards) {
    for (const strip of card.strips) {
      strip.addEventListener("click", (event) => {
        const place = strip.getBoundingClientRect();
        go(card, (card.duration * (event.clientX - place.left)) / place.width, Infinity, false);
      });
    }
  }

  // The kept moments, with the times that the reader has set.
  const rows = [...document.querySelectorAll(".row")];
  const message = document.querySelector("#message");
  function setTimes(row, start, end) {
    const button = row.querySelector(".moment");
    const isTime = start >= 0 && end > start && end <= cards[Number(button.dataset.card)].duration + 0.05;
    if (isTime) {
      button.dataset.start = start;
      button.dataset.end = end;
    }
    row.querySelector(".start").value = format(Number(button.dataset.start));
    row.querySelector(".end").value = format(Number(button.dataset.end));
    message.textContent = isTime ? "" : "a moment begins before it ends, within its video: m:ss.s";
  }
  const timesOf = (row) => {
    const { start, end } = row.querySelector(".moment").dataset;
    return [Number(start), Number(end)];
  };
  for (const row of rows) {
    for (const input of row.querySelectorAll(".start, .end")) {
      const isStart = input.classList.contains("start");
      const set = (second) => {
        const [start, end] = timesOf(row);
        setTimes(row, isStart ? second : start, isStart ? end : second);
      };
      input.addEventListener("change", () => set(parse(input.value)));
      input.addEventListener("keydown", (event) => {
        const step = { ArrowUp: 0.1, ArrowDown: -0.1 }[event.key];
        if (!step) return;
        event.preventDefault();
        set(timesOf(row)[isStart ? 0 : 1] + step * (event.shiftKey ? 10 : 1));
      });
    }
    row.querySelector(".keep").addEventListener("change", (event) => {
      row.classList.toggle("dropped-row", !event.target.checked);
    });
    row.querySelector(".copy").addEventListener("click", async (event) => {
      const text = timesOf(row).map(format).join(" - ");
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // a page that was opened as a file, in some browsers
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      event.target.textContent = "copied";
      setTimeout(() => { event.target.textContent = "copy"; }, 1200);
    });
  }

  const kept = () => rows.filter((row) => row.querySelector(".keep").checked).map((row) => {
    const [start, end] = timesOf(row);
    const { query, video: file, score } = row.dataset;
    return { query, video: file, start: Number(start.toFixed(2)), end: Number(end.toFixed(2)), score: Number(score) };
  });
  // A text that begins like this is a formula to a spreadsheet.
  const cell = (value) => `"${String(value).replace(/^[=+\-@\t]/, "'$&").replaceAll('"', '""')}"`;
  const writers = {
    json: (moments) => JSON.stringify(moments, null, 2) + "\n",
    csv: (moments) => [
      "query,video,start,end,start_time,end_time,score",
      ...moments.map((m) => [cell(m.query), cell(m.video), m.start, m.end, format(m.start), format(m.end), m.score].join(",")),
    ].join("\n") + "\n",
  };
  document.querySelector(".exports").hidden = rows.length === 0;
  document.querySelector(".exports").addEventListener("click", (event) => {
    const kind = event.target.dataset.format;
    if (!kind) return;
    const moments = kept();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([writers[kind](moments)], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = `moments.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    message.textContent = `${moments.length} of ${rows.length} moments saved`;
  });

  // In the order of the page: the ranking first, then every timeline.
  const moments = [...document.querySelectorAll(".moment, .result")];
  function choose(button) {
    document.querySelector(".at")?.classList.remove("at");
    button.classList.add("at");
    go(cards[Number(button.dataset.card)], Number(button.dataset.start), Number(button.dataset.end));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-start]");
    if (button) choose(button);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const key = event.key.toLowerCase();
    const visible = moments.filter((button) => button.offsetParent);
    const step = { j: 1, k: -1 }[key];
    const row = document.querySelector(".at")?.closest(".row");
    if (step && visible.length) {
      const at = visible.indexOf(document.querySelector(".at"));
      const next = visible[(Math.max(at, step < 0 ? 0 : -1) + step + visible.length) % visible.length];
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest" });
      choose(next);
    } else if (key === "p") {
      if (video.paused) video.play().catch(() => {});
      else video.pause();
    } else if (row && (key === "i" || key === "o")) {
      const [start, end] = timesOf(row);
      setTimes(row, key === "i" ? now() : start, key === "o" ? now() : end);
      until = timesOf(row)[1];
    } else {
      return;
    }
    event.preventDefault();
  });
}
