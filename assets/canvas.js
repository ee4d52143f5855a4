// The drawing surface: regions of the user and places of an answer over the picture. Runs after picture.js in one scope.
// All places are in the unit square of the upright picture; pixels exist only between a pointer and toUnit().

const SMALL = 4; // css pixels: a drag below this is a click
const GRIP = 14; // css pixels around a corner that catch the pointer
let tool = 'box';
let zoom = 1;
let lastId = 0;
let pictureKey = null;
let past = [];
let drag = null; // what the pointer is doing
let cross = null; // the keyboard's drawing cross {x, y, start}
let answer = { turn: null, phrases: [] };
let chosen = { turn: null, span: null }; // the phrase selected here or in the talk
let hovered = null;
let heat = null;

function part(tag, name = '', inside = null) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (typeof inside === 'string') made.textContent = inside;
  else if (inside) made.append(...inside.filter(Boolean));
  return made;
}

function button(label, name, act, picture) {
  const made = part('button', `mm-button ${name}`, picture ? [icon(picture)] : label);
  made.type = 'button';
  if (picture) {
    made.title = label;
    made.setAttribute('aria-label', label);
  }
  made.addEventListener('click', (event) => {
    event.preventDefault();
    act(event);
  });
  return made;
}

const ICONS = {
  box: 'M4 6h16v12H4z', point: 'M12 5v14M5 12h14M12 9a3 3 0 1 0 0 6 3 3 0 1 0 0-6', select: 'M6 3l12 9-5.4.9L9.6 19z',
  undo: 'M8 5L4 9l4 4M4 9h10a5 5 0 0 1 0 10h-4', remove: 'M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13', swap: 'M4 17V7a2 2 0 0 1 2-2h12a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01',
  camera: 'M4 8h3l2-3h6l2 3h3v11H4zM12 10.5a3 3 0 1 0 0 6 3 3 0 1 0 0-6', close: 'M6 6l12 12M18 6L6 18', larger: 'M12 6v12M6 12h12', smaller: 'M6 12h12',
};
ICONS.picture = ICONS.swap;

function icon(name, extra = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  made.setAttribute('viewBox', '0 0 24 24');
  made.setAttribute('class', `mm-icon ${extra}`);
  made.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('d', ICONS[name]);
  made.append(line);
  return made;
}

const copy = (thing) => JSON.parse(JSON.stringify(thing));
const value = () => (props.value && props.value.image ? copy(props.value) : null);
const regions = () => (value() || { regions: [] }).regions;
const selectedId = () => (value() || {}).selected;
const clamp = (number) => Math.min(1, Math.max(0, number));
const stage = () => element.querySelector('.mm-stage');

function toUnit(event) {
  const rect = stage().getBoundingClientRect();
  return { x: clamp((event.clientX - rect.left) / rect.width), y: clamp((event.clientY - rect.top) / rect.height) };
}

function inPixels(x, y) {
  const size = (value() || {}).size || [1, 1];
  return `${Math.round(x * size[0])}, ${Math.round(y * size[1])}`;
}

// Every change of the regions goes through here: remembered for undo, sent to Python, drawn.
function commit(next, selected, remember = true) {
  const now = value();
  if (!now) return;
  if (remember) past.push(copy(now.regions));
  if (past.length > 100) past.shift();
  props.value = { ...now, regions: next, selected };
  draw();
}

function choose(id) {
  const now = value();
  if (!now || now.selected === id) return;
  props.value = { ...now, selected: id };
  draw();
}

function undo() {
  if (past.length) commit(past.pop(), null, false);
}

function remove(id = selectedId()) {
  if (id == null) return;
  commit(regions().filter((region) => region.id !== id), null);
}

function add(kind, box) {
  if (regions().length >= (props.most || 32)) return complain(`There are ${regions().length} regions already: delete one first.`);
  lastId = Math.max(lastId, ...regions().map((region) => region.id), 0) + 1;
  commit([...regions(), { id: lastId, kind, box: box.map((number) => Math.round(number * 1e6) / 1e6) }], lastId);
  say(`Region ${lastId}, ${kind}, added`);
}

function sorted(x0, y0, x1, y1) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
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

function outline(place) {
  if (place.box) return place.box;
  if (place.kind === 'point') return [...place.point, ...place.point];
  const xs = place.points.map((point) => point[0]);
  const ys = place.points.map((point) => point[1]);
  return xs.length ? [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)] : null;
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

function place(made, box) {
  Object.assign(made.style, { left: `${box[0] * 100}%`, top: `${box[1] * 100}%`, width: `${(box[2] - box[0]) * 100}%`, height: `${(box[3] - box[1]) * 100}%` });
  return made;
}

