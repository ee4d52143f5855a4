// Mouse, pen, finger and keys on the drawing surface. Runs in one scope with canvas.js, before it.

const SMALL = 4; // css pixels: a drag below this is a click
const GRIP = 14; // css pixels around a corner that catch the pointer

function toUnit(event) {
  const rect = stage().getBoundingClientRect();
  return { x: clamp((event.clientX - rect.left) / rect.width), y: clamp((event.clientY - rect.top) / rect.height) };
}

// The smallest thing under a place: {region} or {span, turn}.
function under(at) {
  const rect = stage().getBoundingClientRect();
  const reach = [8 / rect.width, 8 / rect.height];
  let best = null;
  const offer = (box, thing, favour) => {
    const [x0, y0, x1, y1] = box;
    if (at.x < x0 - reach[0] || at.x > x1 + reach[0] || at.y < y0 - reach[1] || at.y > y1 + reach[1]) return;
    const area = (x1 - x0) * (y1 - y0) - favour;
    if (!best || area < best.area) best = { ...thing, area };
  };
  regions().forEach((region) => offer(region.box, { region: region.id }, region.kind === 'point' ? 2 : 0));
  answer.phrases.forEach((phrase) => phrase.places.forEach((place) => {
    const box = outline(place);
    if (box) offer(box, { span: phrase.span }, place.kind === 'point' ? 2 : 0);
  }));
  return best;
}

function cornerUnder(event) {
  const region = regions().find((one) => one.id === selectedId());
  if (!region || region.kind !== 'box') return null;
  const rect = stage().getBoundingClientRect();
  const reach = event.pointerType === 'touch' ? GRIP * 1.6 : GRIP;
  for (const [i, j] of [[0, 1], [2, 1], [2, 3], [0, 3]]) {
    const dx = event.clientX - rect.left - region.box[i] * rect.width;
    const dy = event.clientY - rect.top - region.box[j] * rect.height;
    if (Math.hypot(dx, dy) <= reach) return { region, i, j };
  }
  return null;
}

function pointerDown(event) {
  if (event.button || !event.target.closest || !event.target.closest('.mm-stage')) return;
  event.preventDefault();
  stage().focus({ preventScroll: true });
  stage().setPointerCapture(event.pointerId);
  cross = null;
  const at = toUnit(event);
  const corner = cornerUnder(event);
  const hit = under(at);
  drag = { id: event.pointerId, from: at, at, px: [event.clientX, event.clientY], moved: false, before: regions() };
  if (corner) Object.assign(drag, { kind: 'resize', region: corner.region, i: corner.i, j: corner.j });
  else if (hit && hit.region != null && (tool === 'select' || (hit.region === selectedId() && isPoint(hit.region)))) {
    drag.kind = 'move';
    drag.region = regions().find((region) => region.id === hit.region);
  } else drag.kind = tool === 'box' ? 'draw' : tool === 'select' ? 'scroll' : 'click';
}

const isPoint = (id) => (regions().find((region) => region.id === id) || {}).kind === 'point';

function pointerMove(event) {
  if (!drag || event.pointerId !== drag.id) return hover(event);
  drag.at = toUnit(event);
  const [dx, dy] = [event.clientX - drag.px[0], event.clientY - drag.px[1]];
  if (Math.abs(dx) >= SMALL || Math.abs(dy) >= SMALL) drag.moved = true;
  if (!drag.moved) return;
  if (drag.kind === 'scroll') {
    const view = element.querySelector('.mm-view');
    view.scrollLeft -= event.movementX;
    view.scrollTop -= event.movementY;
  } else draw();
}

function pointerUp(event) {
  if (!drag || event.pointerId !== drag.id) return;
  const done = drag;
  drag = null;
  done.at = toUnit(event);
  if (!done.moved) return click(done.at);
  if (done.kind === 'draw') {
    const box = sorted(done.from.x, done.from.y, done.at.x, done.at.y);
    const rect = stage().getBoundingClientRect();
    if ((box[2] - box[0]) * rect.width >= SMALL && (box[3] - box[1]) * rect.height >= SMALL) return add('box', box);
  } else if (done.kind === 'move' || done.kind === 'resize') {
    const box = dragged(done);
    commit(regions().map((region) => (region.id === done.region.id ? { ...region, box } : region)), done.region.id);
    return;
  }
  draw();
}

