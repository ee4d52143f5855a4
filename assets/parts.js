// Small parts of the drawing surface: elements, buttons, icons. Runs first, in one scope with picture.js, pointing.js, canvas.js.

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
  box: 'M4 6h16v12H4z', scribble: 'M4 17c3-9 6-9 7-4s4 4 5-1 2-5 4-5', polygon: 'M12 4l8 6-3 10H7L4 10z', mask: 'M18.5 4L11 11.5M9.5 12a3.2 3.2 0 0 1 2.5 2.6c0 3-2.5 4.4-7 4.4 1.3-1.2 1-2.5 1.3-4A3.3 3.3 0 0 1 9.5 12',
  point: 'M12 5v14M5 12h14M12 9a3 3 0 1 0 0 6 3 3 0 1 0 0-6', select: 'M6 3l12 9-5.4.9L9.6 19z',
  undo: 'M8 5L4 9l4 4M4 9h10a5 5 0 0 1 0 10h-4', remove: 'M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13', swap: 'M4 17V7a2 2 0 0 1 2-2h12a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01',
  add: 'M4 17V7a2 2 0 0 1 2-2h7M20 11v6a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2zM4 16l5-5 4 4 3-3 4 4M18 3v6M15 6h6',
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
