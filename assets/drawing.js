// What is seen of the surface: regions, places and unfinished lines over the picture, the lists below it. Same scope as canvas.js.

function place(made, box) {
  Object.assign(made.style, { left: `${box[0] * 100}%`, top: `${box[1] * 100}%`, width: `${(box[2] - box[0]) * 100}%`, height: `${(box[3] - box[1]) * 100}%` });
  return made;
}

// A line or an outline over the whole stage, dark below light so that it is seen on any picture.
function drawn(points, closed, name) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  made.setAttribute('viewBox', '0 0 1 1');
  made.setAttribute('preserveAspectRatio', 'none');
  made.setAttribute('class', `mm-line ${name}`);
  ['mm-under', 'mm-over-line'].forEach((layer) => {
    const line = document.createElementNS('http://www.w3.org/2000/svg', closed ? 'polygon' : 'polyline');
    line.setAttribute('points', points.map((point) => point.join(',')).join(' '));
    line.setAttribute('vector-effect', 'non-scaling-stroke');
    line.setAttribute('class', layer);
    made.append(line);
  });
  return made;
}

function brushwork(cells, size, name) {
  const made = part('canvas', `mm-painted ${name}`);
  [made.width, made.height] = size;
  const pen = made.getContext('2d');
  const pixels = pen.createImageData(...size);
  cells.forEach((on, index) => on && pixels.data.fill(255, index * 4, index * 4 + 4));
  pen.putImageData(pixels, 0, 0);
  return made;
}

