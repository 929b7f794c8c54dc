// The chart of a camera's drift over time, as multiples of the line above which a drift is evidence for the alarm. The
// scale is that of the square root, so that both a drift far above the line and values below it can be read.

import { clock } from "./link.js";

const SPANS_S = [300, 900, 3600]; // of the chart: the first that holds all points
const CHART = { height: 152, left: 34, right: 10, top: 16, bottom: 22 };
export const SVG = "http://www.w3.org/2000/svg";

export const number = (value) => value.toFixed(Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0).replace("-", "\u2212");

export function drawChart(card, sensor) {
  const width = card.svg.clientWidth || 400;
  const { newest: last, point, began, since } = card.scale;
  const points = [...card.points.values()].sort((one, other) => one[0] - other[0]);
  const oldest = points.length ? (last - points[0][0]) * point : 0;
  const span = SPANS_S.find((seconds) => oldest < seconds) || SPANS_S[SPANS_S.length - 1];
  const highest = Math.max(2, ...points.map((p) => Math.max(p[1] || 0, p[2] || 0))) * 1.1;
  const floor = CHART.height - CHART.bottom;
  const x = (n) => width - CHART.right - ((last - n) * point * (width - CHART.left - CHART.right)) / span;
  const y = (ratio) => floor - Math.sqrt(Math.max(0, ratio) / highest) * (floor - CHART.top);
  const parts = [...before(x(began), floor), ...alarms(points, x, floor), ...axes(width, span, highest, y)];
  const differs = points.some((p) => p[1] !== null && p[2] !== null && Math.abs(p[1] - p[2]) > 0.02 * Math.max(p[1], p[2]));
  if (differs) parts.push(draw("path", { class: "raw", d: line(points, 2, x, y) }));
  parts.push(draw("path", { class: "served", d: line(points, 1, x, y) }));
  const end = points[points.length - 1];
  if (end && end[1] !== null && last - end[0] < 4) parts.push(draw("circle", { class: "end", cx: x(end[0]), cy: y(end[1]), r: 4.5 }));
  card.legend.hidden = !differs;
  const isWhole = (last - began) * point >= SPANS_S[SPANS_S.length - 1];
  card.chartTitle.textContent = isWhole ? `Drift, last ${span / 60} minutes` : `Drift since recald started at ${clock(since)}`;
  card.svg.setAttribute("viewBox", `0 0 ${width} ${CHART.height}`);
  card.svg.setAttribute("aria-label", description(sensor, span, points));
  card.svg.replaceChildren(...parts);
}

// The time before recald started: nothing is known of it.
function before(start, floor) {
  if (start <= CHART.left) return [];
  return [draw("rect", { class: "before", x: CHART.left, y: CHART.top - 8, width: start - CHART.left, height: floor - CHART.top + 8 })];
}

function alarms(points, x, floor) {
  const spans = [];
  for (const p of points.filter((one) => one[3])) {
    const before = spans[spans.length - 1];
    if (before && p[0] - before[1] <= 2) before[1] = p[0];
    else spans.push([p[0], p[0]]);
  }
  return spans.map(([from, to]) => {
    const left = Math.max(CHART.left, x(from - 0.5));
    return draw("rect", { class: "alarm", x: left, y: CHART.top - 8, width: Math.max(2, x(to + 0.5) - left), height: floor - CHART.top + 8 });
  });
}

function axes(width, span, highest, y) {
  const right = width - CHART.right;
  const parts = [draw("line", { class: "axis", x1: CHART.left, x2: right, y1: y(0), y2: y(0) })];
  const top = [2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000].filter((tick) => tick < highest).pop();
  if (top) {
    parts.push(draw("line", { class: "axis", x1: CHART.left, x2: right, y1: y(top), y2: y(top) }));
    parts.push(label(`${top}\u00d7`, CHART.left - 6, y(top) + 4, "end"));
  }
  parts.push(draw("line", { class: "limit", x1: CHART.left, x2: right, y1: y(1), y2: y(1) }));
  parts.push(label("1\u00d7", CHART.left - 6, y(1) + 4, "end", "limit-text"));
  parts.push(label("evidence for an alarm above", CHART.left + 4, y(1) - 5, "start", "limit-text"));
  parts.push(label(`${span / 60} min ago`, CHART.left, CHART.height - 5, "start"), label("now", right, CHART.height - 5, "end"));
  return parts;
}

function line(points, column, x, y) {
  let path = "";
  let before = null;
  for (const p of points) {
    if (p[column] === null) {
      before = null;
      continue;
    }
    const joined = before !== null && p[0] - before <= 12; // a minute without a check is a gap
    path += `${joined ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[column]).toFixed(1)}`;
    if (!joined) path += "h0.1";
    before = p[0];
  }
  return path;
}

function description(sensor, span, points) {
  const known = points.map((p) => p[1]).filter((ratio) => ratio !== null);
  if (!known.length) return `${sensor.id}: no drift was measured within the last ${span / 60} minutes`;
  const now = `${number(known[known.length - 1])} times its line`;
  return `${sensor.id}: drift within the last ${span / 60} minutes, now ${now}, at most ${number(Math.max(...known))} times`;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function label(text, x, y, anchor, className = "") {
  const element = draw("text", { x, y, "text-anchor": anchor, class: className });
  element.textContent = text;
  return element;
}