function drawRegion(region) {
  const on = region.id === selectedId();
  const box = drag && drag.moved && drag.region && drag.region.id === region.id ? dragged(drag) : region.box;
  const made = place(part('div', `mm-region mm-${region.kind}${on ? ' mm-on' : ''}`), box);
  made.dataset.id = region.id;
  made.append(part('span', 'mm-tag', `@${region.id}`));
  if (on && region.kind === 'box') ['nw', 'ne', 'se', 'sw'].forEach((corner) => made.append(part('i', `mm-grip mm-${corner}`)));
  return made;
}

function drawPlace(phrase, found, number) {
  const dim = chosen.span != null && chosen.turn === answer.turn && chosen.span !== phrase.span;
  const lit = hovered === phrase.span || (chosen.span === phrase.span && chosen.turn === answer.turn);
  const box = outline(found);
  if (!box) return null;
  const made = place(part('div', `mm-place mm-${found.kind}${dim ? ' mm-dim' : ''}${lit ? ' mm-lit' : ''}${box[1] < 0.06 ? ' mm-low' : ''}`), box);
  Object.assign(made.dataset, { turn: answer.turn, span: phrase.span, place: number });
  made.style.setProperty('--mark', phrase.colour);
  if (found.kind === 'polygon') {
    const [w, h] = [box[2] - box[0] || 1, box[3] - box[1] || 1];
    made.style.clipPath = `polygon(${found.points.map(([x, y]) => `${((x - box[0]) / w) * 100}% ${((y - box[1]) / h) * 100}%`).join(',')})`;
  }
  if (phrase.text.trim()) made.append(part('span', 'mm-tag', phrase.text));
  return made;
}

function draw() {
  const layer = element.querySelector('.mm-layer');
  if (!layer) return;
  const marks = answer.phrases.flatMap((phrase) => phrase.places.map((found, number) => drawPlace(phrase, found, number)));
  const made = [...marks, ...regions().map(drawRegion)].filter(Boolean);
  if (drag && drag.moved && drag.kind === 'draw') made.push(place(part('div', 'mm-region mm-box mm-new'), sorted(drag.from.x, drag.from.y, drag.at.x, drag.at.y)));
  if (cross) {
    if (cross.start) made.push(place(part('div', 'mm-region mm-box mm-new'), sorted(cross.start.x, cross.start.y, cross.x, cross.y)));
    made.push(place(part('div', 'mm-cross'), [cross.x, cross.y, cross.x, cross.y]));
  }
  layer.replaceChildren(...made);
  drawList();
  const usable = { undo: past.length > 0, remove: selectedId() != null };
  Object.entries(usable).forEach(([name, can]) => {
    const found = element.querySelector(`.mm-${name}`);
    if (found) found.disabled = !can;
  });
  element.querySelectorAll('[data-tool]').forEach((one) => one.setAttribute('aria-pressed', String(one.dataset.tool === tool)));
}