function drawRegion(region) {
  const on = region.id === selectedId();
  if (drag && drag.kind === 'paint' && drag.region && drag.region.id === region.id) return []; // it is being painted on
  if (cross && cross.paint && cross.paint.region && cross.paint.region.id === region.id) return [];
  const now = drag && drag.moved && drag.region && drag.region.id === region.id ? dragged(drag) : region;
  const made = place(part('div', `mm-region mm-${now.kind}${on ? ' mm-on' : ''}`), now.box);
  made.dataset.id = now.id;
  const low = now.kind !== 'box' && now.kind !== 'point' && now.box[1] > 0.06;
  made.append(part('span', `mm-tag${low ? ' mm-above' : ''}`, `@${now.id}`));
  if (on && now.kind === 'box') ['nw', 'ne', 'se', 'sw'].forEach((corner) => made.append(part('i', `mm-grip mm-${corner}`)));
  if (now.kind === 'mask') return [brushwork(cellsOf(now.mask), now.mask.size, on ? 'mm-on' : ''), made];
  if (now.kind === 'scribble' || now.kind === 'polygon') return [drawn(now.points, now.kind === 'polygon', on ? 'mm-on' : ''), made];
  return [made];
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

// What is being drawn just now, by pointer or keys.
function drawUnfinished() {
  const made = [];
  const rising = (from, to) => place(part('div', 'mm-region mm-box mm-new'), sorted(from.x, from.y, to.x, to.y));
  if (drag && drag.kind === 'paint') made.push(brushwork(drag.cells, drag.size, 'mm-on'));
  if (drag && drag.moved && drag.kind === 'draw') made.push(rising(drag.from, drag.at));
  if (drag && drag.moved && drag.kind === 'trace') made.push(drawn(drag.points, false, 'mm-on'));
  if (draft) {
    made.push(drawn([...draft.points, [draft.at.x, draft.at.y]], false, 'mm-on'));
    draft.points.forEach(([x, y], index) => made.push(place(part('i', `mm-corner${index ? '' : ' mm-first'}`), [x, y, x, y])));
  }
  if (cross) {
    if (cross.start) made.push(rising(cross.start, cross));
    if (cross.line) made.push(drawn(cross.line, false, 'mm-on'));
    if (cross.paint) made.push(brushwork(cross.paint.cells, cross.paint.size, 'mm-on'));
    made.push(place(part('div', 'mm-cross'), [cross.x, cross.y, cross.x, cross.y]));
  }
  return made;
}

function draw() {
  const layer = element.querySelector('.mm-layer');
  if (!layer) return;
  const marks = phrases().flatMap((phrase) => phrase.places.map((found, number) => drawPlace(phrase, found, number)));
  layer.replaceChildren(...[...marks, ...here().flatMap(drawRegion), ...drawUnfinished()].filter(Boolean));
  drawList();
  drawStrip();
  const usable = { undo: past.length > 0 || draft, remove: selectedId() != null };
  Object.entries(usable).forEach(([name, can]) => {
    const found = element.querySelector(`.mm-${name}`);
    if (found) found.disabled = !can;
  });
  element.querySelectorAll('[data-tool]').forEach((one) => one.setAttribute('aria-pressed', String(one.dataset.tool === tool)));
  const options = element.querySelector('.mm-brush');
  if (options) {
    options.hidden = tool !== 'mask';
    options.querySelector('.mm-wipe').setAttribute('aria-pressed', String(wiping));
    options.querySelector('.mm-another').disabled = !here().some((region) => region.id === selectedId() && region.kind === 'mask');
  }
}

// The regions as a list: to read, to select, to put into the question.
function drawList() {
  const list = element.querySelector('.mm-regions');
  const key = JSON.stringify([regions().map(({ id, kind, box, image }) => [id, kind, box, image]), selectedId(), shown(), tool, able]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const rows = regions().map((region) => {
    const on = region.image || 0;
    const corner = inPixels(region.box[0], region.box[1], on);
    const where = region.kind === 'point' ? corner : `${corner} – ${inPixels(region.box[2], region.box[3], on)}`;
    const chip = button(`@${region.id}`, `mm-chip${region.id === selectedId() ? ' mm-on' : ''}`, () => { turnTo(on); choose(region.id); mention(region.id); });
    const which = sheets().length > 1 ? `${on + 1}: ` : '';
    chip.title = `${NAMES[region.kind]} at ${where}${which ? ` of picture ${on + 1}` : ''}: put @${region.id} into the question`;
    chip.append(' ', part('small', '', `${which}${region.kind === 'box' || region.kind === 'point' ? '' : `${NAMES[region.kind]} `}${where}`));
    return part('li', '', [chip, button(`Delete region ${region.id}`, 'mm-plain', () => remove(region.id), 'close')]);
  });
  const how = { point: 'Click on the picture to mark a place, or just ask.', polygon: 'Click the corners of an outline, the first one again to close it.', mask: 'Paint over a thing to mark it, or just ask.' };
  const none = how[tool] || 'Drag on the picture to mark a region, or just ask.';
  list.hidden = !rows.length && !offered().length;
  list.replaceChildren(...(rows.length ? rows : [part('li', 'mm-quiet', none)]));
}

// The pictures of the talk, where there are several: small, numbered, to bring up and to remove.
function drawStrip() {
  const strip = element.querySelector('.mm-sheets');
  const all = sheets();
  const found = all.map((one) => Boolean(answer.picture) && one.key === answer.picture && answer.phrases.length > 0);
  const key = JSON.stringify([all.map((one) => (one.view || one.image).url), shown(), found, able]);
  if (strip.dataset.key === key) return;
  strip.dataset.key = key;
  strip.hidden = all.length < 2;
  const leaves = all.length < 2 ? [] : all.map((one, index) => {
    const label = `Picture ${index + 1}: ${one.image.orig_name || 'picture'}${found[index] ? ', with places of the answer' : ''}`;
    const leaf = button('', `mm-leaf${found[index] ? ' mm-has' : ''}`, () => turnTo(index));
    leaf.setAttribute('aria-pressed', String(index === shown()));
    leaf.setAttribute('aria-label', label);
    leaf.title = label;
    const image = part('img');
    image.src = (one.view || one.image).url || '';
    image.alt = '';
    leaf.append(image, part('b', '', String(index + 1)));
    return part('span', '', [leaf, button(`Remove picture ${index + 1}`, 'mm-plain', () => removePicture(index), 'close')]);
  });
  const alone = leaves.length && !several() ? [part('span', 'mm-quiet', 'This model takes one picture: it is asked about the one that is shown.')] : [];
  strip.replaceChildren(...leaves, ...alone);
}
