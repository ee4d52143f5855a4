// Mouse, pen, finger and keys on the drawing surface. Runs in one scope with canvas.js, before it.

const SMALL = 4; // css pixels: a drag below this is a click
const REACH = 8; // css pixels around a thing that still belong to it
const GRIP = 14; // css pixels around a corner that catch the pointer

function toUnit(event) {
  const rect = stage().getBoundingClientRect();
  return { x: clamp((event.clientX - rect.left) / rect.width), y: clamp((event.clientY - rect.top) / rect.height) };
}

function screen() {
  const rect = stage().getBoundingClientRect();
  return [rect.width, rect.height];
}

function near(one, other, reach) {
  const [width, height] = screen();
  return Math.hypot((one[0] - other[0]) * width, (one[1] - other[1]) * height) <= reach;
}

// The smallest thing under a place: {region} or {span}.
function under(at) {
  const size = screen();
  let best = null;
  const offer = (thing, box, favour) => {
    const area = (box[2] - box[0]) * (box[3] - box[1]) - favour;
    if (!best || area < best.area) best = { ...thing, area };
  };
  here().forEach((region) => touched(region, at, size, REACH) && offer({ region: region.id }, region.box, region.kind === 'point' ? 2 : 0));
  phrases().forEach((phrase) => phrase.places.forEach((place) => {
    const box = outline(place);
    if (box && touched({ kind: 'box', box }, at, size, REACH)) offer({ span: phrase.span }, box, place.kind === 'point' ? 2 : 0);
  }));
  return best;
}

function cornerUnder(event) {
  const region = here().find((one) => one.id === selectedId());
  if (!region || region.kind !== 'box' || !['box', 'select'].includes(tool)) return null;
  const rect = stage().getBoundingClientRect();
  const reach = event.pointerType === 'touch' ? GRIP * 1.6 : GRIP;
  for (const [i, j] of [[0, 1], [2, 1], [2, 3], [0, 3]]) {
    const dx = event.clientX - rect.left - region.box[i] * rect.width;
    const dy = event.clientY - rect.top - region.box[j] * rect.height;
    if (Math.hypot(dx, dy) <= reach) return { region, i, j };
  }
  return null;
}

const DRAGS = { box: 'draw', scribble: 'trace', mask: 'paint', point: 'click', polygon: 'corner' };

function pointerDown(event) {
  if (drag || event.button || !event.target.closest || !event.target.closest('.mm-stage')) return;
  event.preventDefault();
  stage().focus({ preventScroll: true });
  stage().setPointerCapture(event.pointerId);
  cross = null;
  const at = toUnit(event);
  const corner = cornerUnder(event);
  const hit = under(at);
  drag = { id: event.pointerId, from: at, at, px: [event.clientX, event.clientY], moved: false, finger: event.pointerType === 'touch' };
  if (corner) Object.assign(drag, { kind: 'resize', region: corner.region, i: corner.i, j: corner.j });
  else if (hit && hit.region != null && (tool === 'select' || (tool === 'point' && hit.region === selectedId() && isPoint(hit.region)))) {
    drag.kind = 'move';
    drag.region = here().find((region) => region.id === hit.region);
  } else drag.kind = DRAGS[tool] || 'scroll';
  if (drag.kind === 'trace') drag.points = [[at.x, at.y]];
  if (drag.kind === 'paint') {
    Object.assign(drag, painting());
    stroke(drag, at, at);
    draw();
  }
}

const isPoint = (id) => (here().find((region) => region.id === id) || {}).kind === 'point';

