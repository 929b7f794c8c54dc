// The page on the device: places what /status.json says. Every text is set as text, never as HTML.
import { SVG, drawChart, number } from "./chart.js";
import { clock, span, watch } from "./link.js";

const NOW_MS = 3000; // a younger frame is of now: the page asks every 2 s
const MANY = 4; // more cameras than that: those that are well show their drift alone, until somebody opens them
const CALM = ["good", "idle"]; // tones
const SMALL_PX = 160; // a smaller frame is shown pixel by pixel
const NOTHING_SERVES = "No homogenizer serves: the model gets the frame as received.";

const byId = (id) => document.getElementById(id);
const cards = new Map(); // by sensor id
let shown = null; // the newest document
let came = 0; // when it came, ms

// ---- placing

function show(answer) {
  document.body.classList.remove("lost");
  if (answer !== shown) came = Date.now();
  shown = answer;
  setHeadline(answer.headline.tone, answer.headline.text, "");
  const recald = answer.recald;
  const backend = recald.compiling ? `${recald.backend} until ${recald.compiling} has compiled it` : recald.backend;
  byId("device").textContent = `${recald.version}, model ${recald.model}, ${backend}, mode ${recald.mode}`;
  setText(byId("strangers"), recald.strangers);
  showChips(answer.sensors);
  answer.sensors.forEach((sensor) => showSensor(sensor, answer));
  arrange(answer.sensors);
  showDecisions(answer.decisions);
}

// Nothing has changed since the last answer.
function unchanged() {
  if (document.body.classList.contains("lost")) show(shown);
}

// recald was started anew.
function forget() {
  for (const card of cards.values()) card.points.clear();
}

function showLoss(note) {
  document.body.classList.add("lost");
  setHeadline("bad", "recald does not answer", note);
  forgetAges();
}

function forgetAges() {
  for (const card of cards.values()) setAge(card, "newest frame: not known", false);
}

// Ages are those of the last answer, at this time: of what came since nothing is known.
function showAges(at) {
  if (!shown) return;
  for (const sensor of shown.sensors) {
    const age = sensor.frame_age_s === null ? null : 1000 * sensor.frame_age_s + Math.max(0, at - came);
    const text = age === null ? "no frame yet" : age < NOW_MS ? "newest frame: now" : `newest frame: ${span(age)} ago`;
    setAge(cards.get(sensor.id), text, sensor.silent);
  }
}

function setAge(card, text, silent) {
  if (card.age.textContent !== text) card.age.textContent = text;
  card.age.classList.toggle("silent", silent);
}

// Of many cameras those that need a look come first. Nothing moves unless one of them begins or ends to need it.
function arrange(sensors) {
  const calm = (sensor) => sensors.length > MANY && CALM.includes(sensor.tone);
  const wanted = [...sensors.filter((one) => !calm(one)), ...sensors.filter(calm)].map((one) => cards.get(one.id).root);
  if (wanted.some((root, place) => byId("sensors").children[place] !== root)) byId("sensors").append(...wanted);
}

function setHeadline(tone, text, note) {
  byId("headline").dataset.tone = tone;
  const place = byId("headline-text");
  if (place.textContent !== text) place.textContent = text; // else a screen reader would say it every 2 s
  setText(byId("headline-note"), note);
  document.title = `${text} - recald`;
}

function showChips(sensors) {
  const place = byId("chips");
  place.hidden = sensors.length < 3;
  place.replaceChildren(
    ...sensors.map((sensor) => {
      const chip = make("a", "", sensor.id);
      chip.href = `#sensor-${sensor.id}`;
      chip.dataset.tone = sensor.tone;
      chip.append(make("em", "", sensor.standing));
      return chip;
    }),
  );
}

function makeCard(sensor) {
  const card = { points: new Map(), mark: "" };
  card.root = make("article", "card");
  card.root.id = `sensor-${sensor.id}`;
  const header = make("header");
  card.badge = make("p", "badge");
  card.age = make("p", "age");
  header.append(make("h2", "", sensor.id), card.age, card.badge);
  card.sentence = make("p", "sentence");
  card.why = make("p", "why");
  card.progress = make("div", "progress");
  card.progress.setAttribute("role", "progressbar");
  card.progress.setAttribute("aria-label", `${sensor.id}: share of this state that is done`);
  card.progress.append(make("div"));
  card.found = make("div", "found");
  card.found.append(make("h3", "", "What happened to the camera"), make("ul"));
  card.chart = makeChart(card);
  card.figures = make("dl", "figures");
  card.frames = make("div", "frames");
  card.more = make("details", "more");
  card.more.append(make("summary", "", "More, as recald status says it"), make("ul"));
  card.more.addEventListener("toggle", () => card.root.classList.toggle("brief", isBrief(card)));
  card.root.append(header, card.sentence, card.why, card.progress, card.found, card.chart, card.figures, card.frames, card.more);
  byId("sensors").append(card.root);
  cards.set(sensor.id, card);
  return card;
}

function makeChart(card) {
  const chart = make("section", "chart");
  const caption = make("div", "caption");
  card.chartTitle = make("h3");
  card.legend = make("p", "legend");
  card.legend.append(make("span", "", "as served"), make("span", "raw", "without homogenizer"));
  caption.append(card.chartTitle, card.legend);
  card.svg = document.createElementNS(SVG, "svg");
  card.svg.setAttribute("role", "img");
  chart.append(caption, card.svg);
  return chart;
}

