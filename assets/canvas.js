// The drawing surface: regions of the user and places of an answer over the picture. Runs last of the files of its scope.
// All places are in the unit square of the upright picture; pixels exist only between a pointer and toUnit().

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

const copy = (thing) => JSON.parse(JSON.stringify(thing));
const value = () => (props.value && props.value.image ? copy(props.value) : null);
const regions = () => (value() || { regions: [] }).regions;
const selectedId = () => (value() || {}).selected;
const clamp = (number) => Math.min(1, Math.max(0, number));
const stage = () => element.querySelector('.mm-stage');

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

function outline(place) {
  if (place.box) return place.box;
  if (place.kind === 'point') return [...place.point, ...place.point];
  const xs = place.points.map((point) => point[0]);
  const ys = place.points.map((point) => point[1]);
  return xs.length ? [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)] : null;
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
  if (found.shape) made.style.maskImage = `url(${found.shape})`;
  if (phrase.text.trim() && !found.shape) made.append(part('span', 'mm-tag', phrase.text));
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
