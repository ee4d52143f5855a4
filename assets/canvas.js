// The drawing surface: regions of the user and places of an answer over the picture. Runs last of the files of its scope.
// All places are in the unit square of the upright picture; pixels exist only between a pointer and toUnit().

let able = props.able || {}; // what the open model takes
let tool = null; // one of those offered, or null where there is none
let brush = 5; // its width in hundredths of the picture's longer side
let wiping = false;
let zoom = 1;
let lastId = 0;
let lying = []; // the pictures that were on the surface when it was last looked at
let pictureKey = null;
let past = [];
let drag = null; // what the pointer is doing
let draft = null; // an outline that is not closed yet {points, at}
let cross = null; // the keyboard's drawing cross {x, y, start | line | paint}
let answer = { turn: null, picture: '', phrases: [] };
let turned = null; // the answer for which its picture was brought up
let chosen = { turn: null, span: null }; // the phrase selected here or in the talk
let hovered = null;
let heat = null;

const copy = (thing) => JSON.parse(JSON.stringify(thing));
const value = () => (props.value && props.value.image ? copy(props.value) : null);
const regions = () => (value() || { regions: [] }).regions;
const selectedId = () => (value() || {}).selected;
const clamp = (number) => Math.min(1, Math.max(0, number));
const stage = () => element.querySelector('.mm-stage');

const takes = (kind) => (able.takes || []).includes(kind);
const several = () => takes('several pictures');
const offered = () => KINDS.filter(takes);

// The pictures, the one that is shown, what is drawn on it, and the answer's phrases if they are about it.
const sheets = (now = value()) => (now ? [{ image: now.image, view: now.view, size: now.size, key: now.key }, ...(now.more || [])] : []);
const shown = (now = value()) => (now ? Math.max(0, Math.min(now.shown || 0, sheets(now).length - 1)) : 0);
const sheet = () => sheets()[shown()];
const here = () => regions().filter((region) => (region.image || 0) === shown());
const about = (one) => !answer.picture || !one || !one.key || one.key === answer.picture;
const phrases = () => (about(sheet()) ? answer.phrases : []);