function showSensor(sensor, answer) {
  const card = cards.get(sensor.id) || makeCard(sensor);
  card.root.dataset.tone = sensor.tone;
  card.many = answer.sensors.length > MANY;
  card.root.classList.toggle("brief", isBrief(card));
  card.badge.textContent = sensor.standing;
  card.sentence.replaceChildren(sensor.sentence, make("span", "state", sensor.state));
  card.why.replaceChildren(...withCommands(sensor.reason));
  card.why.hidden = !sensor.reason;
  showProgress(card.progress, sensor.progress);
  card.found.hidden = !sensor.drifted.length;
  card.found.lastChild.replaceChildren(...sensor.drifted.map((text) => make("li", "", text)));
  for (const point of sensor.points) card.points.set(point[0], point);
  const oldest = answer.newest - 3600 / answer.point_s;
  for (const number of card.points.keys()) if (number <= oldest) card.points.delete(number);
  card.chart.hidden = !card.points.size;
  card.scale = { newest: answer.newest, point: answer.point_s, began: answer.began_point, since: new Date(answer.began) };
  drawChart(card, sensor);
  card.figures.replaceChildren(...figures(sensor));
  showFrames(card, sensor);
  card.more.lastChild.replaceChildren(...sensor.notes.map(note));
}

function isBrief(card) {
  return card.many && CALM.includes(card.root.dataset.tone) && !card.more.open;
}

function showProgress(bar, share) {
  bar.hidden = !(share > 0 && share < 1);
  bar.firstChild.style.width = `${Math.round(share * 100)}%`;
  bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
}

function figures(sensor) {
  const parts = [];
  const drift = sensor.drift;
  if (drift) {
    const value = make("dd", drift.value > drift.line ? "over" : "", number(drift.value));
    const towards = sensor.evidence ? `; evidence ${percent(sensor.evidence)} of an alarm` : "";
    const evidence = sensor.alarm ? "; drift alarm" : towards;
    parts.push(figure("Drift now", value, `${drift.quantity}, line ${+drift.line.toFixed(2)}${evidence}`));
  } else {
    parts.push(figure("Drift now", make("dd", "", "unknown"), "no drift check"));
  }
  if (sensor.accuracy) parts.push(accuracy(sensor.accuracy));
  parts.push(figure("Frames a second", make("dd", "", sensor.rate.toFixed(1)), `${whole(sensor.frames)} served, ${whole(sensor.dropped)} dropped`));
  parts.push(figure("Homogenizer", make("dd", sensor.homogenizer === "none" ? "" : "text", sensor.homogenizer), ""));
  return parts;
}

function figure(title, value, aside) {
  const part = make("div");
  part.append(make("dt", "", title), value);
  if (aside) part.append(make("dd", "aside", aside));
  return part;
}

function accuracy(estimate) {
  const part = figure("Accuracy", make("dd", "", percent(estimate.value)), "");
  const range = make("dd", "range");
  const band = make("i");
  band.style.left = percent(estimate.lower);
  band.style.width = percent(Math.max(0, estimate.upper - estimate.lower));
  const mark = make("b");
  mark.style.left = percent(estimate.value);
  range.append(band, mark);
  part.append(range, make("dd", "aside", `estimated, in 90% of cases ${percent(estimate.lower)} to ${percent(estimate.upper)}`));
  return part;
}

function showFrames(card, sensor) {
  const frame = sensor.frame;
  card.frames.hidden = !frame;
  const served = sensor.homogenizer === "none" ? NOTHING_SERVES : "The next drift check shows it as restored.";
  const mark = frame && `${frame.mark} ${served}`;
  if (!frame || mark === card.mark) return;
  card.mark = mark;
  showFrame(card, sensor, 0, "received");
  if (frame.restored) showFrame(card, sensor, 1, "restored");
  else place(card.frames, 1, make("p", "empty", served));
}

function showFrame(card, sensor, index, which) {
  const picture = new Image();
  picture.alt = `${sensor.id}: the newest frame as ${which}`;
  picture.onload = () => {
    if (picture.naturalWidth < SMALL_PX) picture.className = "small";
    const box = make("figure");
    box.append(picture, make("figcaption", "", `as ${which}`));
    place(card.frames, index, box);
  };
  picture.src = `frames/${sensor.id}/${which}.png?${sensor.frame.mark}`;
}

function place(parent, index, element) {
  while (parent.children.length <= index) parent.append(make("div"));
  parent.children[index].replaceWith(element);
}

function showDecisions(decisions) {
  byId("decisions").hidden = !decisions.length;
  byId("decision-list").replaceChildren(
    ...decisions.map((decision) => {
      const row = make("li");
      row.dataset.tone = decision.tone;
      const at = new Date(decision.at);
      const time = make("time", "", Number.isNaN(at.valueOf()) ? decision.at : moment(at));
      time.dateTime = decision.at;
      const what = make("span", "what");
      what.append(make("strong", "", decision.title), decision.text);
      row.append(time, make("span", "sensor", decision.sensor || "recald"), what);
      return row;
    }),
  );
}

// ---- small parts

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

// Commands stand between backticks, as in the terminal.
function withCommands(text) {
  return text.split("`").map((part, place) => (place % 2 ? make("code", "", part) : part));
}

function note(text) {
  const item = make("li");
  item.append(...withCommands(text));
  return item;
}

function setText(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

const whole = (value) => value.toLocaleString("en");
const percent = (share) => `${Math.round(share * 100)}%`;
const moment = (date) => {
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock(date) : `${date.toLocaleDateString("en", { day: "numeric", month: "short" })} ${clock(date)}`;
};

window.addEventListener("resize", () => shown && shown.sensors.forEach((sensor) => drawChart(cards.get(sensor.id), sensor)));
watch({ show, unchanged, forget, lost: showLoss, slept: forgetAges, answered: showAges });