function pointerMove(event) {
  if (!drag || event.pointerId !== drag.id) return hover(event);
  const [dx, dy] = [event.clientX - drag.px[0], event.clientY - drag.px[1]];
  if (Math.abs(dx) >= SMALL || Math.abs(dy) >= SMALL) drag.moved = true;
  const before = drag.at;
  drag.at = toUnit(event);
  ring(event);
  if (drag.kind === 'trace') {
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of passed.length ? passed : [event]) {
      const { x, y } = toUnit(one);
      if (!near([x, y], drag.points[drag.points.length - 1], 2)) drag.points.push([x, y]);
    }
  }
  if (drag.kind === 'paint') stroke(drag, before, drag.at);
  else if (!drag.moved) return;
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
  if (done.kind === 'paint') return painted(done);
  if (done.kind === 'corner' && (draft || done.moved || (under(done.at) || {}).region == null)) return corner(done.at, done.finger);
  if (!done.moved) return click(done.at);
  if (done.kind === 'draw') {
    const box = sorted(done.from.x, done.from.y, done.at.x, done.at.y);
    const [width, height] = screen();
    if ((box[2] - box[0]) * width >= SMALL && (box[3] - box[1]) * height >= SMALL) return add(boxed(box));
  } else if (done.kind === 'trace') {
    if (!near([done.at.x, done.at.y], done.points[done.points.length - 1], 1)) done.points.push([done.at.x, done.at.y]);
    return add(traced('scribble', done.points));
  } else if (done.kind === 'move' || done.kind === 'resize') {
    const next = dragged(done);
    return commit(regions().map((region) => (region.id === next.id ? next : region)), next.id);
  }
  draw();
}

// A region as the drag leaves it.
function dragged(now) {
  if (now.kind === 'move') return moved(now.region, now.at.x - now.from.x, now.at.y - now.from.y);
  const box = now.region.box.slice();
  box[now.i] = now.at.x;
  box[now.j] = now.at.y;
  const [x0, y0, x1, y1] = sorted(...box);
  const least = 0.002;
  return { ...now.region, box: [Math.min(x0, 1 - least), Math.min(y0, 1 - least), Math.max(x1, x0 + least), Math.max(y1, y0 + least)].map(clamp) };
}

function click(at) {
  const hit = under(at);
  if (hit && hit.region != null) {
    tell('mm-select', { turn: null, span: null });
    return choose(hit.region);
  }
  if (tool === 'point') return add(pointed(at.x, at.y));
  choose(null);
  const same = hit && chosen.turn === answer.turn && chosen.span === hit.span;
  tell('mm-select', hit && !same ? { turn: answer.turn, span: hit.span } : { turn: null, span: null });
  draw();
}

// An outline grows corner by corner; its first corner, or its last one once more, closes it.
function corner({ x, y }, finger = false) {
  const points = draft ? draft.points : [];
  const closes = points.length >= 3 && (near([x, y], points[0], finger ? 22 : 11) || near([x, y], points[points.length - 1], finger ? 12 : 5));
  if (closes) return closeOutline();
  if (points.length && near([x, y], points[points.length - 1], 2)) return draw();
  if (!draft) choose(null);
  draft = { points: [...points, [x, y]], at: { x, y } };
  say(`Corner ${draft.points.length}${draft.points.length > 2 ? ', Enter closes the outline' : ''}`);
  draw();
}

function closeOutline() {
  const { points } = draft;
  if (points.length < 3) return say('An outline needs three corners');
  draft = null;
  const made = traced('polygon', points);
  if (made.box[2] > made.box[0] && made.box[3] > made.box[1]) return add(made);
  draw();
}

// The brush goes on with the selected painted shape, or begins one.
function painting() {
  const old = here().find((region) => region.id === selectedId() && region.kind === 'mask');
  const size = old ? old.mask.size : cellSize(sheet().size || [1, 1]);
  return { region: old, size, cells: old ? cellsOf(old.mask) : new Uint8Array(size[0] * size[1]) };
}

function stroke(now, from, to) {
  brushed(now.cells, now.size, from, to, (brush / 200) * Math.max(...now.size), wiping ? 0 : 1);
}

function painted(done) {
  const made = paintedShape(done.cells, done.size);
  if (!done.region) return made ? add(made) : draw();
  if (!made) return remove(done.region.id);
  commit(regions().map((region) => (region.id === done.region.id ? { ...region, ...made } : region)), done.region.id);
}

function hover(event) {
  if (!stage()) return;
  ring(event);
  if (event.pointerType === 'touch') return;
  const inside = event.target.closest && event.target.closest('.mm-stage');
  const at = inside ? toUnit(event) : null;
  const hit = inside ? under(at) : null;
  const span = hit && hit.span != null ? hit.span : null;
  const idle = tool === 'select' ? (hit ? 'move' : 'grab') : tool ? 'crosshair' : hit ? 'pointer' : 'default';
  stage().style.cursor = cornerUnder(event) ? 'nwse-resize' : tool === 'mask' ? 'none' : idle;
  if (draft && inside) {
    draft.at = at;
    draw();
  }
  if (span !== hovered) tell('mm-light', { turn: span == null ? null : answer.turn, span });
}