// The regions as a list: to read, to select, to put into the question.
function drawList() {
  const list = element.querySelector('.mm-regions');
  const key = JSON.stringify([regions(), selectedId()]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const rows = regions().map((region) => {
    const where = region.kind === 'box' ? `${inPixels(region.box[0], region.box[1])} – ${inPixels(region.box[2], region.box[3])}` : inPixels(region.box[0], region.box[1]);
    const chip = button(`@${region.id}`, `mm-chip${region.id === selectedId() ? ' mm-on' : ''}`, () => { choose(region.id); mention(region.id); });
    chip.title = `${region.kind} at ${where}: put @${region.id} into the question`;
    chip.append(' ', part('small', '', where));
    return part('li', '', [chip, button(`Delete region ${region.id}`, 'mm-plain', () => remove(region.id), 'close')]);
  });
  list.replaceChildren(...(rows.length ? rows : [part('li', 'mm-quiet', 'Drag on the picture to mark a region, or just ask.')]));
}

function mention(id) {
  const box = document.querySelector('#mm-question textarea');
  if (!box) return;
  const text = box.value.replace(/\s*$/, '');
  box.value = `${text}${text ? ' ' : ''}@${id} `;
  box.dispatchEvent(new Event('input', { bubbles: true }));
  box.focus();
}

function setZoom(next) {
  zoom = Math.min(4, Math.max(1, next));
  const inner = stage();
  if (inner) inner.style.setProperty('--zoom', zoom);
  const shown = element.querySelector('.mm-zoom');
  if (shown) shown.textContent = `${Math.round(zoom * 100)}%`;
}

function toolButton(name, label) {
  const made = button(label, '', () => { tool = name; cross = null; draw(); }, name);
  made.dataset.tool = name;
  return made;
}

function fullView(now) {
  const image = part('img', 'mm-picture');
  image.alt = now.image.orig_name ? `The picture: ${now.image.orig_name}` : 'The picture';
  image.draggable = false;
  image.src = (now.view || now.image).url || '';
  const over = part('img', 'mm-heat');
  over.alt = '';
  over.hidden = true;
  const inner = part('div', 'mm-stage', [image, over, part('div', 'mm-layer')]);
  if (now.size) inner.style.setProperty('--ratio', now.size[0] / now.size[1]);
  inner.tabIndex = 0;
  inner.setAttribute('role', 'application');
  inner.setAttribute('aria-label', 'Drawing surface. Enter starts a cross: arrow keys move it, Enter sets two corners of a box, P a point. Delete removes the selected region, Escape ends.');
  const bar = part('div', 'mm-bar', [
    part('div', 'mm-group', [toolButton('box', 'Draw a box'), toolButton('point', 'Place a point'), toolButton('select', 'Select and move')]),
    part('div', 'mm-group', [button('Undo', 'mm-undo', undo, 'undo'), button('Delete the selected region', 'mm-remove', () => remove(), 'remove')]),
    part('div', 'mm-group', [button('Smaller', '', () => setZoom(zoom - 0.5), 'smaller'), part('span', 'mm-zoom', '100%'), button('Larger', '', () => setZoom(zoom + 0.5), 'larger')]),
    part('div', 'mm-group mm-end', [button('Another picture', '', chooseFile, 'swap'), button('Camera', '', startCamera, 'camera'), button('Remove the picture', 'mm-close', removePicture, 'close')]),
  ]);
  bar.setAttribute('role', 'toolbar');
  bar.setAttribute('aria-label', 'Drawing');
  return [bar, part('div', 'mm-view', [inner]), part('ul', 'mm-regions')];
}

// Brings the surface in line with the value Python or the user gave.
function refresh() {
  const now = value();
  const key = now ? `${now.image.path}|${now.view ? now.view.path : ''}` : '';
  setBusy(now && !now.size ? 'Opening the picture' : null);
  if (key !== pictureKey) {
    const fresh = !now || !pictureKey || !pictureKey.startsWith(`${now.image.path}|`);
    pictureKey = key;
    if (fresh) {
      [past, lastId, cross, drag, heat, zoom] = [[], 0, null, null, null, 1];
      show({ turn: null, phrases: [] });
    }
    const live = element.querySelector('.mm-live') || part('div', 'mm-live');
    live.setAttribute('aria-live', 'polite');
    element.querySelector('.mm-canvas').replaceChildren(...(now ? fullView(now) : [emptyView()]), live);
    showHeat();
  }
  draw();
}

function setBusy(text) {
  element.classList.toggle('mm-busy', Boolean(text));
  element.dataset.busy = text || '';
}

function complain(text) {
  setBusy(null);
  const old = element.querySelector('.mm-complaint');
  if (old) old.remove();
  const made = part('div', 'mm-card mm-complaint', [part('p', '', text), button('Dismiss', 'mm-plain', () => made.remove(), 'close')]);
  made.setAttribute('role', 'alert');
  element.querySelector('.mm-canvas').prepend(made);
}

function say(text) {
  const live = element.querySelector('.mm-live');
  if (live) live.textContent = text;
}

function tell(name, detail) {
  document.dispatchEvent(new CustomEvent(name, { detail }));
}

function show(next) {
  answer = next;
  hovered = null;
  draw();
}

function showHeat() {
  const over = element.querySelector('.mm-heat');
  if (!over) return;
  over.hidden = !heat;
  if (!heat) return;
  if (over.getAttribute('src') !== heat.url) over.src = heat.url;
  over.style.opacity = heat.opacity;
}

element.addEventListener('pointerdown', pointerDown);
element.addEventListener('pointermove', pointerMove);
element.addEventListener('pointerup', pointerUp);
element.addEventListener('pointercancel', () => { drag = null; draw(); });
element.addEventListener('pointerleave', () => hovered != null && tell('mm-light', { turn: null, span: null }));
element.addEventListener('keydown', keyDown);
document.addEventListener('mm-answer', (event) => show(event.detail));
document.addEventListener('mm-select', (event) => { chosen = event.detail; draw(); });
document.addEventListener('mm-light', (event) => { hovered = event.detail.turn === answer.turn ? event.detail.span : null; draw(); });
document.addEventListener('mm-heat', (event) => { heat = event.detail; showHeat(); });
listenForPictures();
watch('value', refresh);
refresh();