function inPixels(x, y, image = shown()) {
  const size = (sheets()[image] || {}).size || [1, 1];
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

// Takes back the last corner of an outline that is being drawn, or else the last change.
function undo() {
  if (draft) {
    draft.points.pop();
    if (!draft.points.length) draft = null;
    draw();
  } else if (past.length) {
    const [before, after] = [regions(), past.pop()];
    const same = (one, all) => all.some((other) => JSON.stringify(other) === JSON.stringify(one));
    const changed = before.find((one) => !same(one, after)) || after.find((one) => !same(one, before));
    commit(after, null, false);
    if (changed) turnTo(changed.image || 0);
  }
}

function remove(id = selectedId()) {
  if (id == null) return;
  commit(regions().filter((region) => region.id !== id), null);
}

function add(made) {
  if (regions().length >= (props.most || 32)) return complain(`There are ${regions().length} regions already: delete one first.`);
  lastId = Math.max(lastId, ...regions().map((region) => region.id), 0) + 1;
  commit([...regions(), { id: lastId, image: shown(), ...made, box: made.box.map(tidy) }], lastId);
  say(`Region ${lastId}, ${NAMES[made.kind]}, added`);
}

// Brings another of the pictures up.
function turnTo(index) {
  const now = value();
  if (!now || shown(now) === index || !sheets(now)[index]) return;
  const on = now.regions.find((region) => region.id === now.selected);
  props.value = { ...now, shown: index, selected: on && (on.image || 0) === index ? now.selected : null };
  [drag, draft, cross, zoom] = [null, null, null, 1];
  refresh();
  say(`Picture ${index + 1} of ${sheets().length}`);
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

function setBrush(next) {
  brush = Math.min(20, Math.max(1, next));
  const found = element.querySelector('.mm-brush input');
  if (found) found.value = brush;
  const shape = element.querySelector('.mm-ring');
  const side = `${(brush / 100) * Math.max(...screen())}px`;
  if (shape) Object.assign(shape.style, { width: side, height: side });
  say(`Brush ${brush}`);
}

function toolButton(name) {
  const made = button(TOOLS[name], '', () => { [tool, cross, draft] = [name, null, null]; draw(); }, name);
  made.dataset.tool = name;
  return made;
}

// The tools of the kinds that the open model takes.
function toolGroup() {
  const kinds = offered();
  const known = kinds.length ? [...kinds, 'select'] : [];
  if (!known.includes(tool)) [tool, draft, cross] = [known[0] || null, null, null];
  if (!kinds.length) return part('div', 'mm-group mm-quiet mm-no-tools', `${able.title || 'This model'} takes no regions`);
  return part('div', 'mm-group', known.map(toolButton));
}

// Below the picture, so that it stays where it is when the brush is taken up.
function brushRow() {
  const size = part('input');
  Object.assign(size, { type: 'range', min: 1, max: 20, value: brush, title: 'Size of the brush' });
  size.setAttribute('aria-label', 'Size of the brush');
  size.addEventListener('input', () => setBrush(Number(size.value)));
  const wipe = button('Wipe', 'mm-wipe', () => { wiping = !wiping; draw(); });
  const row = part('div', 'mm-brush', [part('span', 'mm-quiet', 'Brush'), size, wipe, button('New shape', 'mm-another', () => choose(null))]);
  row.hidden = true;
  return row;
}

function fullView(one) {
  const image = part('img', 'mm-picture');
  image.alt = one.image.orig_name ? `The picture: ${one.image.orig_name}` : 'The picture';
  image.draggable = false;
  image.src = (one.view || one.image).url || '';
  const over = part('img', 'mm-heat');
  over.alt = '';
  over.hidden = true;
  const shape = part('i', 'mm-ring');
  shape.hidden = true;
  const inner = part('div', `mm-stage${offered().length ? '' : ' mm-still'}`, [image, over, part('div', 'mm-layer'), shape]);
  if (one.size) inner.style.setProperty('--ratio', one.size[0] / one.size[1]);
  inner.tabIndex = 0;
  inner.setAttribute('role', 'application');
  inner.setAttribute('aria-label', offered().length
    ? 'Drawing surface. Enter starts a cross: arrow keys move it, Enter draws with the chosen tool, P sets a point. Delete removes the selected region, Escape ends.'
    : 'The picture with the places of the answer.');
  const bar = part('div', 'mm-bar', [
    toolGroup(),
    offered().length ? part('div', 'mm-group', [button('Undo', 'mm-undo', undo, 'undo'), button('Delete the selected region', 'mm-remove', () => remove(), 'remove')]) : null,
    part('div', 'mm-group', [button('Smaller', '', () => setZoom(zoom - 0.5), 'smaller'), part('span', 'mm-zoom', '100%'), button('Larger', '', () => setZoom(zoom + 0.5), 'larger')]),
    part('div', 'mm-group mm-end', [
      several() ? button('Add a picture', 'mm-add', () => chooseFile(true), 'add') : null,
      button('Another picture', '', () => chooseFile(false), 'swap'), button('Camera', '', startCamera, 'camera'), button('Remove the picture', 'mm-close', () => removePicture(), 'close'),
    ]),
  ]);
  bar.setAttribute('role', 'toolbar');
  bar.setAttribute('aria-label', 'Drawing');
  const strip = part('div', 'mm-sheets');
  strip.hidden = true;
  strip.setAttribute('role', 'group');
  strip.setAttribute('aria-label', 'Pictures of this talk');
  return [bar, part('div', 'mm-view', [inner]), brushRow(), strip, part('ul', 'mm-regions')];
}

// Brings the surface in line with the value Python or the user gave.
function refresh() {
  const all = sheets();
  const one = sheet();
  const paths = all.map((each) => each.image.path);
  const key = one ? `${one.image.path}|${one.view ? one.view.path : ''}` : '';
  setBusy(all.some((each) => !each.size) ? 'Opening the picture' : null);
  if (!paths.some((path) => lying.includes(path))) {
    [past, lastId, cross, draft, drag, heat, zoom] = [[], 0, null, null, null, null, 1];
    show({ turn: null, picture: '', phrases: [] });
  }
  lying = paths;
  if (key !== pictureKey) {
    pictureKey = key;
    const live = element.querySelector('.mm-live') || part('div', 'mm-live');
    live.setAttribute('aria-live', 'polite');
    element.querySelector('.mm-canvas').replaceChildren(...(one ? fullView(one) : [emptyView()]), live);
    setZoom(zoom);
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
  if (next.turn != null && next.phrases.length && turned !== `${next.turn} ${next.picture}`) {
    turned = `${next.turn} ${next.picture}`;
    bringUp();
  }
  draw();
}

// The picture that the answer is about.
function bringUp() {
  if (!answer.picture || about(sheet())) return;
  turnTo(sheets().findIndex((one) => one.key === answer.picture));
}

function showHeat() {
  const over = element.querySelector('.mm-heat');
  if (!over) return;
  const one = sheet();
  over.hidden = !heat || Boolean(heat.picture && one && one.key && heat.picture !== one.key);
  if (over.hidden) return;
  if (over.getAttribute('src') !== heat.url) over.src = heat.url;
  over.style.opacity = heat.opacity;
}

element.addEventListener('pointerdown', pointerDown);
element.addEventListener('pointermove', pointerMove);
element.addEventListener('pointerup', pointerUp);
element.addEventListener('pointercancel', () => { drag = null; draw(); });
element.addEventListener('pointerleave', () => { const made = element.querySelector('.mm-ring'); if (made) made.hidden = true; });
element.addEventListener('pointerleave', () => hovered != null && tell('mm-light', { turn: null, span: null }));
element.addEventListener('keydown', keyDown);
document.addEventListener('mm-answer', (event) => show(event.detail));
document.addEventListener('mm-select', (event) => {
  chosen = event.detail;
  if (chosen.span != null && chosen.turn === answer.turn) bringUp();
  draw();
});
document.addEventListener('mm-abilities', (event) => {
  if (JSON.stringify(event.detail) === JSON.stringify(able)) return;
  able = event.detail;
  pictureKey = null;
  refresh();
});
document.addEventListener('mm-light', (event) => { hovered = event.detail.turn === answer.turn ? event.detail.span : null; draw(); });
document.addEventListener('mm-heat', (event) => { heat = event.detail; showHeat(); });
listenForPictures();
watch('value', refresh);
refresh();