// The size of the brush under the pointer.
function ring(event) {
  const made = element.querySelector('.mm-ring');
  if (!made) return;
  const inside = tool === 'mask' && event.target.closest && event.target.closest('.mm-stage');
  made.hidden = !inside;
  if (!inside) return;
  const at = toUnit(event);
  const side = (brush / 100) * Math.max(...screen());
  Object.assign(made.style, { left: `${at.x * 100}%`, top: `${at.y * 100}%`, width: `${side}px`, height: `${side}px` });
}

function keyDown(event) {
  if (!event.target.classList.contains('mm-stage')) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const key = event.key;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === 'z') undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (steps[key]) arrow(steps[key].map((step) => step * 0.01), event.shiftKey);
  else if (key === 'Enter' && draft && !cross) closeOutline();
  else if (key === 'Enter' || key === ' ') plant();
  else if (key.toLowerCase() === 'p' && cross && takes('point')) add(pointed(cross.x, cross.y));
  else if ((key === '[' || key === ']') && tool === 'mask') setBrush(brush + (key === ']' ? 1 : -1));
  else if ((key === 'Delete' || key === 'Backspace') && draft) undo();
  else if (key === 'Delete' || key === 'Backspace') remove();
  else if (key === 'Escape') {
    [cross, draft] = [null, null];
    choose(null);
    tell('mm-select', { turn: null, span: null });
    draw();
  } else return;
  event.preventDefault();
}

// Arrow keys move the drawing cross, or else the selected region; with Shift they size a box (the cross then goes by tenths).
function arrow([dx, dy], shift) {
  const region = here().find((one) => one.id === selectedId());
  if (cross) {
    const pace = shift ? 0.1 : 1;
    const from = { x: cross.x, y: cross.y };
    Object.assign(cross, { x: clamp(cross.x + dx * pace), y: clamp(cross.y + dy * pace) });
    if (cross.line) cross.line.push([cross.x, cross.y]);
    if (cross.paint) stroke(cross.paint, from, cross);
    if (draft) draft.at = cross;
    say(inPixels(cross.x, cross.y));
    return draw();
  }
  if (!region) {
    if (tool) cross = { x: 0.5, y: 0.5, start: null };
    return draw();
  }
  const box = region.box;
  const grown = region.kind === 'box' && shift;
  const next = grown ? { ...region, box: [box[0], box[1], clamp(Math.max(box[0] + 0.01, box[2] + dx)), clamp(Math.max(box[1] + 0.01, box[3] + dy))] } : moved(region, dx, dy);
  commit(regions().map((one) => (one.id === region.id ? next : one)), region.id);
}

// Enter with the drawing cross: a corner, a point, or the pen or brush down and up again.
function plant() {
  const pen = tool === 'select' ? offered()[0] : tool;
  if (!pen) return;
  if (!cross) {
    cross = { x: 0.5, y: 0.5, start: null };
    say({ box: 'Move with the arrow keys, Enter sets a corner', point: 'Move with the arrow keys, Enter sets the point',
      polygon: 'Move with the arrow keys, Enter sets a corner, twice in one place closes the outline' }[pen] || 'Move with the arrow keys, Enter puts the pen down and lifts it');
    return draw();
  }
  const { x, y } = cross;
  if (pen === 'point') return add(pointed(x, y));
  if (pen === 'polygon') {
    corner({ x, y });
    if (!draft) cross = null;
  } else if (pen === 'scribble') {
    const { line } = cross;
    cross = line ? null : { ...cross, line: [[x, y]] };
    if (line) return add(traced('scribble', line));
    say('Pen down');
  } else if (pen === 'mask') {
    const { paint } = cross;
    cross = paint ? null : { ...cross, paint: painting() };
    if (paint) return painted(paint);
    stroke(cross.paint, cross, cross);
    say('Brush down');
  } else if (!cross.start) {
    cross.start = { x, y };
    say('First corner set');
  } else {
    const box = sorted(cross.start.x, cross.start.y, x, y);
    cross = null;
    if (box[2] > box[0] && box[3] > box[1]) return add(boxed(box));
  }
  draw();
}
