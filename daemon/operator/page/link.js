// The link to recald: asks /status.json every 2 s, says how old what is shown is, and says that recald is lost once it is.

const POLL_MS = 2000;
const MAX_WAIT_MS = 30000; // between two tries while recald does not answer
const REQUEST_TIMEOUT_MS = 5000;
const LOST_FAILURES = 3; // in a row: one refused request is no loss
const LOST_MS = 10000; // without an answer; a request that hangs fails late
const TICK_MS = 1000;
const ASLEEP_MS = 5000; // without a tick: the tablet slept, and recald was not asked

let page = null; // what is told: show(document), unchanged(), forget(), lost(note), slept(), answered(at)
let etag = "";
let newest = -1; // number of the newest point that came
let start = ""; // of the daemon: changes with a restart
let failures = 0;
let lastAnswer = 0; // time of the last answer, ms; 0: none came
let began = Date.now(); // time since when recald is asked without a break
let lastTick = began;
let nextTry = 0; // time, ms; 0 while an answer is waited for
let timer = 0;

export const clock = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

// A span of time in words, rounded down.
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
}

export function watch(told) {
  page = told;
  document.addEventListener("visibilitychange", onVisibility);
  window.addEventListener("online", poll);
  setInterval(tick, TICK_MS);
  poll();
}

async function poll() {
  clearTimeout(timer);
  nextTry = 0;
  let wait = POLL_MS;
  try {
    await ask();
    failures = 0;
    lastAnswer = Date.now();
  } catch (error) {
    failures += 1;
    wait = Math.min(POLL_MS * 2 ** Math.max(0, failures - LOST_FAILURES), MAX_WAIT_MS);
  }
  if (document.hidden) return;
  clearTimeout(timer); // another poll may have ended meanwhile
  nextTry = Date.now() + wait;
  timer = setTimeout(poll, wait);
  tell();
}

async function ask() {
  const after = newest >= 0 ? `?after=${newest - 1}` : ""; // the newest point may have risen
  const response = await fetch(`status.json${after}`, {
    cache: "no-store",
    headers: etag ? { "If-None-Match": etag } : {},
    signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
  });
  if (response.status === 304) return page.unchanged();
  if (!response.ok) throw new Error(`status ${response.status}`);
  const answer = await response.json();
  if (start && answer.start !== start) return startOver();
  start = answer.start;
  etag = response.headers.get("ETag") || "";
  newest = answer.newest;
  page.show(answer);
}

// After a restart of recald the points have other numbers.
function startOver() {
  etag = "";
  newest = -1;
  start = "";
  page.forget();
  return ask();
}

function onVisibility() {
  if (!document.hidden) {
    resume();
    return poll();
  }
  clearTimeout(timer);
  setLink("paused", "paused");
}

// What is shown is from before the break, until the next answer.
function resume() {
  began = Date.now();
  failures = 0;
  setLink("late", silenceNote(began));
  page.slept();
}

function tick() {
  if (document.hidden) return;
  if (Date.now() - lastTick > ASLEEP_MS) resume();
  lastTick = Date.now();
  tell();
}

function tell() {
  const now = Date.now();
  const silence = now - Math.max(lastAnswer, began);
  const isLost = failures >= LOST_FAILURES || silence > LOST_MS;
  if (isLost) page.lost(lossNote(now));
  if (failures || silence > LOST_MS) setLink(isLost ? "lost" : "late", silenceNote(now));
  else if (lastAnswer >= began) setLink("live", `live, ${clock(new Date(lastAnswer))}`);
  if (lastAnswer >= began && !isLost) page.answered(lastAnswer);
}

const silenceNote = (now) => `no answer for ${span(now - (lastAnswer || began))}`;

function lossNote(now) {
  const old = lastAnswer ? `What is below is ${span(now - lastAnswer)} old, from ${clock(new Date(lastAnswer))}. ` : "";
  return `${old}${nextTry > now ? `Next try in ${Math.ceil((nextTry - now) / 1000)} s.` : "Trying again."}`;
}

function setLink(link, text) {
  document.getElementById("link").dataset.link = link;
  document.getElementById("link-text").textContent = text;
}