// A region's box as the drag leaves it.
function dragged(now) {
  const box = now.region.box.slice();
  if (now.kind === 'resize') {
    box[now.i] = now.at.x;
    box[now.j] = now.at.y;
    const tidy = sorted(...box);
    const least = 0.002;
    return [Math.min(tidy[0], 1 - least), Math.min(tidy[1], 1 - least), Math.max(tidy[2], tidy[0] + least), Math.max(tidy[3], tidy[1] + least)].map(clamp);
  }
  return shifted(box, now.at.x - now.from.x, now.at.y - now.from.y);
}

function shifted(box, dx, dy) {
  const [x, y] = [Math.min(1 - box[2], Math.max(-box[0], dx)), Math.min(1 - box[3], Math.max(-box[1], dy))];
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y].map(clamp);
}

function click(at) {
  const hit = under(at);
  if (hit && hit.region != null) {
    tell('mm-select', { turn: null, span: null });
    return choose(hit.region);
  }
  if (tool === 'point') return add('point', [at.x, at.y, at.x, at.y]);
  choose(null);
  const same = hit && chosen.turn === answer.turn && chosen.span === hit.span;
  tell('mm-select', hit && !same ? { turn: answer.turn, span: hit.span } : { turn: null, span: null });
  draw();
}

function hover(event) {
  if (!stage() || event.pointerType === 'touch') return;
  const inside = event.target.closest && event.target.closest('.mm-stage');
  const hit = inside ? under(toUnit(event)) : null;
  const span = hit && hit.span != null ? hit.span : null;
  stage().style.cursor = cornerUnder(event) ? 'nwse-resize' : tool === 'select' ? (hit ? 'move' : 'grab') : 'crosshair';
  if (span !== hovered) tell('mm-light', { turn: span == null ? null : answer.turn, span });
}

function keyDown(event) {
  if (!event.target.classList.contains('mm-stage')) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const key = event.key;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === 'z') undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (steps[key]) arrow(steps[key].map((step) => step * 0.01), event.shiftKey);
  else if (key === 'Enter' || key === ' ') plant();
  else if (key.toLowerCase() === 'p' && cross) add('point', [cross.x, cross.y, cross.x, cross.y]);
  else if (key === 'Delete' || key === 'Backspace') remove();
  else if (key === 'Escape') {
    cross = null;
    choose(null);
    tell('mm-select', { turn: null, span: null });
    draw();
  } else return;
  event.preventDefault();
}

// Arrow keys move the drawing cross, or else the selected region; with Shift they size the region (the cross then goes by tenths).
function arrow([dx, dy], shift) {
  const region = regions().find((one) => one.id === selectedId());
  if (cross) {
    const pace = shift ? 0.1 : 1;
    Object.assign(cross, { x: clamp(cross.x + dx * pace), y: clamp(cross.y + dy * pace) });
    say(inPixels(cross.x, cross.y));
    return draw();
  }
  if (!region) {
    cross = { x: 0.5, y: 0.5, start: null };
    return draw();
  }
  const box = region.box;
  const grown = region.kind === 'box' && shift;
  const next = grown ? [box[0], box[1], clamp(Math.max(box[0] + 0.01, box[2] + dx)), clamp(Math.max(box[1] + 0.01, box[3] + dy))] : shifted(box, dx, dy);
  commit(regions().map((one) => (one.id === region.id ? { ...one, box: next } : one)), region.id);
}

function plant() {
  if (!cross) cross = { x: 0.5, y: 0.5, start: null };
  else if (!cross.start) cross.start = { x: cross.x, y: cross.y };
  else {
    const box = sorted(cross.start.x, cross.start.y, cross.x, cross.y);
    cross = null;
    if (box[2] > box[0] && box[3] > box[1]) return add('box', box);
  }
  say(cross && cross.start ? 'First corner set' : 'Move with the arrow keys, Enter sets a corner, P a point');
  draw();
}
